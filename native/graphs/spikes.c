// Medians are found bit by bit in the order-preserving integers of the floats: one comparison a value and bit.
#include "graphs/spikes.h"

#include <math.h>
#include <string.h>

#include "system/portable.h"

enum { MOST_EXPONENT = 24 };
#define CONSISTENCY 0.6745
#define MEAN_CONSISTENCY 1.2533
#define TINY 1.17549435e-38f

static inline uint32_t key_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static inline float of_key(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The number of rank `rank` among the floats whose keys these are.
QSLM_SIMD static float smallest(const uint32_t *keys, size_t count, size_t rank) {
    uint32_t found = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
        const uint32_t candidate = found | bit;
        uint32_t below = 0;
        for (size_t i = 0; i < count; i++) below += keys[i] < candidate;
        if (below <= rank) found = candidate;
    }
    return of_key(found);
}

static void keep_all(const float *x, float center, bool away, size_t columns, uint32_t *keys) {
    for (size_t i = 0; i < columns; i++) keys[i] = key_of(away ? fabsf(x[i] - center) : x[i]);
}

static size_t keep_non_zeros(const float *x, float center, bool away, size_t columns, uint32_t *keys) {
    size_t count = 0;
    for (size_t i = 0; i < columns; i++) {
        if (x[i] != 0.0f) keys[count++] = key_of(away ? fabsf(x[i] - center) : x[i]);
    }
    return count;
}

// The median and MAD of the non-zeros, or what stands for it.
static float deviation_of_non_zeros(const float *x, size_t columns, uint32_t *keys, float *center) {
    const size_t count = keep_non_zeros(x, 0.0f, false, columns, keys);
    if (count == 0) return *center = 0.0f;
    *center = smallest(keys, count, (count - 1) / 2);
    keep_non_zeros(x, *center, true, columns, keys);
    const float mad = smallest(keys, count, (count - 1) / 2);
    if (mad > 0.0f) return mad;
    double sum = 0.0;
    for (size_t i = 0; i < columns; i++) sum += x[i] != 0.0f ? fabsf(x[i] - *center) : 0.0f;
    return (float)(sum / (double)count * (MEAN_CONSISTENCY * CONSISTENCY));
}

static float reach_of(const qslm_spiking_input *input, const float *x, size_t columns, uint32_t *keys, float *center) {
    if (input->is_static) {
        *center = input->center;
        return input->reach;
    }
    keep_all(x, 0.0f, false, columns, keys);
    *center = smallest(keys, columns, (columns - 1) / 2);
    keep_all(x, *center, true, columns, keys);
    float mad = smallest(keys, columns, (columns - 1) / 2);
    if (mad == 0.0f) mad = deviation_of_non_zeros(x, columns, keys, center);
    return mad == 0.0f ? INFINITY : mad * input->threshold;
}

// Half to even, as far as |x| < 2^22.
static inline float rounded(float x) {
    const float bias = 12582912.0f;
    return (x + bias) - bias;
}

static inline float clamped(float x, float most) {
    return x > most ? most : x < -most ? -most : x;
}

// The largest magnitudes of normal and of salient values; a zero is neither here nor there.
QSLM_SIMD static void find_largest(const float *x, size_t columns, float center, float reach, float *normal,
                                   float *salient) {
    float most_normal = 0.0f, most_salient = 0.0f;
    for (size_t i = 0; i < columns; i++) {
        const float size = fabsf(x[i]);
        const bool beyond = fabsf(x[i] - center) > reach;
        most_normal = !beyond && size > most_normal ? size : most_normal;
        most_salient = beyond && size > most_salient ? size : most_salient;
    }
    *normal = most_normal;
    *salient = most_salient;
}

// e, the least with size < border 2^e.
static unsigned exponent_of(float size, float border) {
    int power, border_power;
    const float mantissa = frexpf(size, &power), border_mantissa = frexpf(border, &border_power);
    const int exponent = power - border_power + (mantissa >= border_mantissa);
    return exponent < 0 ? 0 : exponent > MOST_EXPONENT ? MOST_EXPONENT : (unsigned)exponent;
}

float qslm_encode_spikes(const qslm_spiking_input *input, unsigned bits, const float *x, size_t columns, size_t stride,
                         uint32_t *keys, int8_t *codes, int8_t *massive, unsigned *exponent) {
    const unsigned salient_bits = input->salient_bits > bits ? input->salient_bits : bits;
    const float most = (float)((1 << (bits - 1)) - 1), most_salient = (float)((1 << (salient_bits - 1)) - 1);
    const float border = most_salient + 0.5f;
    float center, normal, salient;
    const float reach = reach_of(input, x, columns, keys, &center);
    find_largest(x, columns, center, reach, &normal, &salient);
    const float largest = normal > salient ? normal : salient;
    const float far = largest / most_salient;
    float step = normal > 0.0f ? normal * input->clip / most : far;
    step = step > far / (1 << MOST_EXPONENT) ? step : far / (1 << MOST_EXPONENT);
    step = step > TINY ? step : TINY;
    if (!(largest > 0.0f)) step = 1.0f;
    *exponent = salient / step < border ? 0 : exponent_of(salient / step, border);
    const float shrink = 1.0f / (float)(1u << *exponent);
    memset(massive, 0, stride);
    memset(codes + columns, 0, stride - columns);
    for (size_t i = 0; i < columns; i++) {
        const float steps = x[i] / step;
        const bool beyond = fabsf(x[i] - center) > reach && x[i] != 0.0f;
        const bool is_massive = beyond && fabsf(steps) >= border;
        const float count = clamped(is_massive ? 0.0f : steps, beyond ? border : most);
        codes[i] = (int8_t)clamped(rounded(count == count ? count : 0.0f), 127.0f);
        if (is_massive) massive[i] = (int8_t)clamped(rounded(clamped(steps * shrink, 127.0f)), 127.0f);
    }
    return step;
}
