// config.json of networks as Llama: sizes, and what is refused.
#include "graphs/llama.h"

enum { MOST_HEADS = 1024, MOST_LAYERS = 4096, MOST_WORDS = 1 << 24 };

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

static bool check_settings(const settings *all, qslm_error *error) {
    if (!all->known) return qslm_fail(error, "The engine runs networks of transformers of the types llama and qwen2 only.");
    if (!all->plain_rope || !all->silu) {
        return qslm_fail(error, "The engine runs rotary embeddings of the default type and the activation silu only.");
    }
    const qslm_limit limits[] = {{"vocab_size", all->words, MOST_WORDS},
                                 {"hidden_size", all->width, QSLM_MOST_COLUMNS},
                                 {"num_hidden_layers", all->layers, MOST_LAYERS},
                                 {"intermediate_size", all->ffn_width, QSLM_MOST_COLUMNS},
                                 {"context_length", all->context, MOST_WORDS},
                                 {"num_attention_heads", all->heads, MOST_HEADS},
                                 {"num_key_value_heads", all->shared_heads, all->heads},
                                 {"head_dim", all->head_width, all->heads > 0 ? QSLM_MOST_COLUMNS / all->heads : 0}};
    if (!qslm_check_limits(limits, sizeof limits / sizeof *limits, error)) return false;
    if (all->heads % all->shared_heads != 0 || all->head_width % 2 != 0) {
        return qslm_fail(error, "config.json has %lld heads of %lld for %lld, which do not share out, or are odd.",
                         (long long)all->heads, (long long)all->head_width, (long long)all->shared_heads);
    }
    if (!(all->epsilon > 0 && all->epsilon < 1) || !(all->theta > 1 && all->theta < 1e12)) {
        return qslm_fail(error, "config.json has an unusable rms_norm_eps, none of 0 to 1, or rope_theta, none of 1 to 1e12.");
    }
    return true;
}

bool qslm_configure_llama(qslm_model *model, qslm_bytes config, qslm_error *error) {
    settings all;
    if (!read_settings(config, &all, error) || !check_settings(&all, error)) return false;
    model->sizes = (qslm_sizes){(size_t)all.words,     (size_t)all.width,   (size_t)all.layers,
                                (size_t)all.ffn_width, (size_t)all.context, 0};
    model->widest = (size_t)(all.heads * all.head_width); // it grows to the width and that of the feed-forward part
    return true;
}

qslm_llama_shape qslm_shape_of_llama(qslm_bytes config) {
    settings all;
    if (!read_settings(config, &all, NULL)) return (qslm_llama_shape){0};
    const qslm_heads heads = {(size_t)all.heads, (size_t)all.shared_heads, (size_t)all.head_width};
    return (qslm_llama_shape){heads, (float)all.epsilon, all.theta};
}
