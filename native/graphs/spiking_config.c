// The inputs of a conversion, and the layers that share them.
#include "graphs/spiking_config.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "graphs/model_inside.h"

size_t qslm_count_inputs(qslm_bytes config, size_t most) {
    qslm_json json = qslm_json_open((const char *)config.start, config.size, NULL);
    qslm_json_span key;
    size_t count = 0;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (!qslm_json_equals(key, "spiking") || qslm_json_peek(&json) == QSLM_JSON_NULL) {
            qslm_json_skip(&json, NULL);
            continue;
        }
        qslm_json_enter_object(&json);
        while (qslm_json_next_member(&json, &key)) {
            if (!qslm_json_equals(key, "inputs")) {
                qslm_json_skip(&json, NULL);
                continue;
            }
            qslm_json_enter_array(&json);
            for (; qslm_json_next_element(&json); count++) qslm_json_skip(&json, NULL);
        }
    }
    return !qslm_json_close(&json) ? 0 : count < most ? count : most;
}

// ---- an input -----------------------------------------------------------------------------------------------------

bool qslm_read_path(const qslm_linear_names *names, size_t layers, qslm_json_span path, size_t *layer, size_t *kind) {
    size_t at = strlen(names->start);
    if (path.size < at || memcmp(path.text, names->start, at) != 0) return false;
    const size_t digits = at;
    *layer = 0;
    for (; at < path.size && path.text[at] >= '0' && path.text[at] <= '9' && *layer < layers; at++) {
        *layer = 10 * *layer + (size_t)(path.text[at] - '0');
    }
    if (at == digits || at == path.size || path.text[at] != '.' || *layer >= layers) return false;
    const qslm_json_span end = {path.text + at + 1, path.size - at - 1};
    for (*kind = 0; *kind < names->kinds; ++*kind) {
        if (qslm_json_equals(end, names->ends[*kind])) return true;
    }
    return false;
}

static bool name_layers(qslm_model *model, qslm_json json, const qslm_spiking_input *input, qslm_error *error) {
    qslm_json_span path;
    qslm_json_enter_array(&json);
    while (qslm_json_next_element(&json)) {
        if (!qslm_json_string(&json, &path)) return false;
        size_t layer, kind;
        if (!qslm_read_path(model->linears.names, model->sizes.layers, path, &layer, &kind)) {
            return qslm_fail(error, "config.json has spike counts of %.*s, which is no linear layer of a block.",
                             (int)(path.size < 80 ? path.size : 80), path.text);
        }
        qslm_linear *one = &model->linears.all[layer * model->linears.names->kinds + kind];
        if (one->input != NULL) {
            return qslm_fail(error, "config.json has spike counts of %.*s twice.",
                             (int)(path.size < 80 ? path.size : 80), path.text);
        }
        one->input = input;
    }
    return !json.failed;
}

// A saliency from calibration, in place of the threshold.
static bool read_static(qslm_json *json, qslm_spiking_input *input) {
    qslm_json_span key;
    double center = INFINITY, reach = INFINITY;
    if (qslm_json_peek(json) == QSLM_JSON_NULL) return qslm_json_skip(json, NULL);
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "center")) qslm_json_double(json, &center);
        else if (qslm_json_equals(key, "reach")) qslm_json_double(json, &reach);
        else qslm_json_skip(json, NULL);
    }
    if (json->failed) return false;
    if (!(fabs(center) <= FLT_MAX && reach >= 0.0 && reach <= FLT_MAX)) {
        return qslm_json_fail(json, "a static saliency has no center and reach");
    }
    input->is_static = true;
    input->center = (float)center;
    input->reach = (float)reach;
    return true;
}

static bool read_input(qslm_model *model, qslm_json *json, qslm_error *error) {
    qslm_linears *linears = &model->linears;
    if (linears->count == linears->room) return qslm_json_fail(json, "there are too many inputs");
    qslm_spiking_input *input = &linears->inputs[linears->count++];
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
    if (salient_bits < 2 || salient_bits > 8 || !(clip > 0.0 && clip <= 1.0) || !(threshold > 0.0 && threshold < 1e30)) {
        return qslm_json_fail(json, "an input has an encoding that is not one");
    }
    input->salient_bits = (unsigned)salient_bits;
    input->clip = (float)clip;
    input->threshold = (float)(threshold / 0.6745);
    return name_layers(model, layers, input, error);
}

// ---- all of them --------------------------------------------------------------------------------------------------

static bool read_inputs(qslm_model *model, qslm_json *json, qslm_error *error) {
    qslm_json_span key;
    qslm_json_enter_object(json);
    while (qslm_json_next_member(json, &key)) {
        if (qslm_json_equals(key, "cache")) {
            if (!model->graph->limited) return qslm_fail(error, "A network without attention has no KV cache of integers.");
            qslm_json_skip(json, NULL); // cache_config.h reads it
            continue;
        }
        if (!qslm_json_equals(key, "inputs")) return qslm_json_fail(json, "that is not what a conversion writes");
        qslm_json_enter_array(json);
        while (qslm_json_next_element(json)) {
            if (!read_input(model, json, error)) return false;
        }
    }
    return !json->failed;
}

bool qslm_read_spiking(qslm_model *model, qslm_error *error) {
    qslm_json json = qslm_json_open((const char *)model->config.start, model->config.size, error);
    qslm_json_span key;
    qslm_json_enter_object(&json);
    while (qslm_json_next_member(&json, &key)) {
        if (!qslm_json_equals(key, "spiking") || qslm_json_peek(&json) == QSLM_JSON_NULL) qslm_json_skip(&json, NULL);
        else if (!read_inputs(model, &json, error)) return false;
    }
    return qslm_json_close(&json);
}
