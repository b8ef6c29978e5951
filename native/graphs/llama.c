// Networks as Llama is built (models/causal.py), as `qslm spike` leaves them or packed without spikes: RMSNorm, RoPE,
// grouped-query attention over a cache of keys and values, SwiGLU.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graphs/elementwise.h"
#include "products/matrix_inside.h"
#include "graphs/model_inside.h"
#include "graphs/spikes.h"

enum { MOST_HEADS = 1024, MOST_LAYERS = 4096, MOST_WORDS = 1 << 24, LINE = 64 };

// The linear layers of a block.
enum { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, LINEARS };
static const char *const LINEAR_NAMES[LINEARS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                  "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                  "mlp.down_proj"};

typedef struct {
    const qslm_matrix *matrix;
    const float *bias; // may be NULL
    const qslm_spiking_input *input;
} linear;

typedef struct {
    linear linears[LINEARS];
    const float *attention_norm, *ffn_norm;
} block;

// What config.json says beside the sizes.
typedef struct {
    size_t heads, shared_heads, head_width;
    float epsilon;
    double theta;
} shape_of;

typedef struct {
    shape_of shape;
    block *blocks;             // (layers,)
    const float *norm;         // the last
    qslm_spiking_input *inputs; // (input_count,)
    size_t input_count;
    float *cosines, *sines;    // (context, head_width / 2)
    float *cache;              // (layers, 2, context, shared_heads * head_width): keys, then values
    float *normed, *attended;  // (chunk, width), (chunk, heads * head_width)
    float *query, *key, *value; // (chunk, heads * head_width), the others (chunk, shared_heads * head_width)
    float *gate, *up;          // (chunk, ffn_width)
    float *scores;             // (heads, context)
    float *row;                // (widest output,): of massive values
    int8_t *massive;           // (chunk, widest)
    unsigned *exponents;       // (chunk,)
    uint32_t *keys;            // (widest,)
} llama;

// ---- config.json --------------------------------------------------------------------------------------------------

typedef struct {
    int64_t words, width, layers, ffn_width, heads, shared_heads, head_width, context;
    double epsilon, theta;
    bool known, plain_rope, silu;
} settings;

static void read_rope(qslm_json *json, settings *all) {
    qslm_json_span key, text;
    if (qslm_json_peek(json) == QSLM_JSON_NULL) {
        qslm_json_skip(json, NULL);
        return;
    }
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "rope_theta")) {
            qslm_json_double(json, &all->theta);
        } else if (qslm_json_equals(key, "rope_type")) {
            if (qslm_json_string(json, &text)) all->plain_rope = qslm_json_equals(text, "default");
        } else {
            qslm_json_skip(json, NULL);
        }
    }
}

static void read_network(qslm_json *json, settings *all) {
    static const char *const names[] = {"vocab_size",          "hidden_size",         "num_hidden_layers", "intermediate_size",
                                        "num_attention_heads", "num_key_value_heads", "head_dim"};
    int64_t *const sizes[] = {&all->words, &all->width,        &all->layers,    &all->ffn_width,
                              &all->heads, &all->shared_heads, &all->head_width};
    qslm_json_span key, text;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        size_t i = 0;
        while (i < sizeof names / sizeof *names && !qslm_json_equals(key, names[i])) i++;
        if (i < sizeof names / sizeof *names && qslm_json_peek(json) != QSLM_JSON_NULL) {
            qslm_json_int64(json, sizes[i]);
        } else if (qslm_json_equals(key, "rms_norm_eps")) {
            qslm_json_double(json, &all->epsilon);
        } else if (qslm_json_equals(key, "rope_parameters")) {
            read_rope(json, all);
        } else if (qslm_json_equals(key, "model_type")) {
            if (qslm_json_string(json, &text)) {
                all->known = qslm_json_equals(text, "llama") || qslm_json_equals(text, "qwen2");
            }
        } else if (qslm_json_equals(key, "hidden_act")) {
            if (qslm_json_string(json, &text)) all->silu = qslm_json_equals(text, "silu");
        } else {
            qslm_json_skip(json, NULL);
        }
    }
}

static bool read_settings(qslm_bytes config, settings *all, qslm_error *error) {
    qslm_json json = qslm_json_open((const char *)config.start, config.size, error);
    qslm_json_span key;
    *all = (settings){.epsilon = 1e-6, .theta = 10000.0, .plain_rope = true, .silu = true};
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (qslm_json_equals(key, "context_length")) qslm_json_int64(&json, &all->context);
        else if (qslm_json_equals(key, "network")) read_network(&json, all);
        else qslm_json_skip(&json, NULL);
    }
    if (!qslm_json_close(&json)) return false;
    if (all->shared_heads == 0) all->shared_heads = all->heads;
    if (all->head_width == 0 && all->heads > 0) all->head_width = all->width / all->heads;
    return true;
}

static bool fits(int64_t size, int64_t most) {
    return size > 0 && size <= most;
}

static bool check_settings(const settings *all, qslm_error *error) {
    if (!all->known) return qslm_fail(error, "The engine runs networks of transformers of the types llama and qwen2 only.");
    if (!all->plain_rope || !all->silu) {
        return qslm_fail(error, "The engine runs rotary embeddings of the default type and the activation silu only.");
    }
    if (!fits(all->words, MOST_WORDS) || !fits(all->width, QSLM_MOST_COLUMNS) || !fits(all->layers, MOST_LAYERS) ||
        !fits(all->ffn_width, QSLM_MOST_COLUMNS) || !fits(all->heads, MOST_HEADS) ||
        !fits(all->shared_heads, all->heads) || !fits(all->head_width, QSLM_MOST_COLUMNS / all->heads) ||
        !fits(all->context, MOST_WORDS) || all->heads % all->shared_heads != 0 || all->head_width % 2 != 0 ||
        !(all->epsilon > 0 && all->epsilon < 1) || !(all->theta > 1 && all->theta < 1e12)) {
        return qslm_fail(error, "config.json has unusable sizes: width %lld, %lld layers, %lld heads of %lld for %lld.",
                         (long long)all->width, (long long)all->layers, (long long)all->heads,
                         (long long)all->head_width, (long long)all->shared_heads);
    }
    return true;
}

static bool configure(qslm_model *model, qslm_bytes config, qslm_error *error) {
    settings all;
    if (!read_settings(config, &all, error) || !check_settings(&all, error)) return false;
    model->sizes = (qslm_sizes){(size_t)all.words,     (size_t)all.width,   (size_t)all.layers,
                                (size_t)all.ffn_width, (size_t)all.context, 0};
    model->widest = (size_t)(all.heads * all.head_width); // it grows to the width and that of the feed-forward part
    return true;
}

static shape_of shape_in(const settings *all) {
    return (shape_of){(size_t)all->heads, (size_t)all->shared_heads, (size_t)all->head_width, (float)all->epsilon,
                      all->theta};
}

static size_t lines(size_t count, size_t size) {
    return count * size + LINE;
}

static size_t memory(const qslm_model *model) {
    settings all;
    if (!read_settings(model->config, &all, NULL)) return 0;
    const qslm_sizes *sizes = &model->sizes;
    const size_t chunk = model->chunk, heads = (size_t)all.heads, wide = heads * (size_t)all.head_width;
    const size_t vectors = (size_t)all.layers * (2 * lines(sizes->width, 4) + 3 * lines(wide, 4) +
                                                 4 * lines(model->widest, 4)) + lines(sizes->width, 4);
    const size_t tables = lines(sizeof(llama), 1) + lines(sizes->layers, sizeof(block)) +
                          lines(sizes->layers * LINEARS, sizeof(qslm_spiking_input)) +
                          lines(sizes->context * wide / heads, 8);
    const size_t buffers = lines(chunk * sizes->width, 4) + 4 * lines(chunk * wide, 4) +
                           2 * lines(chunk * sizes->ffn_width, 4) + lines(heads * sizes->context, 4) +
                           2 * lines(model->widest, 4) + lines(chunk * model->widest, 1) + lines(chunk, 4);
    const size_t shared = (size_t)(all.shared_heads * all.head_width);
    return vectors + tables + buffers + lines(sizes->layers * 2 * sizes->context * shared, 4) + LINE;
}

// ---- sites --------------------------------------------------------------------------------------------------------

static bool find_bias(qslm_model *model, const char *name, size_t rows, const float **bias, qslm_error *error) {
    *bias = NULL;
    if (qslm_find_site(&model->file, name, NULL) == NULL) return true;
    *bias = qslm_vector_of(model, name, rows, error);
    return *bias != NULL;
}

static bool find_linear(qslm_model *model, size_t layer, unsigned which, linear *one, qslm_error *error) {
    const llama *network = model->network;
    const size_t width = model->sizes.width, hidden = model->sizes.ffn_width;
    const size_t wide = network->shape.heads * network->shape.head_width;
    const size_t shared = network->shape.shared_heads * network->shape.head_width;
    const size_t shapes[LINEARS][2] = {{wide, width},   {shared, width}, {shared, width}, {width, wide},
                                       {hidden, width}, {hidden, width}, {width, hidden}};
    char name[96];
    snprintf(name, sizeof name, "network.model.layers.%zu.%s.weight", layer, LINEAR_NAMES[which]);
    one->matrix = qslm_matrix_of(model, name, shapes[which][0], shapes[which][1], error);
    if (one->matrix == NULL) return false;
    if (one->matrix->activations > 0 && one->input == NULL) {
        return qslm_fail(error, "%s reads spike counts, but config.json does not say how they are made.", name);
    }
    snprintf(name, sizeof name, "network.model.layers.%zu.%s.bias", layer, LINEAR_NAMES[which]);
    return find_bias(model, name, shapes[which][0], &one->bias, error);
}

static const float *find_norm(qslm_model *model, size_t layer, const char *end, qslm_error *error) {
    char name[96];
    snprintf(name, sizeof name, "network.model.layers.%zu.%s.weight", layer, end);
    return qslm_vector_of(model, name, model->sizes.width, error);
}

static bool find_block(qslm_model *model, size_t layer, block *one, qslm_error *error) {
    for (unsigned which = 0; which < LINEARS; which++) {
        if (!find_linear(model, layer, which, &one->linears[which], error)) return false;
    }
    one->attention_norm = find_norm(model, layer, "input_layernorm", error);
    if (one->attention_norm == NULL) return false;
    one->ffn_norm = find_norm(model, layer, "post_attention_layernorm", error);
    return one->ffn_norm != NULL;
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

// ---- the spiking inputs -------------------------------------------------------------------------------------------

// Which layer and which linear of it a path such as network.model.layers.3.mlp.up_proj names; NULL where it names none.
static linear *linear_at(const qslm_model *model, qslm_json_span path) {
    const llama *network = model->network;
    static const char start[] = "network.model.layers.";
    size_t at = sizeof start - 1, layer = 0;
    if (path.size < at || memcmp(path.text, start, at) != 0) return NULL;
    const size_t digits = at;
    for (; at < path.size && path.text[at] >= '0' && path.text[at] <= '9' && layer < MOST_LAYERS; at++) {
        layer = 10 * layer + (size_t)(path.text[at] - '0');
    }
    if (at == digits || at == path.size || path.text[at] != '.' || layer >= model->sizes.layers) return NULL;
    const qslm_json_span end = {path.text + at + 1, path.size - at - 1};
    for (unsigned which = 0; which < LINEARS; which++) {
        if (qslm_json_equals(end, LINEAR_NAMES[which])) return &network->blocks[layer].linears[which];
    }
    return NULL;
}

static void read_static(qslm_json *json, qslm_spiking_input *input) {
    qslm_json_span key;
    double center = 0.0, reach = 0.0;
    if (qslm_json_peek(json) == QSLM_JSON_NULL) {
        qslm_json_skip(json, NULL);
        return;
    }
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "center")) qslm_json_double(json, &center);
        else if (qslm_json_equals(key, "reach")) qslm_json_double(json, &reach);
        else qslm_json_skip(json, NULL);
    }
    input->is_static = true;
    input->center = (float)center;
    input->reach = (float)reach;
}

static bool name_layers(qslm_model *model, qslm_json json, const qslm_spiking_input *input, qslm_error *error) {
    qslm_json_span path;
    qslm_json_enter_array(&json);
    while (qslm_json_next_element(&json)) {
        if (!qslm_json_string(&json, &path)) return false;
        linear *one = linear_at(model, path);
        if (one == NULL) {
            return qslm_fail(error, "config.json has spike counts of %.*s, which is no linear layer of a block.",
                             (int)(path.size < 80 ? path.size : 80), path.text);
        }
        one->input = input;
    }
    return !json.failed;
}

static bool read_input(qslm_model *model, qslm_json *json, qslm_error *error) {
    llama *network = model->network;
    if (network->input_count == model->sizes.layers * LINEARS) return qslm_json_fail(json, "there are too many inputs");
    qslm_spiking_input *input = &network->inputs[network->input_count++];
    qslm_json layers = *json;
    qslm_json_span key;
    int64_t salient_bits = 8;
    double clip = 1.0, threshold = 3.5;
    *input = (qslm_spiking_input){0};
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "salient_bits")) qslm_json_int64(json, &salient_bits);
        else if (qslm_json_equals(key, "clip")) qslm_json_double(json, &clip);
        else if (qslm_json_equals(key, "threshold")) qslm_json_double(json, &threshold);
        else if (qslm_json_equals(key, "static")) read_static(json, input);
        else {
            if (qslm_json_equals(key, "layers")) layers = *json;
            qslm_json_skip(json, NULL);
        }
    }
    if (json->failed) return false;
    if (salient_bits < 2 || salient_bits > 8 || !(clip > 0.0 && clip <= 1.0) || !(threshold > 0.0)) {
        return qslm_json_fail(json, "an input has an encoding that is not one");
    }
    input->salient_bits = (unsigned)salient_bits;
    input->clip = (float)clip;
    input->threshold = (float)(threshold / 0.6745);
    return name_layers(model, layers, input, error);
}

static bool read_inputs(qslm_model *model, qslm_json *json, qslm_error *error) {
    qslm_json_span key;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (!qslm_json_equals(key, "inputs")) return qslm_fail(error, "The engine does not run a KV cache of integers.");
        qslm_json_enter_array(json);
        while (qslm_json_next_element(json)) {
            if (!read_input(model, json, error)) return false;
        }
    }
    return !json->failed;
}

static bool read_spiking(qslm_model *model, qslm_error *error) {
    qslm_json json = qslm_json_open((const char *)model->config.start, model->config.size, error);
    qslm_json_span key;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (!qslm_json_equals(key, "spiking")) qslm_json_skip(&json, NULL);
        else if (!read_inputs(model, &json, error)) return false;
    }
    return qslm_json_close(&json);
}

// ---- memory -------------------------------------------------------------------------------------------------------

// The angle of a pair of channels at a position, as PyTorch computes it: in float32.
static void fill_angles(llama *network, size_t context) {
    const size_t half = network->shape.head_width / 2;
    for (size_t i = 0; i < half; i++) {
        const float exponent = (float)(2 * i) / (float)network->shape.head_width;
        const float frequency = 1.0f / (float)pow(network->shape.theta, exponent);
        for (size_t position = 0; position < context; position++) {
            const float angle = (float)position * frequency;
            network->cosines[position * half + i] = (float)cos(angle);
            network->sines[position * half + i] = (float)sin(angle);
        }
    }
}

static bool take_buffers(qslm_model *model, llama *network, qslm_error *error) {
    const qslm_sizes *sizes = &model->sizes;
    const size_t chunk = model->chunk, wide = network->shape.heads * network->shape.head_width;
    const size_t shared = network->shape.shared_heads * network->shape.head_width;
    const size_t angles = sizes->context * network->shape.head_width / 2;
    const struct {
        void **to;
        size_t bytes;
    } buffers[] = {
        {(void **)&network->normed, chunk * sizes->width * 4}, {(void **)&network->attended, chunk * wide * 4},
        {(void **)&network->query, chunk * wide * 4},          {(void **)&network->key, chunk * shared * 4},
        {(void **)&network->value, chunk * shared * 4},        {(void **)&network->gate, chunk * sizes->ffn_width * 4},
        {(void **)&network->up, chunk * sizes->ffn_width * 4}, {(void **)&network->row, model->widest * 4},
        {(void **)&network->scores, network->shape.heads * sizes->context * 4},
        {(void **)&network->massive, chunk * model->widest},   {(void **)&network->exponents, chunk * 4},
        {(void **)&network->keys, model->widest * 4},          {(void **)&network->cosines, angles * 4},
        {(void **)&network->sines, angles * 4},
    };
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        *buffers[i].to = qslm_take(model->arena, buffers[i].bytes, error);
        if (*buffers[i].to == NULL) return false;
    }
    network->cache = qslm_take_state(model, sizes->layers * 2 * sizes->context * shared * 4, error);
    return network->cache != NULL;
}

static bool prepare(qslm_model *model, qslm_error *error) {
    const size_t layers = model->sizes.layers;
    settings all;
    llama *network = qslm_take(model->arena, sizeof *network, error);
    if (network == NULL || !read_settings(model->config, &all, error)) return false;
    *network = (llama){.shape = shape_in(&all)};
    model->network = network;
    network->blocks = qslm_take(model->arena, layers * sizeof *network->blocks, error);
    network->inputs = qslm_take(model->arena, layers * LINEARS * sizeof *network->inputs, error);
    if (network->blocks == NULL || network->inputs == NULL) return false;
    memset(network->blocks, 0, layers * sizeof *network->blocks);
    if (!read_spiking(model, error) || !find_ends(model, network, error)) return false;
    for (size_t layer = 0; layer < layers; layer++) {
        if (!find_block(model, layer, &network->blocks[layer], error)) return false;
    }
    if (!take_buffers(model, network, error)) return false;
    fill_angles(network, model->sizes.context);
    return true;
}

static void reset(qslm_model *model) {
    (void)model; // the cache is read up to the tokens that were seen
}

// ---- linear layers ------------------------------------------------------------------------------------------------

// Spike counts of `count` tokens into the model's codes, and massive ones beside them.
static void encode(qslm_model *model, const linear *one, const float *x, size_t count, size_t stride) {
    llama *network = model->network;
    const size_t columns = one->matrix->columns;
    for (size_t i = 0; i < count; i++) {
        model->scales[i] =
            qslm_encode_spikes(one->input, one->matrix->activations, x + i * columns, columns, stride, network->keys,
                               model->codes + i * stride, network->massive + i * stride, &network->exponents[i]);
    }
}

// Massive values count 2^e steps: a product of their own, of the tokens that have any.
static void add_massive(qslm_model *model, const qslm_matrix *matrix, size_t count, size_t stride, float *y) {
    llama *network = model->network;
    for (size_t i = 0; i < count; i++) {
        if (network->exponents[i] == 0) continue;
        const float scale = model->scales[i] * (float)(1u << network->exponents[i]);
        const qslm_tokens token = {network->massive + i * stride, stride, &scale, 1};
        qslm_multiply(matrix, &token, NULL, network->row, model->threads);
        for (size_t row = 0; row < matrix->rows; row++) y[i * matrix->rows + row] += network->row[row];
    }
}

static void add_bias(const linear *one, size_t count, float *y) {
    const size_t rows = one->matrix->rows;
    for (size_t i = 0; one->bias != NULL && i < count; i++) {
        for (size_t row = 0; row < rows; row++) y[i * rows + row] += one->bias[row];
    }
}

// Several layers that read x (count, columns): it is rounded or encoded once where they read it alike.
static void run_linears(qslm_model *model, const linear *ones, size_t layers, const float *x, size_t count, float **y) {
    const linear *before = NULL;
    for (size_t i = 0; i < layers; i++) {
        const linear *one = &ones[i];
        const size_t stride = (one->matrix->columns + LINE - 1) / LINE * LINE;
        const unsigned bits = one->matrix->activations;
        if (bits == 0) {
            qslm_linear(model, one->matrix, x, count, y[i]);
            before = NULL;
        } else {
            const bool again = before != NULL && before->input == one->input && before->matrix->activations == bits;
            if (!again) encode(model, one, x, count, stride);
            const qslm_tokens tokens = {model->codes, stride, model->scales, count};
            qslm_multiply(one->matrix, &tokens, NULL, y[i], model->threads);
            add_massive(model, one->matrix, count, stride, y[i]);
            before = one;
        }
        add_bias(one, count, y[i]);
    }
}

// ---- attention ----------------------------------------------------------------------------------------------------

static void turn(const llama *network, float *heads, size_t count, size_t position) {
    const size_t width = network->shape.head_width, half = width / 2;
    const float *cosine = network->cosines + position * half, *sine = network->sines + position * half;
    for (size_t head = 0; head < count; head++, heads += width) {
        for (size_t i = 0; i < half; i++) {
            const float x = heads[i], y = heads[half + i];
            heads[i] = x * cosine[i] - y * sine[i];
            heads[half + i] = y * cosine[i] + x * sine[i];
        }
    }
}

typedef struct {
    const llama *network;
    const float *query; // (heads, head_width) of one token
    const float *keys, *values;
    size_t seen;
    float *y;
} attention;

static void attend(void *state, size_t first, size_t last) {
    const attention *one = state;
    const shape_of *shape = &one->network->shape;
    const size_t width = shape->head_width, stride = shape->shared_heads * width;
    const float factor = 1.0f / sqrtf((float)width);
    for (size_t head = first; head < last; head++) {
        const size_t shared = head / (shape->heads / shape->shared_heads) * width;
        float *scores = one->network->scores + head * one->seen, *y = one->y + head * width;
        for (size_t i = 0; i < one->seen; i++) {
            scores[i] = qslm_dot(one->query + head * width, one->keys + i * stride + shared, width) * factor;
        }
        qslm_softmax(scores, one->seen);
        memset(y, 0, width * sizeof *y);
        for (size_t i = 0; i < one->seen; i++) qslm_add_times(one->values + i * stride + shared, scores[i], width, y);
    }
}

static void attend_tokens(qslm_model *model, size_t layer, size_t count, size_t position) {
    llama *network = model->network;
    const shape_of *shape = &network->shape;
    const size_t stride = shape->shared_heads * shape->head_width, wide = shape->heads * shape->head_width;
    float *keys = network->cache + layer * 2 * model->sizes.context * stride;
    float *values = keys + model->sizes.context * stride;
    memcpy(keys + position * stride, network->key, count * stride * sizeof(float));
    memcpy(values + position * stride, network->value, count * stride * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        turn(network, keys + (position + i) * stride, shape->shared_heads, position + i);
        turn(network, network->query + i * wide, shape->heads, position + i);
        attention one = {network, network->query + i * wide, keys, values, position + i + 1, network->attended + i * wide};
        qslm_share(one.seen > 128 ? model->threads : NULL, shape->heads, 1, attend, &one);
    }
}

// ---- blocks -------------------------------------------------------------------------------------------------------

static void norm_tokens(const qslm_model *model, const float *weight, size_t count, float *y) {
    const llama *network = model->network;
    const size_t width = model->sizes.width;
    for (size_t i = 0; i < count; i++) {
        qslm_rms_norm(model->stream + i * width, weight, network->shape.epsilon, width, y + i * width);
    }
}

// A branch of the residual stream: linears[which] of x onto it.
static void add_branch(qslm_model *model, const linear *one, const float *x, size_t count) {
    llama *network = model->network;
    float *y = network->normed;
    run_linears(model, one, 1, x, count, &y);
    for (size_t i = 0; i < count * model->sizes.width; i++) model->stream[i] += y[i];
}

static void run_block(qslm_model *model, size_t layer, size_t count, size_t position) {
    llama *network = model->network;
    const block *one = &network->blocks[layer];
    norm_tokens(model, one->attention_norm, count, network->normed);
    run_linears(model, &one->linears[QUERY], 3, network->normed, count,
                (float *[]){network->query, network->key, network->value});
    attend_tokens(model, layer, count, position);
    add_branch(model, &one->linears[OUTPUT], network->attended, count);
    norm_tokens(model, one->ffn_norm, count, network->normed);
    run_linears(model, &one->linears[GATE], 2, network->normed, count, (float *[]){network->gate, network->up});
    const size_t hidden = count * model->sizes.ffn_width;
    for (size_t i = 0; i < hidden; i++) network->up[i] *= network->gate[i];
    qslm_gate(network->gate, network->up, hidden, network->up);
    add_branch(model, &one->linears[DOWN], network->up, count);
}

static void run(qslm_model *model, const int32_t *ids, size_t count) {
    const llama *network = model->network;
    const size_t position = qslm_tokens_seen(model);
    for (size_t i = 0; i < count; i++) {
        qslm_read_row(model->embedding, (size_t)ids[i], model->stream + i * model->sizes.width);
    }
    for (size_t layer = 0; layer < model->sizes.layers; layer++) run_block(model, layer, count, position);
    norm_tokens(model, network->norm, count, model->stream);
}

const qslm_graph qslm_llama = {"transformers", true, configure, memory, prepare, reset, run};
