// What the kernels of all instruction sets share.
#ifndef QSLM_MATRIX_INSIDE_H
#define QSLM_MATRIX_INSIDE_H

#include <string.h>

#include "products/matrix.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(QSLM_ONE_TARGET)
#define QSLM_HAVE_AVX512
#define QSLM_HAVE_AVX2
#endif
#if defined(__aarch64__) && defined(__GNUC__) && !defined(QSLM_ONE_TARGET)
#define QSLM_HAVE_NEON
#endif

// Loops whose counts are known. Unrolled, the checks of a sanitizer would take minutes to compile.
#define PRAGMA(TEXT) _Pragma(#TEXT)
#if defined(__SANITIZE_ADDRESS__)
#define UNROLL(COUNT)
#else
#define UNROLL(COUNT) PRAGMA(GCC unroll COUNT)
#endif

// The products of one instruction set: rows [first, last) of y (tokens, rows), for matrices of integers and signs. The
// first row is a multiple of 16 by tiles and of 128 by columns; so is the last, or it is that of the matrix.
typedef struct {
    const char *name;
    bool (*usable)(void);
    void (*by_tiles)(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y);
    void (*by_columns)(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y);
} qslm_kernels;

extern const qslm_kernels qslm_avx512_kernels, qslm_avx2_kernels, qslm_neon_dot_kernels, qslm_neon_kernels;
extern const qslm_kernels qslm_scalar_kernels;

// Add `count` blocks that follow one another (layout.h) times their columns of the token to the sums of sixteen rows.
typedef void qslm_add_blocks(const uint8_t *block, size_t count, unsigned bits, const int8_t *token, int32_t *sums);

// The products by tiles of an instruction set that brings its own sums of blocks.
void qslm_multiply_tiles(const qslm_matrix *matrix, qslm_add_blocks *add, const qslm_tokens *tokens, size_t first,
                         size_t last, float *y);

// The sum of `count` codes of a bit stream, from code `first` on, times as many numbers.
int32_t qslm_stream_product(const uint8_t *stream, size_t first, size_t count, unsigned bits, const int8_t *token);

// IEEE float16 and bfloat16 to float32; exact.
static inline float qslm_half(const uint8_t *from) {
    const uint32_t half = (uint32_t)from[0] | (uint32_t)from[1] << 8;
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ffu;
    uint32_t bits;
    float value;
    if (exponent == 0) {
        value = (float)mantissa * 5.9604644775390625e-8f; // 2^-24
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float qslm_brain(const uint8_t *from) {
    const uint32_t bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float qslm_single(const uint8_t *from) {
    const uint32_t bits =
        (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// A number of a float matrix.
static inline float qslm_value_at(const qslm_matrix *matrix, size_t index) {
    switch (matrix->kind) {
    case QSLM_FLOAT32:
        return qslm_single(matrix->codes + 4 * index);
    case QSLM_FLOAT16:
        return qslm_half(matrix->codes + 2 * index);
    default:
        return qslm_brain(matrix->codes + 2 * index);
    }
}

static inline size_t qslm_groups(const qslm_matrix *matrix) {
    return (matrix->columns + matrix->group - 1) / matrix->group;
}

// Where the scale of a row and a group stands: (rows / 16, groups, 16).
static inline size_t qslm_scale_index(const qslm_matrix *matrix, size_t row, size_t group) {
    if (matrix->one_scale) return 0;
    const size_t tile = row / QSLM_TILE_ROWS * QSLM_TILE_ROWS, left = matrix->rows - tile;
    return tile * qslm_groups(matrix) + group * (left < QSLM_TILE_ROWS ? left : QSLM_TILE_ROWS) + row - tile;
}

static inline float qslm_power_of_two(unsigned exponent) { // up to 127
    const uint32_t bits = (exponent + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float qslm_scale(const qslm_matrix *matrix, size_t row, size_t group) {
    if (matrix->kind == QSLM_SIGN) return 1.0f;
    const size_t index = qslm_scale_index(matrix, row, group);
    switch (matrix->scale_type) {
    case QSLM_SCALE_FLOAT16:
        return qslm_half(matrix->scales + 2 * index);
    case QSLM_SCALE_FLOAT32:
        return qslm_single(matrix->scales + 4 * index);
    case QSLM_SCALE_STEPS:
        return (float)matrix->scales[index] * qslm_single(matrix->step);
    default:
        return qslm_power_of_two(matrix->scales[index]) * qslm_single(matrix->step + 4 * row);
    }
}

// The zero point, as a code. Signs count 2 * code - 1 and have none.
static inline int32_t qslm_zero(const qslm_matrix *matrix, size_t row, size_t group) {
    if (matrix->kind == QSLM_SIGN) return 0;
    if (matrix->symmetric) return 1 << (matrix->bits - 1);
    uint8_t zero;
    qslm_unpack_stream(matrix->zeros, qslm_scale_index(matrix, row, group), 1, matrix->bits, &zero);
    return zero;
}

// y + (float)(the exact sum of a group) * its scale, of what the codes sum up to and the sum of the token.
static inline float qslm_add_group(const qslm_matrix *matrix, size_t row, size_t group, int32_t codes, int32_t token,
                                   float y) {
    const int32_t exact =
        matrix->kind == QSLM_SIGN ? 2 * codes - token : codes - qslm_zero(matrix, row, group) * token;
    return y + (float)exact * qslm_scale(matrix, row, group);
}

#endif
