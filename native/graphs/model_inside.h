// What a model is made of, for the graphs.
#ifndef QSLM_MODEL_INSIDE_H
#define QSLM_MODEL_INSIDE_H

#include "formats/json.h"
#include "graphs/linear.h"
#include "graphs/model.h"

// A kind of network: what it needs, and how it computes.
typedef struct {
    const char *name;     // the architecture in config.json
    bool limited;         // to its context
    // Read the sizes from config.json; false and an error where they are not fit.
    bool (*configure)(qslm_model *model, qslm_bytes config, qslm_error *error);
    // How many bytes of parameters, buffers and state it takes.
    size_t (*memory)(const qslm_model *model);
    // Find its sites and take its memory.
    bool (*prepare)(qslm_model *model, qslm_error *error);
    void (*reset)(qslm_model *model);
    // `count` tokens, `chunk` at most, through all blocks: the normed residual stream (count, width) into model->stream.
    void (*run)(qslm_model *model, const int32_t *ids, size_t count);
} qslm_graph;

extern const qslm_graph qslm_spikegpt, qslm_llama;

struct qslm_model {
    const qslm_graph *graph;
    qslm_sizes sizes;
    size_t chunk;
    bool binary_embedding, floats;
    qslm_bytes config;
    qslm_file file;
    qslm_arena *arena;
    qslm_threads *threads;
    const qslm_matrix *embedding, *readout; // the head, or the classifier
    const float *forced;
    float *potentials;
    float *stream;      // (chunk, width)
    float *pooled;      // (width,): of a classifier
    int8_t *codes;      // chunk times qslm_codes_of_token: tokens as integers
    float *scales;      // (QSLM_MOST_TOGETHER, chunk)
    qslm_linears linears;
    size_t widest;      // a multiple of 64
    uint8_t *state;     // what is saved: the header, then the graph's own
    size_t state_bytes;
    void *network;      // the graph's own
};

// Call work(state, first, last) for parts of `count` tokens, on all threads where it is worth waking them: `cost` is how
// many floats, or as much as them, a token reads.
static inline void qslm_share_tokens(const qslm_model *model, size_t count, size_t cost,
                                     void (*work)(void *, size_t, size_t), void *state) {
    enum { WORTH_WAKING = 1 << 14 };
    qslm_share(count * cost < WORTH_WAKING ? NULL : model->threads, count, 1, work, state);
}

// Sizes of config.json, and the most that each may be; false and an error where one is none of 1 to that.
typedef struct {
    const char *name;
    int64_t value, most;
} qslm_limit;
bool qslm_check_limits(const qslm_limit *limits, size_t count, qslm_error *error);

// How many codes a token has at most in layers that run together, as long as these are padded.
size_t qslm_codes_of_token(const qslm_model *model);

// How many tokens the state has seen.
size_t qslm_tokens_seen(const qslm_model *model);

// A site of the shape (rows, columns) as a matrix, or as floats (columns,) of a vector, taken from the arena; NULL and an
// error where it is missing or of another shape.
const qslm_matrix *qslm_matrix_of(const qslm_model *model, const char *name, size_t rows, size_t columns,
                                  qslm_error *error);
const float *qslm_vector_of(qslm_model *model, const char *name, size_t width, qslm_error *error);

// The state's part of a graph: `size` bytes behind the header, in the arena.
size_t qslm_state_memory(size_t size); // of the arena, at most
void *qslm_take_state(qslm_model *model, size_t size, qslm_error *error);

#endif
