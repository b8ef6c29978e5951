// Medians are found bit by bit in the order-preserving integers of floats: one comparison a value and bit, of floats.
#include "graphs/spikes.h"

#include <math.h>
#include <string.h>

#include "system/portable.h"

enum { MOST_EXPONENT = 24, INFINITE_BITS = 0x7f800000 };
#define CONSISTENCY 0.6745
#define MEAN_CONSISTENCY 1.2533
#define TINY 1.17549435e-38f

// The integer of a float and the float of an integer, which are ordered alike.
static inline uint32_t key_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

static inline float of_key(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// How many of x lie below a bound; of |x - center| where `away`, of those that are not zero where `sparse`.
QSLM_INLINE uint32_t below(const float *x, size_t count, float bound, float center, bool away, bool sparse) {
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const float value = away ? fabsf(x[i] - center) : x[i];
        found += (!(value >= bound)) & (!sparse | (x[i] != 0.0f)); // what is no bound is above all
    }
    return found;
}

QSLM_SIMD static uint32_t below_all(const float *x, size_t count, float bound) {
    return below(x, count, bound, 0.0f, false, false);
}

QSLM_SIMD static uint32_t below_away(const float *x, size_t count, float bound, float center) {
    return below(x, count, bound, center, true, false);
}

QSLM_SIMD static uint32_t below_sparse(const float *x, size_t count, float bound, float center, bool away) {
    return away ? below(x, count, bound, center, true, true) : below(x, count, bound, 0.0f, false, true);
}

// The least of them whose integer is not below `key`; a zero is without sign.
QSLM_INLINE float least(const float *x, size_t count, uint32_t key, float center, bool away, bool sparse) {
    uint32_t found = UINT32_MAX;
    for (size_t i = 0; i < count; i++) {
        uint32_t own = key_of((away ? fabsf(x[i] - center) : x[i]) + 0.0f);
        own |= 0u - (uint32_t)((own < key) | (sparse & (x[i] == 0.0f)));
        found = own < found ? own : found;
    }
    return of_key(found);
}

QSLM_SIMD static float least_of(const float *x, size_t count, uint32_t key, float center, bool away, bool sparse) {
    if (sparse) return least(x, count, key, center, away, true);
    return away ? least(x, count, key, center, true, false) : least(x, count, key, 0.0f, false, false);
}

// The number of rank `rank` of them. A single one between the bounds is it.
static float smallest(const float *x, size_t count, size_t rank, float center, bool away, bool sparse) {
    uint32_t found = 0, lower = 0, upper = UINT32_MAX; // how many are below `found`, and below what it cannot reach
    for (uint32_t bit = 0x80000000u; bit != 0 && upper - lower != 1; bit >>= 1) {
        const float bound = of_key(found | bit);
        const uint32_t less = sparse ? below_sparse(x, count, bound, center, away)
                              : away ? below_away(x, count, bound, center)
                                     : below_all(x, count, bound);
        if (less <= rank) found |= bit, lower = less;
        else upper = less;
    }
    return upper - lower == 1 ? least_of(x, count, found, center, away, sparse) : of_key(found);
}

// The median and MAD of the non-zeros, or what stands for it.
static float deviation_of_non_zeros(const float *x, size_t columns, float *center) {
    size_t count = 0;
    for (size_t i = 0; i < columns; i++) count += x[i] != 0.0f;
    if (count == 0) return *center = 0.0f;
    *center = smallest(x, columns, (count - 1) / 2, 0.0f, false, true);
    const float mad = smallest(x, columns, (count - 1) / 2, *center, true, true);
    if (mad > 0.0f) return mad;
    double sum = 0.0;
    for (size_t i = 0; i < columns; i++) sum += x[i] != 0.0f ? fabsf(x[i] - *center) : 0.0f;
    return (float)(sum / (double)count * (MEAN_CONSISTENCY * CONSISTENCY));
}

static float reach_of(const qslm_spiking_input *input, const float *x, size_t columns, float *center) {
    if (input->is_static) {
        *center = input->center;
        return input->reach;
    }
    *center = smallest(x, columns, (columns - 1) / 2, 0.0f, false, false);
    float mad = smallest(x, columns, (columns - 1) / 2, *center, true, false);
    if (mad == 0.0f) mad = deviation_of_non_zeros(x, columns, center);
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

// The largest magnitudes of normal and of salient values; a zero is neither here nor there. Without a sign, floats are
// ordered as their bits.
QSLM_SIMD static void find_largest(const float *x, size_t columns, float center, float reach, float *normal,
                                   float *salient) {
    int32_t most_normal = 0, most_salient = 0;
    for (size_t i = 0; i < columns; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= INT32_MAX;
        bits = bits > INFINITE_BITS ? 0 : bits; // NaN
        const int32_t beyond = fabsf(x[i] - center) > reach ? bits : 0, within = bits - beyond;
        most_normal = within > most_normal ? within : most_normal;
        most_salient = beyond > most_salient ? beyond : most_salient;
    }
    memcpy(normal, &most_normal, sizeof *normal);
    memcpy(salient, &most_salient, sizeof *salient);
}

// e, the least with size < border 2^e.
static unsigned exponent_of(float size, float border) {
    int power, border_power;
    const float mantissa = frexpf(size, &power), border_mantissa = frexpf(border, &border_power);
    const int exponent = power - border_power + (mantissa >= border_mantissa);
    return exponent < 0 ? 0 : exponent > MOST_EXPONENT ? MOST_EXPONENT : (unsigned)exponent;
}

// What the counts of a token are made with.
typedef struct {
    float center, reach, step, shrink; // a massive value counts 1 / shrink steps
    float most, border;                // of normal counts; beyond it salient ones are massive
} grid;

QSLM_SIMD static void count_spikes(const grid *one, const float *x, size_t columns, int8_t *codes, int8_t *massive) {
    const grid g = *one;
    for (size_t i = 0; i < columns; i++) {
        const float steps = x[i] / g.step;
        const bool beyond = (fabsf(x[i] - g.center) > g.reach) & (x[i] != 0.0f);
        const bool is_massive = beyond & (fabsf(steps) >= g.border);
        const float count = clamped(is_massive ? 0.0f : steps, beyond ? g.border : g.most);
        const float large = rounded(clamped(steps * g.shrink, 127.0f));
        codes[i] = (int8_t)(int32_t)clamped(rounded(count == count ? count : 0.0f), 127.0f);
        massive[i] = (int8_t)(int32_t)(is_massive ? large : 0.0f); // massive values are numbers
    }
}

float qslm_encode_spikes(const qslm_spiking_input *input, unsigned bits, const float *x, size_t columns, size_t stride,
                         int8_t *codes, int8_t *massive, unsigned *exponent) {
    const unsigned salient_bits = input->salient_bits > bits ? input->salient_bits : bits;
    const float most = (float)((1 << (bits - 1)) - 1), most_salient = (float)((1 << (salient_bits - 1)) - 1);
    const float border = most_salient + 0.5f;
    float center, normal, salient;
    const float reach = reach_of(input, x, columns, &center);
    find_largest(x, columns, center, reach, &normal, &salient);
    const float largest = normal > salient ? normal : salient;
    const float far = largest / most_salient;
    float step = normal > 0.0f ? normal * input->clip / most : far;
    step = step > far / (1 << MOST_EXPONENT) ? step : far / (1 << MOST_EXPONENT);
    step = step > TINY ? step : TINY;
    if (!(largest > 0.0f)) step = 1.0f;
    *exponent = salient / step < border ? 0 : exponent_of(salient / step, border);
    const grid one = {center, reach, step, 1.0f / (float)(1u << *exponent), most, border};
    count_spikes(&one, x, columns, codes, massive);
    memset(codes + columns, 0, stride - columns);
    memset(massive + columns, 0, stride - columns);
    return step;
}
