// Grouped-query attention with rotary embeddings, over a cache of keys and values.
#ifndef QSLM_ATTENTION_H
#define QSLM_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>

#include "graphs/cache.h"

typedef struct qslm_model qslm_model;

typedef struct {
    size_t heads, shared_heads, width; // of queries, of keys and values, which they share; of a head
} qslm_heads;

typedef struct {
    qslm_heads heads;
    float *frequencies;     // (width / 2,)
    float *cosines, *sines; // (chunk, width / 2): of the tokens that go through the network
    qslm_cache cache;
    float *scores;          // (tokens together, heads, tiles of 16, 16)
    float *scratch;         // (groups together, width, 16): keys or values that are integers, as floats
} qslm_attention;

// How many bytes qslm_prepare_attention takes at most.
size_t qslm_attention_memory(const qslm_model *model, const qslm_heads *heads);

// Take its memory, which is the model's state too, for angles of the base `theta`.
bool qslm_prepare_attention(qslm_model *model, const qslm_heads *heads, double theta, qslm_attention *attention,
                            qslm_error *error);

// Find the angles of `count` tokens that follow `position` others, for all layers.
void qslm_find_angles(const qslm_attention *attention, size_t position, size_t count);

// y (count, heads * width) of `count` tokens that follow `position` others in a layer. query (count, heads * width) and
// key (count, shared_heads * width) are turned in place; key and value, of its shape, go to the cache.
void qslm_attend(qslm_model *model, const qslm_attention *attention, size_t layer, size_t position, float *query,
                 float *key, const float *value, size_t count, float *y);

#endif
