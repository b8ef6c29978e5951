// SpikeGPT (models/spikegpt.py): RWKV mixing with spiking residual branches, a chunk of tokens at a time, with numbers or
// with the spike counts of a conversion.
#include <string.h>

#include "graphs/elementwise.h"
#include "graphs/model_inside.h"
#include "system/portable.h"
#include "system/print.h"

#define EMPTY_EXPONENT (-1e38f)
enum { MOST_LAYERS = 4096, MOST_WORDS = 1 << 24 };

enum { KEY, VALUE, RECEPTANCE, OUTPUT, FFN_KEY, FFN_RECEPTANCE, FFN_VALUE, LINEARS };
static const qslm_linear_names NAMES = {"blocks.",
                                        LINEARS,
                                        {"att.key", "att.value", "att.receptance", "att.output", "ffn.key",
                                         "ffn.receptance", "ffn.value"}};

// What a block carries from token to token, each (width,): offsets in its part of the state.
enum { ATT_INPUT, WKV, ATT_MEMBRANE = 4, FFN_INPUT, FFN_MEMBRANE, CARRIED };

typedef struct {
    const float *weight, *bias;
} norm;

typedef struct {
    norm ln1, ln2;
    const float *decay, *bonus, *mix_k, *mix_v, *mix_r, *ffn_mix_k, *ffn_mix_r;
} block;

typedef struct {
    norm ln0, ln_out;
    block *blocks;                         // (layers,)
    float *state;                          // (layers, CARRIED, width)
    float *normed, *mixed[3], *key, *value, *gate; // (chunk, width)
    float *hidden;                         // (chunk, ffn_width)
} spikegpt;

// ---- config.json --------------------------------------------------------------------------------------------------

static bool configure(qslm_model *model, qslm_bytes config, qslm_error *error) {
    qslm_json json = qslm_json_open((const char *)config.start, config.size, error);
    qslm_json_span key;
    int64_t vocabulary = 0, width = 0, layers = 0, ffn_width = 0, context = 1024, classes = 0;
    bool labelled = false;
    model->binary_embedding = true;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (qslm_json_equals(key, "vocabulary_size")) qslm_json_int64(&json, &vocabulary);
        else if (qslm_json_equals(key, "width")) qslm_json_int64(&json, &width);
        else if (qslm_json_equals(key, "layers")) qslm_json_int64(&json, &layers);
        else if (qslm_json_equals(key, "ffn_width")) qslm_json_int64(&json, &ffn_width);
        else if (qslm_json_equals(key, "context_length")) qslm_json_int64(&json, &context);
        else if (qslm_json_equals(key, "binary_embedding")) qslm_json_bool(&json, &model->binary_embedding);
        else if (qslm_json_equals(key, "classes") && qslm_json_peek(&json) != QSLM_JSON_NULL) {
            labelled = qslm_json_int64(&json, &classes);
        } else {
            qslm_json_skip(&json, NULL);
        }
    }
    if (!qslm_json_close(&json)) return false;
    const qslm_limit limits[] = {{"vocabulary_size", vocabulary, MOST_WORDS}, {"width", width, QSLM_MOST_COLUMNS},
                                 {"layers", layers, MOST_LAYERS},             {"ffn_width", ffn_width, QSLM_MOST_COLUMNS},
                                 {"context_length", context, MOST_WORDS},     {"classes", classes, MOST_WORDS}};
    if (!qslm_check_limits(limits, labelled ? 6 : 5, error)) return false;
    model->sizes = (qslm_sizes){(size_t)vocabulary, (size_t)width,   (size_t)layers,
                                (size_t)ffn_width,  (size_t)context, (size_t)classes};
    return true;
}

static size_t memory(const qslm_model *model) {
    const size_t width = model->sizes.width, layers = model->sizes.layers;
    const size_t vectors = 4 + layers * 11, buffers = 7;
    return qslm_room(1, sizeof(spikegpt)) + qslm_room(layers, sizeof(block)) +
           vectors * qslm_room(width, sizeof(float)) + qslm_state_memory(layers * CARRIED * width * sizeof(float)) +
           buffers * qslm_room(model->chunk * width, sizeof(float)) +
           qslm_room(model->chunk * model->sizes.ffn_width, sizeof(float)) + qslm_linears_memory(model, &NAMES);
}

// ---- sites --------------------------------------------------------------------------------------------------------

// Finds the sites of a block by the ends of their names; the first fault stays.
typedef struct {
    qslm_model *model;
    size_t layer;
    bool failed;
    qslm_error *error;
} finder;

static void name_of(const finder *find, const char *end, char name[64]) {
    qslm_print(name, 64, "blocks.%zu.%s", find->layer, end);
}

static const float *vector(finder *find, const char *end) {
    char name[64];
    if (find->failed) return NULL;
    name_of(find, end, name);
    const float *found = qslm_vector_of(find->model, name, find->model->sizes.width, find->error);
    find->failed = found == NULL;
    return found;
}

static void linear(finder *find, size_t kind, size_t rows, size_t columns) {
    if (find->failed) return;
    find->failed = !qslm_find_linear(find->model, find->layer, kind, rows, columns, find->error);
}

static bool find_block(qslm_model *model, size_t layer, block *one, qslm_error *error) {
    finder find = {model, layer, false, error};
    const size_t width = model->sizes.width, hidden = model->sizes.ffn_width;
    one->ln1 = (norm){vector(&find, "ln1.weight"), vector(&find, "ln1.bias")};
    one->ln2 = (norm){vector(&find, "ln2.weight"), vector(&find, "ln2.bias")};
    float *decay = (float *)vector(&find, "att.time_decay"); // our own copy
    one->decay = decay;
    one->bonus = vector(&find, "att.time_first");
    one->mix_k = vector(&find, "att.time_mix_k");
    one->mix_v = vector(&find, "att.time_mix_v");
    one->mix_r = vector(&find, "att.time_mix_r");
    one->ffn_mix_k = vector(&find, "ffn.time_mix_k");
    one->ffn_mix_r = vector(&find, "ffn.time_mix_r");
    linear(&find, KEY, width, width);
    linear(&find, VALUE, width, width);
    linear(&find, RECEPTANCE, width, width);
    linear(&find, OUTPUT, width, width);
    linear(&find, FFN_KEY, hidden, width);
    linear(&find, FFN_RECEPTANCE, width, width);
    linear(&find, FFN_VALUE, width, hidden);
    for (size_t i = 0; !find.failed && i < width; i++) decay[i] = -qslm_expf(decay[i]);
    return !find.failed;
}

static bool find_norm(qslm_model *model, const char *name, norm *found, qslm_error *error) {
    char full[64];
    qslm_print(full, sizeof full, "%s.weight", name);
    found->weight = qslm_vector_of(model, full, model->sizes.width, error);
    qslm_print(full, sizeof full, "%s.bias", name);
    if (found->weight != NULL) found->bias = qslm_vector_of(model, full, model->sizes.width, error);
    return found->weight != NULL && found->bias != NULL;
}

static bool find_ends(qslm_model *model, spikegpt *network, qslm_error *error) {
    const qslm_sizes *sizes = &model->sizes;
    const char *name = sizes->classes > 0 ? "classifier.weight" : "head.weight";
    const size_t rows = sizes->classes > 0 ? sizes->classes : sizes->vocabulary;
    model->embedding = qslm_matrix_of(model, "emb.weight", sizes->vocabulary, sizes->width, error);
    if (model->embedding == NULL) return false;
    model->readout = qslm_matrix_of(model, name, rows, sizes->width, error);
    if (model->readout == NULL) return false;
    if (model->readout->activations > 0) return qslm_fail(error, "%s reads spike counts.", name);
    if (model->embedding->kind == QSLM_SIGN && !model->binary_embedding) {
        return qslm_fail(error, "emb.weight is stored as signs, but config.json says that the embedding is not binary.");
    }
    return find_norm(model, "blocks.0.ln0", &network->ln0, error) &&
           find_norm(model, "ln_out", &network->ln_out, error);
}

static bool prepare(qslm_model *model, qslm_error *error) {
    const size_t width = model->sizes.width, layers = model->sizes.layers;
    spikegpt *network = qslm_take(model->arena, sizeof *network, error);
    if (network == NULL) return false;
    model->network = network;
    network->blocks = qslm_take(model->arena, layers * sizeof *network->blocks, error);
    if (network->blocks == NULL || !qslm_prepare_linears(model, &NAMES, error)) return false;
    if (!find_ends(model, network, error)) return false;
    for (size_t layer = 0; layer < layers; layer++) {
        if (!find_block(model, layer, &network->blocks[layer], error)) return false;
    }
    float **const buffers[] = {&network->normed,   &network->mixed[0], &network->mixed[1], &network->mixed[2],
                               &network->key,      &network->value,    &network->gate};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        *buffers[i] = qslm_take(model->arena, model->chunk * width * sizeof(float), error);
        if (*buffers[i] == NULL) return false;
    }
    network->hidden = qslm_take(model->arena, model->chunk * model->sizes.ffn_width * sizeof(float), error);
    network->state = qslm_take_state(model, layers * CARRIED * width * sizeof(float), error);
    return network->hidden != NULL && network->state != NULL;
}

static void reset(qslm_model *model) {
    spikegpt *network = model->network;
    const size_t width = model->sizes.width;
    memset(network->state, 0, model->sizes.layers * CARRIED * width * sizeof(float));
    for (size_t layer = 0; layer < model->sizes.layers; layer++) {
        float *exponents = network->state + (layer * CARRIED + WKV + 2) * width;
        for (size_t i = 0; i < width; i++) exponents[i] = EMPTY_EXPONENT;
    }
}

// ---- running ------------------------------------------------------------------------------------------------------

// Tokens (count, width) mixed each with the one before; `last` (width,) stands before the first.
static void mix_tokens(const float *x, const float *last, const float *share, size_t count, size_t width, float *y) {
    for (size_t i = 0; i < count; i++) {
        qslm_mix(x + i * width, i > 0 ? x + (i - 1) * width : last, share, width, y + i * width);
    }
}

static void norm_tokens(const float *x, norm one, size_t count, size_t width, float *y) {
    for (size_t i = 0; i < count; i++) qslm_layer_norm(x + i * width, one.weight, one.bias, width, y + i * width);
}

// Through the neurons of a branch, onto the residual stream. `neuron` counts them from the first block on.
static void fire_tokens(qslm_model *model, const float *current, float *membrane, size_t neuron, size_t count) {
    const size_t width = model->sizes.width, neurons = 2 * model->sizes.layers;
    for (size_t i = 0; i < count; i++) {
        const size_t at = (i * neurons + neuron) * width;
        qslm_fire(current + i * width, membrane, model->forced ? model->forced + at : NULL,
                  model->potentials ? model->potentials + at : NULL, width, model->stream + i * width);
    }
}

static void mix_time(qslm_model *model, const block *one, float *state, size_t layer, size_t count) {
    spikegpt *network = model->network;
    const qslm_linear *linears = qslm_linears_of(model, layer);
    const size_t width = model->sizes.width;
    float *last = state + ATT_INPUT * width, *const *mixed = network->mixed;
    norm_tokens(model->stream, one->ln1, count, width, network->normed);
    mix_tokens(network->normed, last, one->mix_k, count, width, mixed[0]);
    mix_tokens(network->normed, last, one->mix_v, count, width, mixed[1]);
    mix_tokens(network->normed, last, one->mix_r, count, width, mixed[2]);
    const qslm_call calls[] = {{&linears[KEY], mixed[0], network->key},
                               {&linears[VALUE], mixed[1], network->value},
                               {&linears[RECEPTANCE], mixed[2], network->gate}};
    qslm_run_linears(model, calls, 3, count);
    memcpy(last, network->normed + (count - 1) * width, width * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        float *y = mixed[0] + i * width;
        qslm_wkv(one->decay, one->bonus, network->key + i * width, network->value + i * width, state + WKV * width, width,
                 y);
        qslm_gate(network->gate + i * width, y, width, y);
    }
    qslm_run_linear(model, &linears[OUTPUT], mixed[0], count, network->key);
    fire_tokens(model, network->key, state + ATT_MEMBRANE * width, 2 * layer, count);
}

static void mix_channels(qslm_model *model, const block *one, float *state, size_t layer, size_t count) {
    spikegpt *network = model->network;
    const qslm_linear *linears = qslm_linears_of(model, layer);
    const size_t width = model->sizes.width;
    float *last = state + FFN_INPUT * width, *const *mixed = network->mixed;
    norm_tokens(model->stream, one->ln2, count, width, network->normed);
    mix_tokens(network->normed, last, one->ffn_mix_k, count, width, mixed[0]);
    mix_tokens(network->normed, last, one->ffn_mix_r, count, width, mixed[1]);
    const qslm_call calls[] = {{&linears[FFN_KEY], mixed[0], network->hidden},
                               {&linears[FFN_RECEPTANCE], mixed[1], network->gate}};
    qslm_run_linears(model, calls, 2, count);
    qslm_squared_relu(network->hidden, count * model->sizes.ffn_width, network->hidden);
    memcpy(last, network->normed + (count - 1) * width, width * sizeof(float));
    qslm_run_linear(model, &linears[FFN_VALUE], network->hidden, count, network->value);
    qslm_gate(network->gate, network->value, count * width, network->value);
    fire_tokens(model, network->value, state + FFN_MEMBRANE * width, 2 * layer + 1, count);
}

static void embed(qslm_model *model, int32_t id, float *x) {
    qslm_read_row(model->embedding, (size_t)id, x);
    for (size_t i = 0; model->binary_embedding && model->embedding->kind != QSLM_SIGN && i < model->sizes.width; i++) {
        x[i] = x[i] >= 0.0f ? 1.0f : 0.0f;
    }
}

static void run(qslm_model *model, const int32_t *ids, size_t count) {
    spikegpt *network = model->network;
    const size_t width = model->sizes.width;
    for (size_t i = 0; i < count; i++) embed(model, ids[i], model->stream + i * width);
    norm_tokens(model->stream, network->ln0, count, width, model->stream);
    for (size_t layer = 0; layer < model->sizes.layers; layer++) {
        float *state = network->state + layer * CARRIED * width;
        mix_time(model, &network->blocks[layer], state, layer, count);
        mix_channels(model, &network->blocks[layer], state, layer, count);
    }
    norm_tokens(model->stream, network->ln_out, count, width, model->stream);
}

const qslm_graph qslm_spikegpt = {"spikegpt", false, configure, memory, prepare, reset, run};
