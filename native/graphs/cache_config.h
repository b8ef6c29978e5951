// "cache" in "spiking" of config.json: {"bits": 4, "steps": {PATH: [0.1, ...], ...} or null}.
#ifndef QSLM_CACHE_CONFIG_H
#define QSLM_CACHE_CONFIG_H

#include "graphs/model.h"

typedef struct {
    int64_t bits; // 0 where the cache holds floats
    bool has_steps;
} qslm_cache_form;

// Read what the cache is; and the steps of values into steps (layers, heads), unless it is NULL: then model->linears must
// have been prepared. False and an error where they are not fit.
bool qslm_read_cache(const qslm_model *model, size_t heads, qslm_cache_form *form, float *steps, qslm_error *error);

#endif
