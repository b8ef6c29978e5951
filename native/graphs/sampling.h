// Drawing tokens: the same seed gives the same tokens on every target.
#ifndef QSLM_SAMPLING_H
#define QSLM_SAMPLING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    float temperature; // 0 takes the likeliest token
    float top_p;       // 0 to 1: the likeliest tokens that make up this share are drawn from
    uint64_t random;   // the seed, then the state of the generator (splitmix64)
} qslm_sampler;

// Draw from logits (count,), which are overwritten; order (count,) is scratch.
int32_t qslm_draw(qslm_sampler *sampler, float *logits, int32_t *order, size_t count);

#ifdef __cplusplus
}
#endif

#endif
