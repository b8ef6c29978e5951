// Paley's two constructions for the base, and a butterfly for every doubling.
#include "graphs/hadamard.h"

#include <math.h>
#include <string.h>

// ---- which one ----------------------------------------------------------------------------------------------------

static bool is_prime(size_t number) {
    for (size_t one = 2; one * one <= number; one++) {
        if (number % one == 0) return false;
    }
    return number > 1;
}

// The prime of the construction of an order; 0 where there is none, or none is needed.
static size_t prime_of(size_t order) {
    if (order % 4 != 0) return 0;
    if (is_prime(order - 1)) return order - 1; // 3 mod 4
    return order / 2 % 4 == 2 && is_prime(order / 2 - 1) ? order / 2 - 1 : 0;
}

static bool is_base(size_t order) {
    return order == 1 || (order <= QSLM_LARGEST_BASE && prime_of(order) > 0);
}

qslm_rotation qslm_rotation_of(size_t width) {
    for (size_t order = width; order > 1; order--) {
        if (width % order != 0) continue;
        size_t doublings = 0;
        while ((order >> doublings & 1) == 0) doublings++;
        for (;; doublings--) { // the smallest base has the most doublings
            if (is_base(order >> doublings)) return (qslm_rotation){width, order >> doublings, doublings, NULL};
            if (doublings == 0) break;
        }
    }
    return (qslm_rotation){width, 1, 0, NULL};
}

// ---- its signs ----------------------------------------------------------------------------------------------------

// Of the matrix of order prime + 1 whose diagonal is zeros.
static int core(const int8_t *characters, size_t prime, size_t row, size_t column) {
    if (row == 0) return column > 0;
    if (column == 0) return prime % 4 == 3 ? -1 : 1;
    return characters[(row + prime - column) % prime];
}

bool qslm_prepare_rotation(qslm_rotation *rotation, qslm_arena *arena, qslm_error *error) {
    const size_t base = rotation->base, prime = prime_of(base), half = prime + 1;
    int8_t characters[QSLM_LARGEST_BASE];
    rotation->signs = qslm_take(arena, base * base, error);
    if (rotation->signs == NULL) return false;
    memset(characters, -1, sizeof characters);
    for (size_t one = 1; one < prime; one++) characters[one * one % prime] = 1;
    characters[0] = 0;
    for (size_t row = 0; row < base; row++) {
        for (size_t column = 0; column < base; column++) {
            const int diagonal = base == 1 || row % half == column % half;
            const bool below = row >= half, right = column >= half;
            const int found = base == 1 ? 0 : core(characters, prime, row % half, column % half);
            const int sign = below && right ? -found - diagonal : found + (below || right ? -diagonal : diagonal);
            rotation->signs[row * base + column] = (int8_t)sign;
        }
    }
    return true;
}

// ---- turning ------------------------------------------------------------------------------------------------------

static void double_up(float *x, size_t order) { // in place: every row of a power of two
    for (size_t step = 1; step < order; step *= 2) {
        for (size_t first = 0; first < order; first += 2 * step) {
            for (size_t i = first; i < first + step; i++) {
                const float sum = x[i] + x[i + step], difference = x[i] - x[i + step];
                x[i] = sum;
                x[i + step] = difference;
            }
        }
    }
}

static void apply_base(const qslm_rotation *rotation, float *x, size_t step) { // x[0], x[step], ...
    const size_t base = rotation->base;
    float turned[QSLM_LARGEST_BASE] = {0.0f};
    for (size_t row = 0; row < base; row++) {
        for (size_t column = 0; column < base; column++) {
            turned[column] += x[row * step] * (float)rotation->signs[row * base + column];
        }
    }
    for (size_t column = 0; column < base; column++) x[column * step] = turned[column];
}

void qslm_rotate(const qslm_rotation *rotation, float *x) {
    const size_t power = (size_t)1 << rotation->doublings, order = rotation->base * power;
    const float root = sqrtf((float)order);
    for (size_t block = 0; block < rotation->width; block += order) {
        for (size_t row = 0; row < rotation->base; row++) double_up(x + block + row * power, power);
        for (size_t i = 0; rotation->base > 1 && i < power; i++) apply_base(rotation, x + block + i, power);
    }
    for (size_t i = 0; i < rotation->width; i++) x[i] /= root;
}
