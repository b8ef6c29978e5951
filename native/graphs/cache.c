// Rounding keys and values as they come in, and reading them as floats.
#include "graphs/cache.h"

#include <math.h>
#include <string.h>

#include "graphs/cache_config.h"
#include "graphs/model_inside.h"
#include "graphs/scores.h"
#include "system/portable.h"

enum { LINE = 64, KEYS = QSLM_KEYS };
#define TINY 1.17549435e-38f

// ---- memory -------------------------------------------------------------------------------------------------------

static size_t rounded_up(size_t bytes) {
    return (bytes + LINE - 1) / LINE * LINE;
}

// Bytes of `count` numbers, which is even.
static size_t bytes_of(unsigned bits, size_t count) {
    return bits == 0 ? count * sizeof(float) : bits <= 4 ? count / 2 : count;
}

static size_t tiles_of(const qslm_cache *cache) {
    return (cache->context + KEYS - 1) / KEYS;
}

static size_t tokens_of(const qslm_cache *cache) { // of all layers and heads
    return cache->layers * cache->heads * tiles_of(cache) * KEYS;
}

static size_t part_bytes(const qslm_cache *cache) { // keys, or values
    return rounded_up(bytes_of(cache->bits, tokens_of(cache) * cache->width));
}

static size_t state_bytes(const qslm_cache *cache) {
    const size_t tokens = tokens_of(cache), each = 2 * rounded_up(tokens * sizeof(float)) + rounded_up(tokens);
    return 2 * part_bytes(cache) + (cache->bits > 0 ? each : 0);
}

static qslm_cache cache_of(const qslm_model *model, size_t heads, size_t width, unsigned bits) {
    return (qslm_cache){.layers = model->sizes.layers, .heads = heads, .width = width, .context = model->sizes.context,
                        .bits = bits, .rotation = qslm_rotation_of(bits > 0 ? width : 1)};
}

size_t qslm_cache_memory(const qslm_model *model, size_t heads, size_t width) {
    qslm_cache_form form;
    const bool fits = qslm_read_cache(model, heads, &form, NULL, NULL);
    const qslm_cache cache = cache_of(model, heads, width, fits ? (unsigned)form.bits : 0);
    const size_t base = cache.rotation.base;
    const size_t tables = qslm_room(cache.layers * heads, sizeof(float)) + qslm_room(base, base);
    return qslm_state_memory(state_bytes(&cache)) + (cache.bits > 0 ? tables : 0);
}

static bool prepare_integers(qslm_model *model, const qslm_cache_form *form, qslm_cache *cache, qslm_error *error) {
    qslm_cache_form again;
    if (!qslm_prepare_rotation(&cache->rotation, model->arena, error)) return false;
    if (!form->has_steps) return true;
    cache->steps = qslm_take(model->arena, cache->layers * cache->heads * sizeof(float), error);
    return cache->steps != NULL && qslm_read_cache(model, cache->heads, &again, cache->steps, error);
}

bool qslm_prepare_cache(qslm_model *model, size_t heads, size_t width, qslm_cache *cache, qslm_error *error) {
    qslm_cache_form form;
    if (!qslm_read_cache(model, heads, &form, NULL, error)) return false;
    *cache = cache_of(model, heads, width, (unsigned)form.bits);
    if (cache->bits > 0 && !prepare_integers(model, &form, cache, error)) return false;
    uint8_t *state = qslm_take_state(model, state_bytes(cache), error);
    if (state == NULL) return false;
    const size_t part = part_bytes(cache), steps = rounded_up(tokens_of(cache) * sizeof(float));
    cache->keys = state;
    cache->values = state + part;
    cache->key_steps = (float *)(void *)(state + 2 * part);
    cache->value_steps = (float *)(void *)(state + 2 * part + steps);
    cache->zeros = state + 2 * part + 2 * steps;
    return true;
}

// ---- places -------------------------------------------------------------------------------------------------------

static size_t token_at(const qslm_cache *cache, size_t layer, size_t head, size_t position) {
    return (layer * cache->heads + head) * tiles_of(cache) * KEYS + position;
}

static uint8_t *key_tile(const qslm_cache *cache, size_t layer, size_t head, size_t position) {
    const size_t first = token_at(cache, layer, head, position / KEYS * KEYS);
    return cache->keys + bytes_of(cache->bits, first * cache->width);
}

static uint8_t *value_row(const qslm_cache *cache, size_t token) {
    return cache->values + bytes_of(cache->bits, token * cache->width);
}

// The i-th of a row of `count` codes; up to 4 bits the second half stands in the high parts of the bytes of the first.
static void put_code(unsigned bits, uint8_t *row, size_t count, size_t i, uint8_t code) {
    const size_t half = count / 2;
    if (bits > 4) row[i] = code;
    else if (i < half) row[i] = (uint8_t)((row[i] & 0xf0) | code);
    else row[i - half] = (uint8_t)((row[i - half] & 0x0f) | code << 4);
}

QSLM_INLINE void read_codes(unsigned bits, const uint8_t *row, size_t count, float *codes) {
    const size_t half = count / 2;
    if (bits > 4) {
        for (size_t i = 0; i < count; i++) codes[i] = (float)row[i];
    } else {
        for (size_t i = 0; i < half; i++) codes[i] = (float)(row[i] & 15), codes[half + i] = (float)(row[i] >> 4);
    }
}

// ---- keeping ------------------------------------------------------------------------------------------------------

// Half to even; below 2^22.
static float nearest(float x) {
    const float bias = 12582912.0f;
    return (x + bias) - bias;
}

static float within(float x, float low, float high) { // NaN is low
    return x >= high ? high : x > low ? x : low;
}

static void keep_key(const qslm_cache *cache, size_t token, uint8_t *tile, size_t lane, float *key) {
    const float most = (float)((1 << cache->bits) - 1);
    float low = 0.0f, high = 0.0f;
    qslm_rotate(&cache->rotation, key);
    for (size_t i = 0; i < cache->width; i++) {
        low = key[i] < low ? key[i] : low;
        high = key[i] > high ? key[i] : high;
    }
    const float range = (high - low) / most, step = range > TINY ? range : TINY;
    const float zero = within(nearest(-low / step), 0.0f, most);
    cache->key_steps[token] = step;
    cache->zeros[token] = (uint8_t)zero;
    for (size_t i = 0; i < cache->width; i++) {
        const float code = within(nearest(within(key[i] / step, -1e6f, 1e6f)) + zero, 0.0f, most);
        put_code(cache->bits, tile + bytes_of(cache->bits, i * KEYS), KEYS, lane, (uint8_t)code);
    }
}

static float step_of(const qslm_cache *cache, const float *value, float most) {
    float largest = 0.0f;
    for (size_t i = 0; i < cache->width; i++) largest = fabsf(value[i]) > largest ? fabsf(value[i]) : largest;
    if (largest == 0.0f) return 1.0f;
    return largest / most > TINY ? largest / most : TINY;
}

// Counts stand as codes from 0 on, with `most` for none.
static void keep_value(const qslm_cache *cache, size_t layer, size_t head, size_t token, const float *value) {
    const float most = (float)((1 << (cache->bits - 1)) - 1);
    const float step = cache->steps ? cache->steps[layer * cache->heads + head] : step_of(cache, value, most);
    uint8_t *row = value_row(cache, token);
    cache->value_steps[token] = step;
    memset(row, 0, bytes_of(cache->bits, cache->width));
    for (size_t i = 0; i < cache->width; i++) {
        const float size = floorf(within(fabsf(value[i]) / step + 0.5f, 0.0f, most)); // ties away from zero
        put_code(cache->bits, row, cache->width, i, (uint8_t)(value[i] < 0.0f ? most - size : most + size));
    }
}

void qslm_keep(const qslm_cache *cache, size_t layer, size_t head, size_t position, float *key, const float *value) {
    const size_t token = token_at(cache, layer, head, position), lane = position % KEYS, width = cache->width;
    uint8_t *tile = key_tile(cache, layer, head, position);
    if (lane == 0) { // what is not yet there counts as zeros
        memset(tile, 0, bytes_of(cache->bits, width * KEYS));
        if (cache->bits > 0) memset(cache->key_steps + token, 0, KEYS * sizeof(float));
        if (cache->bits > 0) memset(cache->zeros + token, 0, KEYS);
    }
    if (cache->bits > 0) {
        keep_key(cache, token, tile, lane, key);
        keep_value(cache, layer, head, token, value);
        return;
    }
    float *column = (float *)(void *)tile + lane;
    for (size_t i = 0; i < width; i++) column[i * KEYS] = key[i];
    memcpy(value_row(cache, token), value, width * sizeof(float));
}

// ---- reading ------------------------------------------------------------------------------------------------------

QSLM_SIMD static void read_keys(const qslm_cache *cache, size_t token, const uint8_t *tile, float *keys) {
    float zeros[KEYS], codes[KEYS];
    const float *steps = cache->key_steps + token;
    for (size_t lane = 0; lane < KEYS; lane++) zeros[lane] = (float)cache->zeros[token + lane];
    for (size_t i = 0; i < cache->width; i++) {
        read_codes(cache->bits, tile + bytes_of(cache->bits, i * KEYS), KEYS, codes);
        for (size_t lane = 0; lane < KEYS; lane++) keys[i * KEYS + lane] = (codes[lane] - zeros[lane]) * steps[lane];
    }
}

const float *qslm_keys_at(const qslm_cache *cache, size_t layer, size_t head, size_t position, float *scratch) {
    const uint8_t *tile = key_tile(cache, layer, head, position);
    if (cache->bits == 0) return (const float *)(const void *)tile;
    read_keys(cache, token_at(cache, layer, head, position), tile, scratch);
    return scratch;
}

QSLM_SIMD static void read_values(const qslm_cache *cache, size_t token, size_t count, float *values) {
    const float zero = (float)((1 << (cache->bits - 1)) - 1);
    for (size_t i = 0; i < count; i++, values += cache->width) {
        const float step = cache->value_steps[token + i];
        read_codes(cache->bits, value_row(cache, token + i), cache->width, values);
        for (size_t j = 0; j < cache->width; j++) values[j] = (values[j] - zero) * step;
    }
}

const float *qslm_values_at(const qslm_cache *cache, size_t layer, size_t head, size_t position, size_t count,
                            float *scratch) {
    const size_t token = token_at(cache, layer, head, position);
    if (cache->bits == 0) return (const float *)(const void *)value_row(cache, token);
    read_values(cache, token, count, scratch);
    return scratch;
}
