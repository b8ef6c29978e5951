// A packed model that runs where it lies; qslm.h shows how. Nothing is allocated: all memory is the caller's arena. A model
// belongs to one thread at a time.
#ifndef QSLM_MODEL_H
#define QSLM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "system/error.h"
#include "formats/file.h"
#include "system/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qslm_model qslm_model;

typedef struct {
    size_t vocabulary, width, layers, ffn_width, context;
    size_t classes; // 0 for a language model
} qslm_sizes;

// How many bytes of an arena qslm_load takes at most; 0 and an error where the files are not a model's. `chunk` is how many
// tokens go through the network together: more take more memory and read the weights less often.
size_t qslm_model_memory(qslm_bytes file, qslm_bytes config, size_t chunk, qslm_error *error);

// Check the model file, every scale and float of it too, and its config.json; both must outlive the model. NULL and an error
// where they are not fit. Codes can be any: whether they are those that were written, only a digest of the file tells.
qslm_model *qslm_load(qslm_bytes file, qslm_bytes config, size_t chunk, qslm_arena *arena, qslm_error *error);

const qslm_sizes *qslm_sizes_of(const qslm_model *model);
size_t qslm_weight_bytes(const qslm_model *model); // of all tensors
const qslm_file *qslm_file_of(const qslm_model *model);

// Go on by the tokens ids (count,), 1 or more. logits (vocabulary,) of the last, or of all (count, vocabulary); they may
// be NULL. False and an error where an id is no token, the model is a classifier, or its context is full.
bool qslm_advance(qslm_model *model, const int32_t *ids, size_t count, float *logits, qslm_error *error);
bool qslm_advance_all(qslm_model *model, const int32_t *ids, size_t count, float *logits, qslm_error *error);

// The logits (classes,) of a text, from the empty state.
bool qslm_classify(qslm_model *model, const int32_t *ids, size_t count, float *logits, qslm_error *error);

// What is carried from token to token: emptied, copied out (qslm_state_bytes of them), and back. Restoring is false where
// the bytes are not a state of this model.
void qslm_reset(qslm_model *model);
size_t qslm_state_bytes(const qslm_model *model);
void qslm_save_state(const qslm_model *model, void *state);
bool qslm_restore_state(qslm_model *model, const void *state, size_t size);

// The index of the largest of `count` logits, the first of equals.
int32_t qslm_likeliest(const float *logits, size_t count);

// Threads that share the products; NULL: none. They must outlive the model's use.
void qslm_use_threads(qslm_model *model, qslm_threads *threads);

// The checking mode: activations stay floats.
void qslm_use_floats(qslm_model *model, bool floats);

// For tests: spikes to emit, and where to put potentials, (tokens, neurons, width) of the tokens to come; either may be
// NULL. A SpikeGPT has two neurons a block.
void qslm_trace(qslm_model *model, const float *forced, float *potentials);

#ifdef __cplusplus
}
#endif

#endif
