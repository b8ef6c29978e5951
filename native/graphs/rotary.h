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

// The angle of a pair of channels at a position, position / theta^(2 i / width), each step in float32 as PyTorch takes it:
// its cosine and sine, (context, width / 2).
void qslm_fill_angles(double theta, size_t width, size_t context, float *cosines, float *sines);

#ifdef __cplusplus
}
#endif

#endif
