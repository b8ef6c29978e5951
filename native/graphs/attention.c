// The queries of some tokens that share a head of keys and values are a part of the work: their scores, the softmax of
// these, and the mixture of the values.
#include "graphs/attention.h"

#include <math.h>
#include <string.h>

#include "graphs/elementwise.h"
#include "graphs/model_inside.h"
#include "graphs/rotary.h"
#include "graphs/scores.h"

enum { TOGETHER = QSLM_TOGETHER, KEYS = QSLM_KEYS };
enum { TOKENS_TOGETHER = 16 }; // as many have room for their scores

// ---- memory -------------------------------------------------------------------------------------------------------

static size_t tiles_of(size_t tokens) {
    return (tokens + KEYS - 1) / KEYS;
}

static size_t together(const qslm_model *model) {
    return model->chunk < TOKENS_TOGETHER ? model->chunk : TOKENS_TOGETHER;
}

static size_t group_size(const qslm_heads *heads) {
    return heads->heads / heads->shared_heads;
}

// Groups of queries of as many tokens that share a head of keys.
static size_t groups_of(const qslm_heads *heads, size_t tokens) {
    return (group_size(heads) * tokens + TOGETHER - 1) / TOGETHER;
}

static size_t scores_of(const qslm_model *model, const qslm_heads *heads) {
    return together(model) * heads->heads * tiles_of(model->sizes.context) * KEYS;
}

static size_t scratch_of(const qslm_model *model, const qslm_heads *heads) {
    return heads->shared_heads * groups_of(heads, together(model)) * heads->width * KEYS;
}

size_t qslm_attention_memory(const qslm_model *model, const qslm_heads *heads) {
    return 2 * qslm_room(model->chunk * heads->width / 2, sizeof(float)) + qslm_room(heads->width / 2, sizeof(float)) +
           qslm_room(scores_of(model, heads), sizeof(float)) + qslm_room(scratch_of(model, heads), sizeof(float)) +
           qslm_cache_memory(model, heads->shared_heads, heads->width);
}

bool qslm_prepare_attention(qslm_model *model, const qslm_heads *heads, double theta, qslm_attention *attention,
                            qslm_error *error) {
    const size_t half = heads->width / 2 * sizeof(float), angles = model->chunk * half;
    attention->heads = *heads;
    if (!qslm_prepare_cache(model, heads->shared_heads, heads->width, &attention->cache, error)) return false;
    attention->frequencies = qslm_take(model->arena, half, error);
    attention->cosines = qslm_take(model->arena, angles, error);
    attention->sines = qslm_take(model->arena, angles, error);
    attention->scores = qslm_take(model->arena, scores_of(model, heads) * sizeof(float), error);
    attention->scratch = NULL;
    if (attention->cache.bits > 0) {
        attention->scratch = qslm_take(model->arena, scratch_of(model, heads) * sizeof(float), error);
        if (attention->scratch == NULL) return false;
    }
    if (!attention->frequencies || !attention->cosines || !attention->sines || !attention->scores) return false;
    qslm_fill_frequencies(theta, heads->width, attention->frequencies);
    return true;
}

void qslm_find_angles(const qslm_attention *attention, size_t position, size_t count) {
    qslm_fill_angles(attention->frequencies, attention->heads.width / 2, position, count, attention->cosines,
                     attention->sines);
}

// ---- the cache ----------------------------------------------------------------------------------------------------

// Tokens of a layer.
typedef struct {
    const qslm_attention *attention;
    size_t layer, context, position, count;
    float *query, *key; // (count, heads, width)
    const float *value;
    float *y;
} pass;

static void turn(const qslm_attention *attention, float *heads, size_t count, size_t token) {
    const size_t width = attention->heads.width, half = width / 2;
    const float *cosine = attention->cosines + token * half, *sine = attention->sines + token * half;
    for (size_t head = 0; head < count; head++, heads += width) {
        for (size_t i = 0; i < half; i++) {
            const float x = heads[i], y = heads[half + i];
            heads[i] = x * cosine[i] - y * sine[i];
            heads[half + i] = y * cosine[i] + x * sine[i];
        }
    }
}

// The queries, the key and the value of a head of keys.
static void turn_and_keep(const pass *one, size_t shared, size_t token) {
    const qslm_attention *attention = one->attention;
    const qslm_heads *heads = &attention->heads;
    const size_t position = one->position + token, size = group_size(heads), width = heads->width;
    const size_t at = (token * heads->shared_heads + shared) * width;
    float *queries = one->query + (token * heads->heads + shared * size) * width;
    turn(attention, queries, size, token);
    turn(attention, one->key + at, 1, token);
    for (size_t i = 0; attention->cache.bits > 0 && i < size; i++) { // as the cache turns its keys
        qslm_rotate(&attention->cache.rotation, queries + i * width);
    }
    qslm_keep(&attention->cache, one->layer, shared, position, one->key + at, one->value + at);
}

static void keep(void *state, size_t first, size_t last) {
    const pass *one = state;
    for (size_t shared = first; shared < last; shared++) {
        for (size_t token = 0; token < one->count; token++) turn_and_keep(one, shared, token);
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

static void score_group(const pass *one, size_t shared, const group *some, float *scratch) {
    const qslm_attention *attention = one->attention;
    const size_t width = attention->heads.width, most = some->seen[some->count - 1];
    const float factor = 1.0f / sqrtf((float)width);
    for (size_t position = 0; position < most; position += KEYS) {
        float *scores[TOGETHER];
        for (size_t q = 0; q < some->count; q++) scores[q] = some->scores[q] + position;
        const float *keys = qslm_keys_at(&attention->cache, one->layer, shared, position, scratch);
        qslm_score(keys, width, factor, some->queries, some->count, scores);
    }
}

// Values [first, last) of those that the queries see; all queries together as far as all see them.
static void mingle_part(const group *some, const float *values, size_t width, size_t first, size_t last) {
    const size_t seen = some->seen[0] < last ? some->seen[0] : last, common = seen > first ? seen - first : 0;
    const float *shares[TOGETHER];
    for (size_t q = 0; q < some->count; q++) shares[q] = some->scores[q] + first;
    qslm_mingle(values, width, common, shares, some->count, some->y);
    for (size_t q = 0; q < some->count; q++) {
        const size_t end = some->seen[q] < last ? some->seen[q] : last;
        const float *rest = shares[q] + common;
        if (end > first + common) {
            qslm_mingle(values + common * width, width, end - first - common, &rest, 1, &some->y[q]);
        }
    }
}

static void attend_group(const pass *one, size_t shared, const group *some, float *scratch) {
    const qslm_cache *cache = &one->attention->cache;
    const size_t width = cache->width, most = some->seen[some->count - 1], part = cache->bits > 0 ? KEYS : most;
    score_group(one, shared, some, scratch);
    for (size_t q = 0; q < some->count; q++) {
        qslm_softmax(some->scores[q], some->seen[q]);
        memset(some->y[q], 0, width * sizeof(float));
    }
    for (size_t first = 0; first < most; first += part) {
        const size_t last = first + part < most ? first + part : most;
        const float *values = qslm_values_at(cache, one->layer, shared, first, last - first, scratch);
        mingle_part(some, values, width, first, last);
    }
}

static void attend(void *state, size_t first, size_t last) {
    const pass *one = state;
    const qslm_attention *attention = one->attention;
    const size_t groups = groups_of(&attention->heads, one->count);
    for (size_t part = first; part < last; part++) {
        const size_t shared = part / groups;
        const group some = group_of(one, shared, part % groups * TOGETHER);
        attend_group(one, shared, &some,
                     attention->scratch ? attention->scratch + part * attention->heads.width * KEYS : NULL);
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
    qslm_share_tokens(model, heads->shared_heads * groups_of(heads, count),
                      2 * TOGETHER * heads->width * (one.position + count), attend, &one);
}

void qslm_attend(qslm_model *model, const qslm_attention *attention, size_t layer, size_t position, float *query,
                 float *key, const float *value, size_t count, float *y) {
    const qslm_heads *heads = &attention->heads;
    pass one = {attention, layer, model->sizes.context, position, count, query, key, value, y};
    qslm_share_tokens(model, heads->shared_heads, count * (group_size(heads) + 2) * heads->width, keep, &one);
    for (size_t first = 0; first < count; first += TOKENS_TOGETHER) {
        attend_some(model, &one, first, count - first < TOKENS_TOGETHER ? count - first : TOKENS_TOGETHER);
    }
}
