// What the AVX-512 kernels by tiles and by columns share.
#ifndef QSLM_MATRIX_AVX512_H
#define QSLM_MATRIX_AVX512_H

#include <immintrin.h>

#include "products/matrix_inside.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,gfni,bmi2,f16c,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX512

enum { MOST_TOKENS = 8, MOST_GROUPS = QSLM_MOST_COLUMNS / QSLM_BLOCK_COLUMNS };

// The matrix over GF(2) that moves `plane` bits from bit `from` to bit `to` of every byte and clears the others.
INLINE int64_t moving(unsigned plane, unsigned from, unsigned to) {
    uint64_t rows = 0;
    for (unsigned bit = 0; bit < plane; bit++) rows |= (uint64_t)1 << (from + bit) << 8 * (7 - (to + bit));
    return (int64_t)rows;
}

// ---- scales -------------------------------------------------------------------------------------------------------

// The scales of rows [first, first + 16), of which the first stands at `index`.
INLINE __m512 sixteen_scales(const qslm_matrix *matrix, size_t first, size_t index) {
    if (matrix->kind == QSLM_SIGN || matrix->one_scale) return _mm512_set1_ps(qslm_scale(matrix, 0, 0));
    switch (matrix->scale_type) {
    case QSLM_SCALE_FLOAT16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(matrix->scales + 2 * index)));
    case QSLM_SCALE_FLOAT32:
        return _mm512_loadu_ps(matrix->scales + 4 * index);
    default:
        break;
    }
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(matrix->scales + index)));
    if (matrix->scale_type == QSLM_SCALE_STEPS) {
        return _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(qslm_single(matrix->step)));
    }
    const __m512i powers = _mm512_slli_epi32(_mm512_add_epi32(codes, _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(_mm512_castsi512_ps(powers), _mm512_loadu_ps(matrix->step + 4 * first));
}

// Sixteen zero points out of their bit stream: eight of b bits are b bytes.
INLINE __m512i sixteen_zeros(const qslm_matrix *matrix, unsigned bits, size_t index) {
    if (matrix->one_scale) return _mm512_set1_epi32(qslm_zero(matrix, 0, 0));
    const uint64_t mask = 0x0101010101010101u * ((1u << bits) - 1);
    const uint8_t *from = matrix->zeros + index / 8 * bits;
    uint64_t low = 0, high = 0;
    memcpy(&low, from, bits);
    memcpy(&high, from + bits, bits);
    return _mm512_cvtepu8_epi32(_mm_set_epi64x((int64_t)_pdep_u64(high, mask), (int64_t)_pdep_u64(low, mask)));
}

// Where the sums of a group begin: at what a zero point takes off that is the same in every row.
INLINE __m512i first_sums(const qslm_matrix *matrix, unsigned bits, int32_t token) {
    return _mm512_set1_epi32(matrix->kind == QSLM_INTEGER && matrix->symmetric ? -token * (1 << (bits - 1)) : 0);
}

// The exact sums of a group as they count: less the zero points of each row, or of +1 and -1.
INLINE __m512i exact_sums(const qslm_matrix *matrix, __m512i codes, unsigned bits, size_t index, int32_t token) {
    if (matrix->kind == QSLM_SIGN) return _mm512_sub_epi32(_mm512_slli_epi32(codes, 1), _mm512_set1_epi32(token));
    if (matrix->symmetric) return codes;
    return _mm512_sub_epi32(codes, _mm512_mullo_epi32(sixteen_zeros(matrix, bits, index), _mm512_set1_epi32(token)));
}

// The sum of a token in every group: (MOST_TOKENS, MOST_GROUPS).
typedef int32_t group_sums[MOST_TOKENS][MOST_GROUPS];

INLINE void sum_groups(const qslm_matrix *matrix, const int8_t *token, int32_t *sums) {
    const __m256i ones = _mm256_set1_epi8(1);
    for (size_t group = 0, column = 0; column < matrix->columns; group++) {
        __m256i sum = _mm256_setzero_si256();
        const size_t end = column + matrix->group < matrix->columns ? column + matrix->group : matrix->columns;
        for (; column < end; column += 32) { // zeros stand behind the last column
            sum = _mm256_dpbusd_epi32(sum, ones, _mm256_loadu_si256((const void *)(token + column)));
        }
        const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
        sums[group] = _mm_cvtsi128_si32(quarter) + _mm_extract_epi32(quarter, 1);
    }
}

// What a part of a product needs to know.
typedef struct {
    const qslm_matrix *matrix;
    const int8_t *codes;   // of the first of the tokens
    const float *scales;   // (tokens,)
    size_t stride;
    const int32_t (*sums)[MOST_GROUPS];
    float *y;              // of the first of the tokens
} part_of;
typedef void multiply_some(const part_of *part, size_t first, size_t last);

void qslm_avx512_by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y);

#endif
