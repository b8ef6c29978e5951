// "spiking" in config.json (qslm/spiking/placing.py): which linear layers read spike counts, and how these are made.
#ifndef QSLM_SPIKING_CONFIG_H
#define QSLM_SPIKING_CONFIG_H

#include "formats/json.h"
#include "graphs/linear.h"
#include "graphs/model.h"

// How many inputs there are, `most` at most; 0 where there is none, or the text is no JSON.
size_t qslm_count_inputs(qslm_bytes config, size_t most);

// Read the inputs into model->linears, and give them to the layers; false and an error where they are not fit.
bool qslm_read_spiking(qslm_model *model, qslm_error *error);

// The layer and the kind of a path such as blocks.3.ffn.key; false where it names no linear layer of a block.
bool qslm_read_path(const qslm_linear_names *names, size_t layers, qslm_json_span path, size_t *layer, size_t *kind);

#endif
