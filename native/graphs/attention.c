// The queries of some tokens that share a head of keys and values are a part of the work: their scores, the softmax of
// these, and the mixture of the values.
#include "graphs/attention.h"

#include <math.h>
#include <string.h>

#include "graphs/elementwise.h"
#include "graphs/model_inside.h"
#include "graphs/rotary.h"
#include "graphs/scores.h"

enum { LINE = 64, TOGETHER = QSLM_TOGETHER, KEYS = QSLM_KEYS };
enum { TOKENS_TOGETHER = 16 }; // as many have room for their scores

// ---- memory -------------------------------------------------------------------------------------------------------

static size_t lines(size_t count, size_t size) {
    return count * size + LINE;
}

static size_t tiles_of(size_t tokens) {
    return (tokens + KEYS - 1) / KEYS;
}

static size_t cached_keys(const qslm_model *model, const qslm_heads *heads) { // of a layer
    return heads->shared_heads * tiles_of(model->sizes.context) * heads->width * KEYS;
}

static size_t cached_values(const qslm_model *model, const qslm_heads *heads) {
    return heads->shared_heads * model->sizes.context * heads->width;
}

static size_t cached(const qslm_model *model, const qslm_heads *heads) {
    return model->sizes.layers * (cached_keys(model, heads) + cached_values(model, heads));
}

static size_t scores_of(const qslm_model *model, const qslm_heads *heads) {
    const size_t tokens = model->chunk < TOKENS_TOGETHER ? model->chunk : TOKENS_TOGETHER;
    return tokens * heads->heads * tiles_of(model->sizes.context) * KEYS;
}

size_t qslm_attention_memory(const qslm_model *model, const qslm_heads *heads) {
    return 2 * lines(model->sizes.context * heads->width / 2, sizeof(float)) +
           lines(scores_of(model, heads), sizeof(float)) + lines(cached(model, heads), sizeof(float));
}

bool qslm_prepare_attention(qslm_model *model, const qslm_heads *heads, double theta, qslm_attention *attention,
                            qslm_error *error) {
    const size_t context = model->sizes.context, angles = context * heads->width / 2 * sizeof(float);
    attention->heads = *heads;
    attention->cosines = qslm_take(model->arena, angles, error);
    attention->sines = qslm_take(model->arena, angles, error);
    attention->scores = qslm_take(model->arena, scores_of(model, heads) * sizeof(float), error);
    attention->keys = qslm_take_state(model, cached(model, heads) * sizeof(float), error);
    if (!attention->cosines || !attention->sines || !attention->scores || !attention->keys) return false;
    attention->values = attention->keys + model->sizes.layers * cached_keys(model, heads);
    qslm_fill_angles(theta, heads->width, context, attention->cosines, attention->sines);
    return true;
}

// ---- the cache ----------------------------------------------------------------------------------------------------

// Tokens of a layer.
typedef struct {
    const qslm_attention *attention;
    size_t context, position, count;
    float *keys, *values; // of the layer
    float *query, *key;   // (count, heads, width)
    const float *value;
    float *y;
} pass;

static float *tile_at(const pass *one, size_t shared, size_t position) {
    const qslm_heads *heads = &one->attention->heads;
    return one->keys + (shared * tiles_of(one->context) + position / KEYS) * heads->width * KEYS;
}

static float *value_at(const pass *one, size_t shared, size_t position) {
    return one->values + (shared * one->context + position) * one->attention->heads.width;
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

static void turn_and_keep(void *state, size_t first, size_t last) {
    const pass *one = state;
    const qslm_heads *heads = &one->attention->heads;
    const size_t width = heads->width;
    for (size_t i = first; i < last; i++) {
        const size_t position = one->position + i;
        float *key = one->key + i * heads->shared_heads * width;
        turn(one->attention, one->query + i * heads->heads * width, heads->heads, position);
        turn(one->attention, key, heads->shared_heads, position);
        for (size_t shared = 0; shared < heads->shared_heads; shared++) {
            float *column = tile_at(one, shared, position) + position % KEYS;
            for (size_t j = 0; j < width; j++) column[j * KEYS] = key[shared * width + j];
            memcpy(value_at(one, shared, position), one->value + (i * heads->shared_heads + shared) * width,
                   width * sizeof(float));
        }
    }
}

// Tiles that these tokens are the first of: what is not yet there counts as zeros.
static void clear_tiles(const pass *one) {
    const size_t first = tiles_of(one->position) * KEYS, end = one->position + one->count;
    for (size_t position = first; position < end; position += KEYS) {
        for (size_t shared = 0; shared < one->attention->heads.shared_heads; shared++) {
            memset(tile_at(one, shared, position), 0, one->attention->heads.width * KEYS * sizeof(float));
        }
    }
}

// ---- attention ----------------------------------------------------------------------------------------------------

// Queries of a head of keys, by tokens, from the first of the pass on.
typedef struct {
    const float *queries[TOGETHER];
    float *scores[TOGETHER], *y[TOGETHER];
    size_t seen[TOGETHER]; // not falling
    size_t count;
} group;

static size_t group_size(const qslm_heads *heads) {
    return heads->heads / heads->shared_heads;
}

static group group_of(const pass *one, size_t shared, size_t first) {
    const qslm_heads *heads = &one->attention->heads;
    const size_t size = group_size(heads), all = size * one->count, stride = tiles_of(one->context) * KEYS;
    group found = {.count = all - first < TOGETHER ? all - first : TOGETHER};
    for (size_t q = 0; q < found.count; q++) {
        const size_t token = (first + q) / size, head = token * heads->heads + shared * size + (first + q) % size;
        found.queries[q] = one->query + head * heads->width;
        found.y[q] = one->y + head * heads->width;
        found.scores[q] = one->attention->scores + head * stride;
        found.seen[q] = one->position + token + 1;
    }
    return found;
}

static void attend_group(const pass *one, size_t shared, const group *some) {
    const size_t width = one->attention->heads.width, common = some->seen[0], most = some->seen[some->count - 1];
    const float factor = 1.0f / sqrtf((float)width);
    for (size_t position = 0; position < most; position += KEYS) {
        float *scores[TOGETHER];
        for (size_t q = 0; q < some->count; q++) scores[q] = some->scores[q] + position;
        qslm_score(tile_at(one, shared, position), width, factor, some->queries, some->count, scores);
    }
    for (size_t q = 0; q < some->count; q++) {
        qslm_softmax(some->scores[q], some->seen[q]);
        memset(some->y[q], 0, width * sizeof(float));
    }
    qslm_mingle(value_at(one, shared, 0), width, common, (const float *const *)some->scores, some->count, some->y);
    for (size_t q = 0; q < some->count; q++) {
        const float *rest = some->scores[q] + common;
        qslm_mingle(value_at(one, shared, common), width, some->seen[q] - common, &rest, 1, &some->y[q]);
    }
}

static void attend(void *state, size_t first, size_t last) {
    const pass *one = state;
    const qslm_heads *heads = &one->attention->heads;
    const size_t groups = (group_size(heads) * one->count + TOGETHER - 1) / TOGETHER;
    for (size_t part = first; part < last; part++) {
        const size_t shared = part / groups;
        const group some = group_of(one, shared, part % groups * TOGETHER);
        attend_group(one, shared, &some);
    }
}

// A part of the pass, of tokens that have room for their scores.
static void attend_some(const qslm_model *model, const pass *all, size_t first, size_t count) {
    const qslm_heads *heads = &all->attention->heads;
    const size_t wide = heads->heads * heads->width;
    pass one = *all;
    one.position += first;
    one.count = count;
    one.query += first * wide;
    one.y += first * wide;
    const size_t groups = (group_size(heads) * count + TOGETHER - 1) / TOGETHER;
    qslm_share_tokens(model, heads->shared_heads * groups, 2 * TOGETHER * heads->width * (one.position + count), attend,
                      &one);
}

void qslm_attend(qslm_model *model, const qslm_attention *attention, size_t layer, size_t position, float *query,
                 float *key, const float *value, size_t count, float *y) {
    const qslm_heads *heads = &attention->heads;
    pass one = {attention, model->sizes.context, position, count, attention->keys + layer * cached_keys(model, heads),
                attention->values + layer * cached_values(model, heads), query, key, value, y};
    clear_tiles(&one);
    qslm_share_tokens(model, count, (heads->heads + 2 * heads->shared_heads) * heads->width, turn_and_keep, &one);
    for (size_t first = 0; first < count; first += TOKENS_TOGETHER) {
        attend_some(model, &one, first, count - first < TOKENS_TOGETHER ? count - first : TOKENS_TOGETHER);
    }
}
