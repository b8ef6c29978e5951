// Finding the linear layers of a network, and running them.
#include "graphs/linear.h"

#include <stdio.h>
#include <string.h>

#include "graphs/model_inside.h"
#include "graphs/spiking_config.h"

enum { LINE = 64 };

static size_t lines(size_t count, size_t size) {
    return count * size + LINE;
}

// ---- memory and sites ---------------------------------------------------------------------------------------------

size_t qslm_linears_memory(const qslm_model *model, const qslm_linear_names *names) {
    const size_t all = model->sizes.layers * names->kinds, inputs = qslm_count_inputs(model->config, all);
    const size_t table = lines(all, sizeof(qslm_linear)), chunk = model->chunk, widest = model->widest;
    if (inputs == 0) return table;
    return table + lines(inputs, sizeof(qslm_spiking_input)) + lines(chunk * widest, 1) + lines(chunk, sizeof(unsigned)) +
           lines(widest, sizeof(float)) + lines(widest, sizeof(uint32_t));
}

static bool take_buffers(qslm_model *model, qslm_linears *linears, qslm_error *error) {
    const size_t chunk = model->chunk, widest = model->widest;
    linears->inputs = qslm_take(model->arena, linears->room * sizeof *linears->inputs, error);
    linears->massive = qslm_take(model->arena, chunk * widest, error);
    linears->exponents = qslm_take(model->arena, chunk * sizeof *linears->exponents, error);
    linears->rows = qslm_take(model->arena, widest * sizeof *linears->rows, error);
    linears->keys = qslm_take(model->arena, widest * sizeof *linears->keys, error);
    return linears->inputs && linears->massive && linears->exponents && linears->rows && linears->keys;
}

bool qslm_prepare_linears(qslm_model *model, const qslm_linear_names *names, qslm_error *error) {
    const size_t all = model->sizes.layers * names->kinds;
    qslm_linears *linears = &model->linears;
    *linears = (qslm_linears){.names = names, .room = qslm_count_inputs(model->config, all)};
    linears->all = qslm_take(model->arena, all * sizeof *linears->all, error);
    if (linears->all == NULL) return false;
    memset(linears->all, 0, all * sizeof *linears->all);
    if (linears->room > 0 && !take_buffers(model, linears, error)) return false;
    return qslm_read_spiking(model, error);
}

bool qslm_find_linear(qslm_model *model, size_t layer, size_t kind, size_t rows, size_t columns, qslm_error *error) {
    const qslm_linear_names *names = model->linears.names;
    qslm_linear *one = &model->linears.all[layer * names->kinds + kind];
    char name[96];
    snprintf(name, sizeof name, "%s%zu.%s.weight", names->start, layer, names->ends[kind]);
    one->matrix = qslm_matrix_of(model, name, rows, columns, error);
    if (one->matrix == NULL) return false;
    if (one->matrix->activations > 0 && one->input == NULL) {
        return qslm_fail(error, "%s reads spike counts, but config.json does not say how they are made.", name);
    }
    snprintf(name, sizeof name, "%s%zu.%s.bias", names->start, layer, names->ends[kind]);
    if (qslm_find_site(&model->file, name, NULL) == NULL) return true;
    one->bias = qslm_vector_of(model, name, rows, error);
    return one->bias != NULL;
}

const qslm_linear *qslm_linears_of(const qslm_model *model, size_t layer) {
    return &model->linears.all[layer * model->linears.names->kinds];
}

// ---- tokens as integers -------------------------------------------------------------------------------------------

static size_t stride_of(const qslm_matrix *matrix) {
    return (matrix->columns + LINE - 1) / LINE * LINE;
}

// Tokens x (count, columns) into the model's codes: rounded, or as the spike counts that a layer reads.
static void take_tokens(qslm_model *model, const qslm_linear *one, const float *x, size_t count) {
    const size_t columns = one->matrix->columns, stride = stride_of(one->matrix);
    qslm_linears *linears = &model->linears;
    for (size_t i = 0; i < count; i++) {
        const float *token = x + i * columns;
        int8_t *codes = model->codes + i * stride;
        model->scales[i] = one->matrix->activations == 0
                               ? qslm_round_token(token, columns, stride, codes)
                               : qslm_encode_spikes(one->input, one->matrix->activations, token, columns, stride,
                                                    linears->keys, codes, linears->massive + i * stride,
                                                    &linears->exponents[i]);
    }
}

// Massive values count 2^e steps: a product of their own, of the tokens that have any.
static void add_massive(qslm_model *model, const qslm_matrix *matrix, size_t count, float *y) {
    const qslm_linears *linears = &model->linears;
    const size_t stride = stride_of(matrix), rows = matrix->rows;
    for (size_t i = 0; i < count; i++) {
        if (linears->exponents[i] == 0) continue;
        const float scale = model->scales[i] * (float)(1u << linears->exponents[i]);
        const qslm_tokens token = {linears->massive + i * stride, stride, &scale, 1};
        qslm_multiply(matrix, &token, NULL, linears->rows, model->threads);
        for (size_t row = 0; row < rows; row++) y[i * rows + row] += linears->rows[row];
    }
}

// ---- running ------------------------------------------------------------------------------------------------------

static void add_bias(const qslm_linear *one, size_t count, float *y) {
    const size_t rows = one->matrix->rows;
    for (size_t i = 0; one->bias != NULL && i < count; i++) {
        for (size_t row = 0; row < rows; row++) y[i * rows + row] += one->bias[row];
    }
}

static bool reads_alike(const qslm_linear *one, const qslm_linear *other) {
    return one->matrix->activations == other->matrix->activations &&
           (one->matrix->activations == 0 || one->input == other->input);
}

void qslm_run_linears(qslm_model *model, const qslm_linear *ones, size_t layers, const float *x, size_t count,
                      float *const *y) {
    const qslm_linear *taken = NULL; // whose tokens are the model's codes
    for (size_t i = 0; i < layers; i++) {
        const qslm_linear *one = &ones[i];
        const bool spikes = one->matrix->activations > 0;
        if (model->floats && !spikes) {
            qslm_multiply_floats(one->matrix, x, count, y[i], model->threads);
        } else {
            if (taken == NULL || !reads_alike(one, taken)) take_tokens(model, one, x, count);
            taken = one;
            const qslm_tokens tokens = {model->codes, stride_of(one->matrix), model->scales, count};
            qslm_multiply(one->matrix, &tokens, x, y[i], model->threads);
            if (spikes) add_massive(model, one->matrix, count, y[i]);
        }
        add_bias(one, count, y[i]);
    }
}

void qslm_run_linear(qslm_model *model, const qslm_linear *one, const float *x, size_t count, float *y) {
    qslm_run_linears(model, one, 1, x, count, &y);
}
