// Sums stand in registers: 16 keys, or 16 channels of a value, for each of some queries.
#include "graphs/scores.h"

#include <stdint.h>
#include <string.h>

#include "system/portable.h"

enum { TOGETHER = QSLM_TOGETHER, KEYS = QSLM_KEYS, LANES = 16, SIDE = QSLM_SIDE, PARTS = KEYS / SIDE };

// ---- scores -------------------------------------------------------------------------------------------------------

// The lanes of a sum, so that those that are added are neighbours, and their sums are, to the last.
static const uint8_t ORDER[LANES] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

QSLM_INLINE void score(const float *tile, size_t width, float factor, const float *const *queries, size_t count,
                       float *const *scores) {
    qslm_floats levels[5][TOGETHER][PARTS], sums[TOGETHER][PARTS];
    for (size_t turn = 0; turn < LANES; turn++) {
        QSLM_UNROLL for (size_t q = 0; q < count; q++) {
            QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[q][part] = (qslm_floats){0};
        }
        for (size_t j = ORDER[turn]; j < width; j += LANES) {
            const qslm_floats *keys = (const qslm_floats *)(tile + j * KEYS);
            QSLM_UNROLL for (size_t q = 0; q < count; q++) {
                QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[q][part] += keys[part] * queries[q][j];
            }
        }
        size_t level = 0;
        for (; turn >> level & 1; level++) {
            QSLM_UNROLL for (size_t q = 0; q < count; q++) {
                QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[q][part] += levels[level][q][part];
            }
        }
        QSLM_UNROLL for (size_t q = 0; q < count; q++) {
            QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) levels[level][q][part] = sums[q][part];
        }
    }
    QSLM_UNROLL for (size_t q = 0; q < count; q++) {
        qslm_floats *found = (qslm_floats *)scores[q];
        QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) found[part] = levels[4][q][part] * factor;
    }
}

QSLM_SIMD void qslm_score(const float *tile, size_t width, float factor, const float *const *queries, size_t count,
                          float *const *scores) {
    switch (count) {
    case 1: score(tile, width, factor, queries, 1, scores); break;
    case 2: score(tile, width, factor, queries, 2, scores); break;
    case 3: score(tile, width, factor, queries, 3, scores); break;
    default: score(tile, width, factor, queries, TOGETHER, scores);
    }
}

// ---- values -------------------------------------------------------------------------------------------------------

// 16 channels.
QSLM_INLINE void mingle(const float *values, size_t width, size_t tokens, const float *const *shares, size_t count,
                        float *const *y, size_t channel) {
    qslm_floats sums[TOGETHER][PARTS];
    QSLM_UNROLL for (size_t q = 0; q < count; q++) {
        const qslm_floats *before = (const qslm_floats *)(y[q] + channel);
        QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[q][part] = before[part];
    }
    for (size_t i = 0; i < tokens; i++) {
        const qslm_floats *value = (const qslm_floats *)(values + i * width + channel);
        QSLM_UNROLL for (size_t q = 0; q < count; q++) {
            QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) sums[q][part] += value[part] * shares[q][i];
        }
    }
    QSLM_UNROLL for (size_t q = 0; q < count; q++) {
        qslm_floats *after = (qslm_floats *)(y[q] + channel);
        QSLM_UNROLL for (size_t part = 0; part < PARTS; part++) after[part] = sums[q][part];
    }
}

QSLM_SIMD void qslm_mingle(const float *values, size_t width, size_t tokens, const float *const *shares, size_t count,
                           float *const *sums) {
    size_t channel = 0;
    for (; channel + LANES <= width; channel += LANES) {
        switch (count) {
        case 1: mingle(values, width, tokens, shares, 1, sums, channel); break;
        case 2: mingle(values, width, tokens, shares, 2, sums, channel); break;
        case 3: mingle(values, width, tokens, shares, 3, sums, channel); break;
        default: mingle(values, width, tokens, shares, TOGETHER, sums, channel);
        }
    }
    for (; channel < width; channel++) {
        for (size_t q = 0; q < count; q++) {
            for (size_t i = 0; i < tokens; i++) sums[q][channel] += values[i * width + channel] * shares[q][i];
        }
    }
}
