// Loops that a compiler vectorizes without changing a bit.
#include "graphs/elementwise.h"

#include <math.h>
#include <string.h>

#include "system/portable.h"

enum { LANES = 16 };

enum { SIDE = QSLM_SIDE, PARTS = LANES / SIDE };

// The lanes of a sum, added up: 8 apart, 4 apart, 2 apart, 1 apart. What is left of x * y comes first.
QSLM_INLINE float total_of(const qslm_floats *sums, const float *x, const float *y, size_t left) {
    float lanes[LANES];
    memcpy(lanes, sums, sizeof lanes);
    for (size_t lane = 0; lane < left; lane++) lanes[lane] += y ? x[lane] * y[lane] : x[lane];
    for (size_t half = LANES / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

QSLM_SIMD float qslm_dot(const float *x, const float *y, size_t count) {
    qslm_floats sums[PARTS];
    size_t i = 0;
    QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[part] = (qslm_floats){0};
    for (; i + LANES <= count; i += LANES) {
        const qslm_floats *a = (const qslm_floats *)(x + i), *b = (const qslm_floats *)(y + i);
        QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[part] += a[part] * b[part];
    }
    return total_of(sums, x + i, y + i, count - i);
}

QSLM_SIMD static float sum_of(const float *x, size_t count) {
    qslm_floats sums[PARTS];
    size_t i = 0;
    QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[part] = (qslm_floats){0};
    for (; i + LANES <= count; i += LANES) {
        const qslm_floats *a = (const qslm_floats *)(x + i);
        QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[part] += a[part];
    }
    return total_of(sums, x + i, NULL, count - i);
}

QSLM_SIMD static float largest_of(const float *x, size_t count) {
    float lanes[LANES];
    size_t i = 0;
    for (size_t lane = 0; lane < LANES; lane++) lanes[lane] = x[0];
    for (; i + LANES <= count; i += LANES) {
        for (size_t lane = 0; lane < LANES; lane++) {
            lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
        }
    }
    for (; i < count; i++) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    for (size_t lane = 1; lane < LANES; lane++) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    return lanes[0];
}

QSLM_SIMD void qslm_layer_norm(const float *x, const float *weight, const float *bias, size_t width, float *y) {
    const float mean = sum_of(x, width) / (float)width;
    for (size_t i = 0; i < width; i++) y[i] = x[i] - mean;
    const float inverse = 1.0f / sqrtf(qslm_dot(y, y, width) / (float)width + 1e-5f);
    for (size_t i = 0; i < width; i++) y[i] = y[i] * inverse * weight[i] + bias[i];
}

QSLM_SIMD void qslm_rms_norm(const float *x, const float *weight, float epsilon, size_t width, float *y) {
    const float inverse = 1.0f / sqrtf(qslm_dot(x, x, width) / (float)width + epsilon);
    for (size_t i = 0; i < width; i++) y[i] = x[i] * inverse * weight[i];
}

QSLM_SIMD void qslm_mix(const float *x, const float *previous, const float *share, size_t width, float *y) {
    for (size_t i = 0; i < width; i++) {
        const float step = x[i] - previous[i];
        const float up = previous[i] + share[i] * step, down = x[i] - step * (1.0f - share[i]);
        y[i] = share[i] < 0.5f ? up : down;
    }
}

QSLM_SIMD void qslm_squared_relu(const float *x, size_t width, float *y) {
    for (size_t i = 0; i < width; i++) {
        const float positive = x[i] > 0.0f ? x[i] : 0.0f;
        y[i] = positive * positive;
    }
}

QSLM_SIMD void qslm_gate(const float *gate, const float *x, size_t width, float *y) {
    for (size_t i = 0; i < width; i++) y[i] = x[i] / (1.0f + qslm_expf(-gate[i]));
}

// a = e^(x - max(x, y)), b = e^(y - max(x, y)): one of them is 1, so one exponential serves both.
static inline float exp_pair(float x, float y, float *a, float *b) {
    const float power = qslm_expf(x > y ? y - x : x - y);
    *a = x > y ? 1.0f : power;
    *b = x > y ? power : 1.0f;
    return x > y ? x : y;
}

QSLM_SIMD void qslm_wkv(const float *restrict decay, const float *restrict bonus, const float *restrict key,
                        const float *restrict value, float *restrict state, size_t width, float *restrict y) {
    float *restrict p = state, *restrict q = state + width, *restrict o = state + 2 * width;
    for (size_t i = 0; i < width; i++) {
        float a, b;
        exp_pair(o[i], bonus[i] + key[i], &a, &b);
        y[i] = (a * p[i] + b * value[i]) / (a * q[i] + b);
        const float largest = exp_pair(decay[i] + o[i], key[i], &a, &b);
        p[i] = a * p[i] + b * value[i];
        q[i] = a * q[i] + b;
        o[i] = largest;
    }
}

QSLM_SIMD void qslm_fire(const float *current, float *membrane, const float *forced, float *potentials, size_t width,
                         float *stream) {
    for (size_t i = 0; i < width; i++) {
        const float potential = membrane[i] + (current[i] - membrane[i]) * 0.5f;
        const float spike = forced ? forced[i] : potential >= 1.0f ? 1.0f : 0.0f;
        if (potentials) potentials[i] = potential;
        membrane[i] = spike != 0.0f ? 0.0f : potential;
        stream[i] += spike;
    }
}

QSLM_SIMD void qslm_add(const float *x, size_t count, float *y) {
    for (size_t i = 0; i < count; i++) y[i] += x[i];
}

QSLM_SIMD void qslm_silu(const float *gate, size_t width, float *y) {
    for (size_t i = 0; i < width; i++) y[i] = y[i] * gate[i] / (1.0f + qslm_expf(-gate[i]));
}

QSLM_SIMD void qslm_softmax(float *x, size_t count) {
    const float most = largest_of(x, count);
    for (size_t i = 0; i < count; i++) x[i] = qslm_expf(x[i] - most);
    const float inverse = 1.0f / sum_of(x, count);
    for (size_t i = 0; i < count; i++) x[i] *= inverse;
}
