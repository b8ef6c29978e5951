// A head is a part of the work: its scores, their softmax, and the mixture of the values.
#include "graphs/attention.h"

#include <math.h>
#include <string.h>

#include "graphs/elementwise.h"
#include "graphs/model_inside.h"

enum { LINE = 64 };

static size_t lines(size_t count, size_t size) {
    return count * size + LINE;
}

static size_t cached(const qslm_model *model, const qslm_heads *heads) {
    return model->sizes.layers * 2 * model->sizes.context * heads->shared_heads * heads->width;
}

size_t qslm_attention_memory(const qslm_model *model, const qslm_heads *heads) {
    const size_t context = model->sizes.context;
    return 2 * lines(context * heads->width / 2, sizeof(float)) + lines(heads->heads * context, sizeof(float)) +
           lines(cached(model, heads), sizeof(float));
}

// The angle of a pair of channels at a position, as PyTorch computes it: in float32.
static void fill_angles(const qslm_attention *attention, double theta, size_t context) {
    const size_t half = attention->heads.width / 2;
    for (size_t i = 0; i < half; i++) {
        const float exponent = (float)(2 * i) / (float)attention->heads.width;
        const float frequency = 1.0f / (float)pow(theta, exponent);
        for (size_t position = 0; position < context; position++) {
            const float angle = (float)position * frequency;
            attention->cosines[position * half + i] = (float)cos(angle);
            attention->sines[position * half + i] = (float)sin(angle);
        }
    }
}

bool qslm_prepare_attention(qslm_model *model, const qslm_heads *heads, double theta, qslm_attention *attention,
                            qslm_error *error) {
    const size_t context = model->sizes.context, angles = context * heads->width / 2 * sizeof(float);
    attention->heads = *heads;
    attention->cosines = qslm_take(model->arena, angles, error);
    attention->sines = qslm_take(model->arena, angles, error);
    attention->scores = qslm_take(model->arena, heads->heads * context * sizeof(float), error);
    attention->cache = qslm_take_state(model, cached(model, heads) * sizeof(float), error);
    if (!attention->cosines || !attention->sines || !attention->scores || !attention->cache) return false;
    fill_angles(attention, theta, context);
    return true;
}

static void turn(const qslm_attention *attention, float *heads, size_t count, size_t position) {
    const size_t width = attention->heads.width, half = width / 2;
    const float *cosine = attention->cosines + position * half, *sine = attention->sines + position * half;
    for (size_t head = 0; head < count; head++, heads += width) {
        for (size_t i = 0; i < half; i++) {
            const float x = heads[i], y = heads[half + i];
            heads[i] = x * cosine[i] - y * sine[i];
            heads[half + i] = y * cosine[i] + x * sine[i];
        }
    }
}

typedef struct {
    const qslm_attention *attention;
    const float *query; // (heads, width) of one token
    const float *keys, *values;
    size_t seen;
    float *y;
} token;

static void attend(void *state, size_t first, size_t last) {
    const token *one = state;
    const qslm_heads *heads = &one->attention->heads;
    const size_t width = heads->width, stride = heads->shared_heads * width;
    const float factor = 1.0f / sqrtf((float)width);
    for (size_t head = first; head < last; head++) {
        const size_t shared = head / (heads->heads / heads->shared_heads) * width;
        float *scores = one->attention->scores + head * one->seen, *y = one->y + head * width;
        for (size_t i = 0; i < one->seen; i++) {
            scores[i] = qslm_dot(one->query + head * width, one->keys + i * stride + shared, width) * factor;
        }
        qslm_softmax(scores, one->seen);
        memset(y, 0, width * sizeof *y);
        for (size_t i = 0; i < one->seen; i++) qslm_add_times(one->values + i * stride + shared, scores[i], width, y);
    }
}

void qslm_attend(qslm_model *model, qslm_attention *attention, size_t layer, size_t position, float *query,
                 const float *key, const float *value, size_t count, float *y) {
    const qslm_heads *heads = &attention->heads;
    const size_t stride = heads->shared_heads * heads->width, wide = heads->heads * heads->width;
    float *keys = attention->cache + layer * 2 * model->sizes.context * stride;
    float *values = keys + model->sizes.context * stride;
    memcpy(keys + position * stride, key, count * stride * sizeof(float));
    memcpy(values + position * stride, value, count * stride * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        turn(attention, keys + (position + i) * stride, heads->shared_heads, position + i);
        turn(attention, query + i * wide, heads->heads, position + i);
        token one = {attention, query + i * wide, keys, values, position + i + 1, y + i * wide};
        qslm_share(one.seen > 128 ? model->threads : NULL, heads->heads, 1, attend, &one);
    }
}
