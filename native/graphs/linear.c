// Finding the linear layers of a network, and running them.
#include "graphs/linear.h"

#include <string.h>

#include "graphs/elementwise.h"
#include "graphs/model_inside.h"
#include "graphs/spiking_config.h"
#include "system/print.h"

enum { LINE = 64, MOST_APART = 8 };

// ---- memory and sites ---------------------------------------------------------------------------------------------

// Tokens with massive values that are multiplied together.
static size_t apart(const qslm_model *model) {
    return model->chunk < MOST_APART ? model->chunk : MOST_APART;
}

size_t qslm_linears_memory(const qslm_model *model, const qslm_linear_names *names) {
    const size_t all = model->sizes.layers * names->kinds, inputs = qslm_count_inputs(model->config, all);
    const size_t table = qslm_room(all, sizeof(qslm_linear)), chunk = model->chunk, widest = model->widest;
    if (inputs == 0) return table;
    return table + qslm_room(inputs, sizeof(qslm_spiking_input)) + qslm_room(chunk * qslm_codes_of_token(model), 1) +
           qslm_room(QSLM_MOST_TOGETHER * chunk, sizeof(unsigned)) + qslm_room(apart(model) * widest, 1) +
           qslm_room(apart(model) * widest, sizeof(float));
}

static bool take_buffers(qslm_model *model, qslm_linears *linears, qslm_error *error) {
    const size_t chunk = model->chunk, widest = model->widest;
    linears->inputs = qslm_take(model->arena, linears->room * sizeof *linears->inputs, error);
    linears->massive = qslm_take(model->arena, chunk * qslm_codes_of_token(model), error);
    linears->exponents = qslm_take(model->arena, QSLM_MOST_TOGETHER * chunk * sizeof *linears->exponents, error);
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
    char beyond[96];
    qslm_print(beyond, sizeof beyond, "%s%zu.%s.weight", names->start, model->sizes.layers, names->ends[0]);
    if (qslm_find_site(&model->file, beyond, NULL) != NULL) {
        return qslm_fail(error, "config.json makes %zu layers, but the file has %s.", model->sizes.layers, beyond);
    }
    return qslm_read_spiking(model, error);
}

bool qslm_find_linear(qslm_model *model, size_t layer, size_t kind, size_t rows, size_t columns, qslm_error *error) {
    const qslm_linear_names *names = model->linears.names;
    qslm_linear *one = &model->linears.all[layer * names->kinds + kind];
    char name[96];
    qslm_print(name, sizeof name, "%s%zu.%s.weight", names->start, layer, names->ends[kind]);
    one->matrix = qslm_matrix_of(model, name, rows, columns, error);
    if (one->matrix == NULL) return false;
    if (one->matrix->activations > 0 && one->input == NULL) {
        return qslm_fail(error, "%s reads spike counts, but config.json does not say how they are made.", name);
    }
    qslm_print(name, sizeof name, "%s%zu.%s.bias", names->start, layer, names->ends[kind]);
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

// Tokens x (count, columns) in a part of the model's buffers: rounded, or as the spike counts that a layer reads.
typedef struct {
    const qslm_linear *layer; // the first that reads them
    const float *x;
    int8_t *codes, *massive;  // (count, stride)
    float *scales;            // (count,)
    unsigned *exponents;      // (count,)
    qslm_tokens tokens;
} taken;

static void take_some(void *state, size_t first, size_t last) {
    const taken *one = state;
    const qslm_matrix *matrix = one->layer->matrix;
    const size_t columns = matrix->columns, stride = one->tokens.stride;
    for (size_t i = first; i < last; i++) {
        const float *token = one->x + i * columns;
        int8_t *codes = one->codes + i * stride;
        one->scales[i] = matrix->activations == 0
                             ? qslm_round_token(token, columns, stride, codes)
                             : qslm_encode_spikes(one->layer->input, matrix->activations, token, columns, stride, codes,
                                                  one->massive + i * stride, &one->exponents[i]);
    }
}

// Take the tokens of a call as the `index`th of those that run together, `used` codes a token being taken already.
static void take_tokens(qslm_model *model, const qslm_call *call, size_t count, size_t index, size_t used, taken *one) {
    enum { PASSES = 32 }; // over a token whose medians are found
    const qslm_linears *linears = &model->linears;
    const qslm_matrix *matrix = call->layer->matrix;
    const bool spikes = matrix->activations > 0;
    *one = (taken){.layer = call->layer, .x = call->x, .codes = model->codes + used * count,
                   .scales = model->scales + index * model->chunk};
    if (spikes) {
        one->massive = linears->massive + used * count;
        one->exponents = linears->exponents + index * model->chunk;
    }
    one->tokens = (qslm_tokens){one->codes, stride_of(matrix), one->scales, count};
    const bool searches = spikes && !call->layer->input->is_static;
    qslm_share_tokens(model, count, matrix->columns * (searches ? PASSES : 2), take_some, one);
}

// y (count, rows) of tokens with massive values, which `which` lists.
static void add_rows(qslm_model *model, const qslm_matrix *matrix, const taken *from, const size_t *which, size_t count,
                     float *y) {
    const qslm_linears *linears = &model->linears;
    const size_t stride = from->tokens.stride, rows = matrix->rows;
    float scales[MOST_APART];
    for (size_t i = 0; i < count; i++) {
        scales[i] = from->scales[which[i]] * (float)(1u << from->exponents[which[i]]);
        memcpy(linears->apart + i * stride, from->massive + which[i] * stride, stride);
    }
    const qslm_tokens tokens = {linears->apart, stride, scales, count};
    qslm_multiply(&(qslm_product){matrix, &tokens, NULL, count, linears->rows}, 1, model->threads);
    for (size_t i = 0; i < count; i++) qslm_add(linears->rows + i * rows, rows, y + which[i] * rows);
}

// Massive values count 2^e steps: a product of their own, of the tokens that have any.
static void add_massive(qslm_model *model, const qslm_matrix *matrix, const taken *from, float *y) {
    const size_t count = from->tokens.tokens;
    size_t which[MOST_APART], found = 0;
    for (size_t i = 0; i < count; i++) {
        if (from->exponents[i] > 0) which[found++] = i;
        if (found > 0 && (found == apart(model) || i + 1 == count)) {
            add_rows(model, matrix, from, which, found, y);
            found = 0;
        }
    }
}

// ---- running ------------------------------------------------------------------------------------------------------

static void add_bias(const qslm_linear *one, size_t count, float *y) {
    const size_t rows = one->matrix->rows;
    for (size_t i = 0; one->bias != NULL && i < count; i++) qslm_add(one->bias, rows, y + i * rows);
}

static bool reads_alike(const qslm_call *call, const taken *other) {
    const qslm_linear *one = call->layer;
    return call->x == other->x && one->matrix->activations == other->layer->matrix->activations &&
           (one->matrix->activations == 0 || one->input == other->layer->input);
}

void qslm_run_linears(qslm_model *model, const qslm_call *calls, size_t layers, size_t count) {
    taken all[QSLM_MOST_TOGETHER];
    const taken *read[QSLM_MOST_TOGETHER] = {0}; // by each of the calls
    qslm_product products[QSLM_MOST_TOGETHER] = {0};
    size_t distinct = 0, used = 0;
    for (size_t i = 0; i < layers; i++) {
        const qslm_matrix *matrix = calls[i].layer->matrix;
        products[i] = (qslm_product){matrix, NULL, calls[i].x, count, calls[i].y};
        if (model->floats && matrix->activations == 0) continue;
        size_t same = 0;
        while (same < distinct && !reads_alike(&calls[i], &all[same])) same++;
        if (same == distinct) {
            take_tokens(model, &calls[i], count, distinct++, used, &all[same]);
            used += stride_of(matrix);
        }
        read[i] = &all[same];
        products[i].tokens = &all[same].tokens;
    }
    qslm_multiply(products, layers, model->threads);
    for (size_t i = 0; i < layers; i++) {
        const qslm_linear *one = calls[i].layer;
        if (one->matrix->activations > 0) add_massive(model, one->matrix, read[i], calls[i].y);
        add_bias(one, count, calls[i].y);
    }
}

void qslm_run_linear(qslm_model *model, const qslm_linear *one, const float *x, size_t count, float *y) {
    qslm_run_linears(model, &(qslm_call){one, x, y}, 1, count);
}
