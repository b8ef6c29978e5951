// The signed spike counts of a token (qslm/spiking/encoding.py and saliency.py), to the bit.
#ifndef QSLM_SPIKES_H
#define QSLM_SPIKES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// How the counts of an input are made. A value is salient above the modified z-score `threshold` within its token, or,
// where it is static, beyond `reach` from `center`.
typedef struct {
    unsigned salient_bits; // at least those of the counts are taken
    float clip, threshold; // threshold / 0.6745
    bool is_static;
    float center, reach;
} qslm_spiking_input;

// The counts of x (columns,) of `bits` bits: `codes` (stride,) of normal and salient values, `massive` (stride,) of massive
// ones, which count 2^exponent steps each; zeros elsewhere and behind the last. Returns the step. exponent is 0 where there
// is no massive value. NaN and infinities give counts of no meaning, but none out of range.
float qslm_encode_spikes(const qslm_spiking_input *input, unsigned bits, const float *x, size_t columns, size_t stride,
                         int8_t *codes, int8_t *massive, unsigned *exponent);

#ifdef __cplusplus
}
#endif

#endif
