// The steps of values, by the paths of their layers.
#include "graphs/cache_config.h"

#include <float.h>
#include <string.h>

#include "graphs/model_inside.h"
#include "graphs/spiking_config.h"

// The number of a layer by the path of its values, network.model.layers.3.self_attn.v_proj; `layers` where it is none.
static size_t layer_of(const qslm_model *model, qslm_json_span path) {
    const qslm_linear_names *names = model->linears.names;
    size_t layer, kind;
    const bool found = qslm_read_path(names, model->sizes.layers, path, &layer, &kind);
    return found && strcmp(names->ends[kind], "self_attn.v_proj") == 0 ? layer : model->sizes.layers;
}

static bool read_layer(qslm_json *json, size_t heads, float *steps) {
    size_t count = 0;
    qslm_json_enter_array(json);
    while (qslm_json_next_element(json)) {
        double step = 0.0;
        if (!qslm_json_double(json, &step)) return false;
        if (!(step >= FLT_MIN && step <= FLT_MAX)) return qslm_json_fail(json, "a step of values is not above 0");
        if (count < heads) steps[count] = (float)step;
        count++;
    }
    return count == heads || qslm_json_fail(json, "there is not one step of values for each head");
}

static bool read_steps(const qslm_model *model, qslm_json *json, size_t heads, float *steps) {
    const size_t layers = model->sizes.layers;
    qslm_json_span path;
    memset(steps, 0, layers * heads * sizeof *steps);
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &path)) {
        const size_t layer = layer_of(model, path);
        if (layer == layers) return qslm_json_fail(json, "there are steps of what is no layer of values");
        if (!read_layer(json, heads, steps + layer * heads)) return false;
    }
    for (size_t layer = 0; layer < layers; layer++) {
        if (!json->failed && steps[layer * heads] == 0.0f) return qslm_json_fail(json, "a layer of values has no steps");
    }
    return !json->failed;
}

static bool read_form(const qslm_model *model, qslm_json *json, size_t heads, qslm_cache_form *form, float *steps) {
    qslm_json_span key;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "bits")) {
            qslm_json_int64(json, &form->bits);
        } else if (qslm_json_equals(key, "steps")) {
            form->has_steps = qslm_json_peek(json) != QSLM_JSON_NULL;
            if (!form->has_steps || steps == NULL) qslm_json_skip(json, NULL);
            else if (!read_steps(model, json, heads, steps)) return false;
        } else {
            return qslm_json_fail(json, "a cache has bits and steps only");
        }
    }
    if (json->failed) return false;
    return (form->bits >= 2 && form->bits <= 8) || qslm_json_fail(json, "a KV cache has 2 to 8 bits");
}

bool qslm_read_cache(const qslm_model *model, size_t heads, qslm_cache_form *form, float *steps, qslm_error *error) {
    qslm_json json = qslm_json_open((const char *)model->config.start, model->config.size, error);
    qslm_json_span key;
    *form = (qslm_cache_form){0, false};
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (!qslm_json_equals(key, "spiking") || qslm_json_peek(&json) == QSLM_JSON_NULL) {
            qslm_json_skip(&json, NULL);
            continue;
        }
        qslm_json_enter_object(&json);
        while (qslm_json_next_member(&json, &key)) {
            if (!qslm_json_equals(key, "cache")) qslm_json_skip(&json, NULL);
            else if (!read_form(model, &json, heads, form, steps)) return false;
        }
    }
    return qslm_json_close(&json);
}
