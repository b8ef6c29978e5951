// The cache of keys and values of an attention: floats, or integers as a conversion holds them (qslm/spiking/cache.py).
//
// Integers: a key is turned by a Hadamard matrix and rounded, k = (code - zero) step, a step and a zero point for each
// token and head (models/cache.py); a value is a spike count times a step, of its head or of its token and head
// (spiking/firing.py), found from the layer's output as a float. Up to 4 bits two stand in a byte.
#ifndef QSLM_CACHE_H
#define QSLM_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "graphs/hadamard.h"

typedef struct qslm_model qslm_model;

typedef struct {
    size_t layers, heads, width, context; // heads of keys and values
    unsigned bits;                        // 0: floats
    float *steps;                         // (layers, heads) of values; NULL where each token finds its own
    qslm_rotation rotation;
    uint8_t *keys;   // (layers, heads, tiles of 16 tokens, width, 16): float32 or codes
    uint8_t *values; // (layers, heads, context, width): float32 or codes
    float *key_steps, *value_steps; // (layers, heads, context)
    uint8_t *zeros;                 // (layers, heads, context)
} qslm_cache;

// How many bytes of the arena it takes at most.
size_t qslm_cache_memory(const qslm_model *model, size_t heads, size_t width);

// Take its memory, the model's state, as config.json says; false and an error where that is not fit.
bool qslm_prepare_cache(qslm_model *model, size_t heads, size_t width, qslm_cache *cache, qslm_error *error);

// Keep a key and a value (width,) of a token; the key is overwritten. Tokens of a head come in order.
void qslm_keep(const qslm_cache *cache, size_t layer, size_t head, size_t position, float *key, const float *value);

// 16 keys from `position`, a multiple of 16, on: (width, 16). scratch (width, 16) is for those that are integers.
const float *qslm_keys_at(const qslm_cache *cache, size_t layer, size_t head, size_t position, float *scratch);

// `count` values from `position` on, (count, width); integers are 16 at most.
const float *qslm_values_at(const qslm_cache *cache, size_t layer, size_t head, size_t position, size_t count,
                            float *scratch);

#endif
