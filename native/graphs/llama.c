// Networks as Llama is built (models/causal.py), as `qslm spike` leaves them or packed without spikes: RMSNorm, RoPE,
// grouped-query attention over a cache of keys and values, SwiGLU.
#include "graphs/llama.h"

#include <string.h>

#include "graphs/elementwise.h"
#include "system/print.h"

enum { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, LINEARS };
static const qslm_linear_names NAMES = {
    "network.model.layers.",
    LINEARS,
    {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
     "mlp.down_proj"}};

typedef struct {
    const float *attention, *ffn;
} norms;

typedef struct {
    qslm_llama_shape shape;
    norms *norms;               // (layers,)
    const float *norm;          // the last
    qslm_attention attention;
    float *normed, *attended;   // (chunk, width), (chunk, heads * head width)
    float *query, *key, *value; // (chunk, heads * head width), the others (chunk, shared_heads * head width)
    float *gate, *up;           // (chunk, ffn_width)
} llama;

static size_t memory(const qslm_model *model) {
    const qslm_sizes *sizes = &model->sizes;
    const qslm_heads heads = qslm_shape_of_llama(model->config).heads;
    const size_t chunk = model->chunk, wide = heads.heads * heads.width;
    const size_t vectors = sizes->layers * (2 * qslm_room(sizes->width, 4) + LINEARS * qslm_room(model->widest, 4)) +
                           qslm_room(sizes->width, 4);
    const size_t tables = qslm_room(sizeof(llama), 1) + qslm_room(sizes->layers, sizeof(norms));
    const size_t buffers =
        qslm_room(chunk * sizes->width, 4) + 4 * qslm_room(chunk * wide, 4) + 2 * qslm_room(chunk * sizes->ffn_width, 4);
    return vectors + tables + buffers + qslm_linears_memory(model, &NAMES) + qslm_attention_memory(model, &heads);
}

// ---- sites --------------------------------------------------------------------------------------------------------

static bool find_linears(qslm_model *model, size_t layer, qslm_error *error) {
    const qslm_heads *heads = &((llama *)model->network)->shape.heads;
    const size_t width = model->sizes.width, hidden = model->sizes.ffn_width;
    const size_t wide = heads->heads * heads->width, shared = heads->shared_heads * heads->width;
    const size_t shapes[LINEARS][2] = {{wide, width},   {shared, width}, {shared, width}, {width, wide},
                                       {hidden, width}, {hidden, width}, {width, hidden}};
    for (size_t kind = 0; kind < LINEARS; kind++) {
        if (!qslm_find_linear(model, layer, kind, shapes[kind][0], shapes[kind][1], error)) return false;
    }
    return true;
}

static const float *find_norm(qslm_model *model, size_t layer, const char *end, qslm_error *error) {
    char name[96];
    qslm_print(name, sizeof name, "%s%zu.%s.weight", NAMES.start, layer, end);
    return qslm_vector_of(model, name, model->sizes.width, error);
}

static bool find_block(qslm_model *model, size_t layer, norms *one, qslm_error *error) {
    if (!find_linears(model, layer, error)) return false;
    one->attention = find_norm(model, layer, "input_layernorm", error);
    if (one->attention == NULL) return false;
    one->ffn = find_norm(model, layer, "post_attention_layernorm", error);
    return one->ffn != NULL;
}

static bool find_ends(qslm_model *model, llama *network, qslm_error *error) {
    const size_t words = model->sizes.vocabulary, width = model->sizes.width;
    model->embedding = qslm_matrix_of(model, "network.model.embed_tokens.weight", words, width, error);
    if (model->embedding == NULL) return false;
    model->readout = qslm_matrix_of(model, "network.lm_head.weight", words, width, error);
    if (model->readout == NULL) return false;
    if (model->readout->activations > 0) return qslm_fail(error, "network.lm_head.weight reads spike counts.");
    network->norm = qslm_vector_of(model, "network.model.norm.weight", width, error);
    return network->norm != NULL;
}

static bool take_buffers(qslm_model *model, llama *network, qslm_error *error) {
    const qslm_heads *heads = &network->shape.heads;
    const size_t wide = heads->heads * heads->width, shared = heads->shared_heads * heads->width;
    const struct {
        float **to;
        size_t width;
    } buffers[] = {
        {&network->normed, model->sizes.width}, {&network->attended, wide},
        {&network->query, wide},                {&network->key, shared},
        {&network->value, shared},              {&network->gate, model->sizes.ffn_width},
        {&network->up, model->sizes.ffn_width},
    };
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        *buffers[i].to = qslm_take(model->arena, model->chunk * buffers[i].width * sizeof(float), error);
        if (*buffers[i].to == NULL) return false;
    }
    return true;
}

// A cache of integers holds what layers of values fire, which they do of spike counts.
static bool check_values(const qslm_model *model, const qslm_attention *attention, qslm_error *error) {
    for (size_t layer = 0; attention->cache.bits > 0 && layer < model->sizes.layers; layer++) {
        if (qslm_linears_of(model, layer)[VALUE].matrix->activations == 0) {
            return qslm_fail(error, "The KV cache is of integers, but the values of layer %zu are not of spike counts.", layer);
        }
    }
    return true;
}

static bool prepare(qslm_model *model, qslm_error *error) {
    const size_t layers = model->sizes.layers;
    llama *network = qslm_take(model->arena, sizeof *network, error);
    if (network == NULL) return false;
    *network = (llama){.shape = qslm_shape_of_llama(model->config)};
    model->network = network;
    network->norms = qslm_take(model->arena, layers * sizeof *network->norms, error);
    if (network->norms == NULL || !qslm_prepare_linears(model, &NAMES, error)) return false;
    if (!find_ends(model, network, error)) return false;
    for (size_t layer = 0; layer < layers; layer++) {
        if (!find_block(model, layer, &network->norms[layer], error)) return false;
    }
    const qslm_llama_shape *shape = &network->shape;
    return take_buffers(model, network, error) &&
           qslm_prepare_attention(model, &shape->heads, shape->theta, &network->attention, error) &&
           check_values(model, &network->attention, error);
}

static void reset(qslm_model *model) {
    (void)model; // the cache is read up to the tokens that were seen
}

// ---- running ------------------------------------------------------------------------------------------------------

typedef struct {
    const qslm_model *model;
    const float *weight;
    float *y;
} step; // of some tokens

static void norm_some(void *state, size_t first, size_t last) {
    const step *one = state;
    const size_t width = one->model->sizes.width;
    const float epsilon = ((const llama *)one->model->network)->shape.epsilon;
    for (size_t i = first; i < last; i++) {
        qslm_rms_norm(one->model->stream + i * width, one->weight, epsilon, width, one->y + i * width);
    }
}

static void norm_tokens(const qslm_model *model, const float *weight, size_t count, float *y) {
    step one = {model, weight, y};
    qslm_share_tokens(model, count, 4 * model->sizes.width, norm_some, &one);
}

static void gate_some(void *state, size_t first, size_t last) {
    const step *one = state;
    const llama *network = one->model->network;
    const size_t width = one->model->sizes.ffn_width;
    qslm_silu(network->gate + first * width, (last - first) * width, network->up + first * width);
}

static void gate_tokens(const qslm_model *model, size_t count) {
    step one = {.model = model};
    qslm_share_tokens(model, count, 8 * model->sizes.ffn_width, gate_some, &one);
}

// A branch of the residual stream: a layer of x onto it.
static void add_branch(qslm_model *model, const qslm_linear *one, const float *x, size_t count) {
    llama *network = model->network;
    qslm_run_linear(model, one, x, count, network->normed);
    qslm_add(network->normed, count * model->sizes.width, model->stream);
}

static void run_block(qslm_model *model, size_t layer, size_t count, size_t position) {
    llama *network = model->network;
    const qslm_linear *linears = qslm_linears_of(model, layer);
    const norms *one = &network->norms[layer];
    norm_tokens(model, one->attention, count, network->normed);
    const qslm_call attention[] = {{&linears[QUERY], network->normed, network->query},
                                   {&linears[KEY], network->normed, network->key},
                                   {&linears[VALUE], network->normed, network->value}};
    qslm_run_linears(model, attention, 3, count);
    qslm_attend(model, &network->attention, layer, position, network->query, network->key, network->value, count,
                network->attended);
    add_branch(model, &linears[OUTPUT], network->attended, count);
    norm_tokens(model, one->ffn, count, network->normed);
    const qslm_call ffn[] = {{&linears[GATE], network->normed, network->gate}, {&linears[UP], network->normed, network->up}};
    qslm_run_linears(model, ffn, 2, count);
    gate_tokens(model, count);
    add_branch(model, &linears[DOWN], network->up, count);
}

static void run(qslm_model *model, const int32_t *ids, size_t count) {
    const llama *network = model->network;
    const size_t position = qslm_tokens_seen(model), width = model->sizes.width;
    for (size_t i = 0; i < count; i++) qslm_read_row(model->embedding, (size_t)ids[i], model->stream + i * width);
    qslm_find_angles(&network->attention, position, count);
    for (size_t layer = 0; layer < model->sizes.layers; layer++) run_block(model, layer, count, position);
    norm_tokens(model, network->norm, count, model->stream);
}

const qslm_graph qslm_llama = {"transformers", true, qslm_configure_llama, memory, prepare, reset, run};
