// The angles of rotary embeddings, in double precision by our own functions: those of C libraries differ in the last bit.
#ifndef QSLM_ROTARY_H
#define QSLM_ROTARY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Cosine and sine of 0 <= x <= 2^24, a float32; error below 2^-51.
void qslm_turn(double x, double *cosine, double *sine);

// base^exponent, 1 <= base <= 1e12 and 0 <= exponent <= 1; relative error below 2^-46.
double qslm_power(double base, double exponent);

// The angle of a pair of channels i at a position is position * frequencies[i], 1 / theta^(2 i / width), each step in
// float32 as PyTorch takes it: the frequencies (width / 2,), and the cosines and sines (count, width / 2) from position
// `first` on.
void qslm_fill_frequencies(double theta, size_t width, float *frequencies);
void qslm_fill_angles(const float *frequencies, size_t half, size_t first, size_t count, float *cosines, float *sines);

#ifdef __cplusplus
}
#endif

#endif
