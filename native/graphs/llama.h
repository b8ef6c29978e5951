// What config.json says of a network as Llama, beside its sizes.
#ifndef QSLM_LLAMA_H
#define QSLM_LLAMA_H

#include "graphs/attention.h"
#include "graphs/model_inside.h"

typedef struct {
    qslm_heads heads;
    float epsilon; // of the norms
    double theta;  // of the rotary embedding
} qslm_llama_shape;

// Read the sizes; false and an error where the engine does not run such a network.
bool qslm_configure_llama(qslm_model *model, qslm_bytes config, qslm_error *error);

// The rest, of a config that was read before.
qslm_llama_shape qslm_shape_of_llama(qslm_bytes config);

#endif
