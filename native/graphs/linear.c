// Finding the linear layers of a network, and running them.
#include "graphs/linear.h"

#include <stdio.h>
#include <string.h>

#include "graphs/elementwise.h"
#include "graphs/model_inside.h"
#include "graphs/spiking_config.h"

enum { LINE = 64, MOST_APART = 8 };

static size_t lines(size_t count, size_t size) {
    return count * size + LINE;
}

// ---- memory and sites ---------------------------------------------------------------------------------------------

// Tokens with massive values that are multiplied together.
static size_t apart(const qslm_model *model) {
    return model->chunk < MOST_APART ? model->chunk : MOST_APART;
}

size_t qslm_linears_memory(const qslm_model *model, const qslm_linear_names *names) {
    const size_t all = model->sizes.layers * names->kinds, inputs = qslm_count_inputs(model->config, all);
    const size_t table = lines(all, sizeof(qslm_linear)), chunk = model->chunk, widest = model->widest;
    if (inputs == 0) return table;
    return table + lines(inputs, sizeof(qslm_spiking_input)) + lines(chunk * widest, 1) + lines(chunk, sizeof(unsigned)) +
           lines(apart(model) * widest, 1) + lines(apart(model) * widest, sizeof(float));
}

static bool take_buffers(qslm_model *model, qslm_linears *linears, qslm_error *error) {
    const size_t chunk = model->chunk, widest = model->widest;
    linears->inputs = qslm_take(model->arena, linears->room * sizeof *linears->inputs, error);
    linears->massive = qslm_take(model->arena, chunk * widest, error);
    linears->exponents = qslm_take(model->arena, chunk * sizeof *linears->exponents, error);
    linears->apart = qslm_take(model->arena, apart(model) * widest, error);
    linears->rows = qslm_take(model->arena, apart(model) * widest * sizeof *linears->rows, error);
    return linears->inputs && linears->massive && linears->exponents && linears->apart && linears->rows;
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

typedef struct {
    qslm_model *model;
    const qslm_linear *layer;
    const float *x;
} taking;

static void take_some(void *state, size_t first, size_t last) {
    const taking *one = state;
    qslm_model *model = one->model;
    const qslm_linears *linears = &model->linears;
    const qslm_matrix *matrix = one->layer->matrix;
    const size_t columns = matrix->columns, stride = stride_of(matrix);
    for (size_t i = first; i < last; i++) {
        const float *token = one->x + i * columns;
        int8_t *codes = model->codes + i * stride;
        model->scales[i] = matrix->activations == 0
                               ? qslm_round_token(token, columns, stride, codes)
                               : qslm_encode_spikes(one->layer->input, matrix->activations, token, columns, stride, codes,
                                                    linears->massive + i * stride, &linears->exponents[i]);
    }
}

// Tokens x (count, columns) into the model's codes: rounded, or as the spike counts that a layer reads.
static void take_tokens(qslm_model *model, const qslm_linear *layer, const float *x, size_t count) {
    enum { PASSES = 32 }; // over a token whose medians are found
    const bool rounds = layer->matrix->activations == 0 || layer->input->is_static;
    taking one = {model, layer, x};
    qslm_share_tokens(model, count, layer->matrix->columns * (rounds ? 2 : PASSES), take_some, &one);
}

// y (count, rows) of tokens with massive values, which `which` lists.
static void add_rows(qslm_model *model, const qslm_matrix *matrix, const size_t *which, size_t count, float *y) {
    const qslm_linears *linears = &model->linears;
    const size_t stride = stride_of(matrix), rows = matrix->rows;
    float scales[MOST_APART];
    for (size_t i = 0; i < count; i++) {
        scales[i] = model->scales[which[i]] * (float)(1u << linears->exponents[which[i]]);
        memcpy(linears->apart + i * stride, linears->massive + which[i] * stride, stride);
    }
    const qslm_tokens tokens = {linears->apart, stride, scales, count};
    qslm_multiply(matrix, &tokens, NULL, linears->rows, model->threads);
    for (size_t i = 0; i < count; i++) qslm_add(linears->rows + i * rows, rows, y + which[i] * rows);
}

// Massive values count 2^e steps: a product of their own, of the tokens that have any.
static void add_massive(qslm_model *model, const qslm_matrix *matrix, size_t count, float *y) {
    size_t which[MOST_APART], found = 0;
    for (size_t i = 0; i < count; i++) {
        if (model->linears.exponents[i] > 0) which[found++] = i;
        if (found > 0 && (found == apart(model) || i + 1 == count)) {
            add_rows(model, matrix, which, found, y);
            found = 0;
        }
    }
}

// ---- running ------------------------------------------------------------------------------------------------------

static void add_bias(const qslm_linear *one, size_t count, float *y) {
    const size_t rows = one->matrix->rows;
    for (size_t i = 0; one->bias != NULL && i < count; i++) qslm_add(one->bias, rows, y + i * rows);
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
