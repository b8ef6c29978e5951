// What the AVX2 kernels by tiles and by columns share.
#ifndef QSLM_MATRIX_AVX2_H
#define QSLM_MATRIX_AVX2_H

#include <immintrin.h>

#include "products/matrix_inside.h"

#define AVX2 __attribute__((target("avx2,f16c,bmi2")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum { MOST_TOKENS = 4, MOST_GROUPS = QSLM_MOST_COLUMNS / QSLM_BLOCK_COLUMNS };

// What a part of a product needs to know.
typedef struct {
    const qslm_matrix *matrix;
    const int8_t *codes; // of the first of the tokens
    const float *scales; // (tokens,)
    size_t stride;
    const int32_t (*sums)[MOST_GROUPS]; // of a token in every group, (tokens, groups)
    float *y;                           // of the first of the tokens
    size_t groups;                      // of the matrix
    const uint16_t *firing;             // (count,): the columns of one token that are not zero, by columns
    size_t count;
} part_of;
typedef void multiply_some(const part_of *part, size_t first, size_t last);
#define DEFINE_FOR_ALL_BITS \
    DEFINE_BITS(1) DEFINE_BITS(2) DEFINE_BITS(3) DEFINE_BITS(4) DEFINE_BITS(5) DEFINE_BITS(6) DEFINE_BITS(7) DEFINE_BITS(8)
#define FOR_ALL_BITS(NAME) {NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6, NAME##_7, NAME##_8}

// Ask memory for bytes, which need not be there. Most begin with a line of 64 bytes; a last line is else left out.
INLINE void fetch(const uint8_t *from, size_t size) {
    for (size_t i = 0; i < size; i += 64) _mm_prefetch((const char *)from + i, _MM_HINT_T0);
}

// Symmetric integers with a float16 scale for each row of a group, as most matrices are; and a copy of one, in which a
// compiler sees what it is, so that no group has to look. What one says the other has to.
static inline bool is_plain(const qslm_matrix *matrix) {
    return matrix->kind == QSLM_INTEGER && matrix->symmetric && !matrix->one_scale &&
           matrix->scale_type == QSLM_SCALE_FLOAT16;
}

INLINE qslm_matrix known(const qslm_matrix *matrix, bool plain) {
    qslm_matrix copy = *matrix;
    if (plain) {
        copy.kind = QSLM_INTEGER;
        copy.symmetric = true;
        copy.one_scale = false;
        copy.scale_type = QSLM_SCALE_FLOAT16;
    }
    return copy;
}

INLINE void sum_groups(const qslm_matrix *matrix, const int8_t *token, int32_t *sums) {
    const __m256i bytes = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    for (size_t group = 0, column = 0; column < matrix->columns; group++) {
        __m256i sum = _mm256_setzero_si256();
        const size_t end = column + matrix->group < matrix->columns ? column + matrix->group : matrix->columns;
        for (; column < end; column += 32) { // zeros stand behind the last column
            const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_loadu_si256((const void *)(token + column)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, words));
        }
        const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
        sums[group] = _mm_cvtsi128_si32(quarter) + _mm_extract_epi32(quarter, 1);
    }
}

// The scales of the sixteen rows of a tile, from `row` on, in a group: of the first eight, and of the others. They stand
// from `index` on.
INLINE void tile_scales(const qslm_matrix *matrix, size_t row, size_t index, __m256 scales[2]) {
    if (__builtin_expect(matrix->kind == QSLM_SIGN || matrix->one_scale, 0)) {
        scales[0] = scales[1] = _mm256_set1_ps(qslm_scale(matrix, 0, 0));
    } else if (__builtin_expect(matrix->scale_type == QSLM_SCALE_FLOAT16, 1)) {
        const __m256i halves = _mm256_loadu_si256((const void *)(matrix->scales + 2 * index));
        scales[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        scales[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    } else if (matrix->scale_type == QSLM_SCALE_FLOAT32) {
        scales[0] = _mm256_loadu_ps((const void *)(matrix->scales + 4 * index));
        scales[1] = _mm256_loadu_ps((const void *)(matrix->scales + 4 * index + 32));
    } else {
        const __m128i bytes = _mm_loadu_si128((const void *)(matrix->scales + index));
        const __m256i codes[2] = {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
        for (size_t half = 0; half < 2; half++) {
            if (matrix->scale_type == QSLM_SCALE_STEPS) {
                scales[half] = _mm256_mul_ps(_mm256_cvtepi32_ps(codes[half]), _mm256_set1_ps(qslm_single(matrix->step)));
            } else {
                const __m256i powers = _mm256_slli_epi32(_mm256_add_epi32(codes[half], _mm256_set1_epi32(127)), 23);
                const __m256 steps = _mm256_loadu_ps((const void *)(matrix->step + 4 * (row + 8 * half)));
                scales[half] = _mm256_mul_ps(_mm256_castsi256_ps(powers), steps);
            }
        }
    }
}

// Eight zero points out of their bit stream, in which they take `bits` bytes.
INLINE __m256i eight_zeros(const qslm_matrix *matrix, unsigned bits, size_t index) {
    uint64_t packed = 0;
    memcpy(&packed, matrix->zeros + index / 8 * bits, bits);
    const uint64_t zeros = _pdep_u64(packed, 0x0101010101010101u * ((1u << bits) - 1));
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)zeros));
}

// What is taken off the sums of a tile in a group, for every 1 that the numbers of the token add up to there.
INLINE void tile_zeros(const qslm_matrix *matrix, unsigned bits, size_t index, __m256i zeros[2]) {
    if (matrix->kind == QSLM_SIGN || matrix->symmetric || matrix->one_scale) {
        zeros[0] = zeros[1] = _mm256_set1_epi32(matrix->kind == QSLM_SIGN ? 1 : qslm_zero(matrix, 0, 0));
    } else {
        zeros[0] = eight_zeros(matrix, bits, index);
        zeros[1] = eight_zeros(matrix, bits, index + 8);
    }
}

// total + the sums of a group times their scales, of eight rows: exact sums less the zero points, or of +1 and -1.
INLINE __m256 add_group(const qslm_matrix *matrix, __m256 total, __m256i codes, __m256 scales, __m256i zeros,
                        int32_t token) {
    if (matrix->kind == QSLM_SIGN) codes = _mm256_slli_epi32(codes, 1);
    const __m256i exact = _mm256_sub_epi32(codes, _mm256_mullo_epi32(zeros, _mm256_set1_epi32(token)));
    return _mm256_add_ps(total, _mm256_mul_ps(_mm256_cvtepi32_ps(exact), scales));
}

void qslm_avx2_by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y);

#endif
