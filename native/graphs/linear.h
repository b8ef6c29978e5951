// The linear layers of a network: a matrix, a bias, and the spike counts that it reads. Layers that need nothing of each
// other run as one; those of them that read the same tokens alike have them rounded or encoded once.
#ifndef QSLM_LINEAR_H
#define QSLM_LINEAR_H

#include "graphs/spikes.h"
#include "products/matrix.h"
#include "system/error.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct qslm_model qslm_model;

enum { QSLM_MOST_TOGETHER = 3 }; // layers that run as one

// How the linear layers of a network are named: START LAYER . END, such as blocks.3.att.key.
typedef struct {
    const char *start;
    size_t kinds; // of them in every layer
    const char *ends[8];
} qslm_linear_names;

typedef struct {
    const qslm_matrix *matrix;
    const float *bias;               // (rows,); may be NULL
    const qslm_spiking_input *input; // where the matrix reads spike counts
} qslm_linear;

typedef struct {
    const qslm_linear_names *names;
    qslm_linear *all;           // (layers, kinds)
    qslm_spiking_input *inputs; // (room,)
    size_t room, count;         // of inputs
    int8_t *massive;            // as model->codes: counts of massive values; of tokens without any it is not read
    unsigned *exponents;        // (QSLM_MOST_TOGETHER, chunk): what they count
    int8_t *apart;              // (some tokens, widest): those of tokens that have any,
    float *rows;                // (some tokens, widest): and their product
} qslm_linears;

// How many bytes qslm_prepare_linears takes at most.
size_t qslm_linears_memory(const qslm_model *model, const qslm_linear_names *names);

// Take memory for model->linears, and read "spiking" of config.json; the matrices are found afterwards, one by one.
bool qslm_prepare_linears(qslm_model *model, const qslm_linear_names *names, qslm_error *error);
bool qslm_find_linear(qslm_model *model, size_t layer, size_t kind, size_t rows, size_t columns, qslm_error *error);

// The layers of a block, (kinds,).
const qslm_linear *qslm_linears_of(const qslm_model *model, size_t layer);

// y (count, rows) = a layer of x (count, columns).
typedef struct {
    const qslm_linear *layer;
    const float *x;
    float *y;
} qslm_call;

// QSLM_MOST_TOGETHER calls at most; where they are several, each has as many columns as the network is wide.
void qslm_run_linears(qslm_model *model, const qslm_call *calls, size_t layers, size_t count);
void qslm_run_linear(qslm_model *model, const qslm_linear *one, const float *x, size_t count, float *y);

#endif
