// AVX2: pairs of codes times pairs of numbers in 16 bits, then pairs of these in 32 (layout.h: a lane is a row).
//
// A pair of 16 bits saturates above 7 bits of a code, so 8 bits are taken as two times 4.
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_AVX2)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline)) AVX2

static bool usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

// The codes of columns 4k to 4k + 3 of eight rows of a block, the first or the second half of the sixteen.
INLINE __m256i codes_of(const uint8_t *block, unsigned bits, unsigned k, unsigned half) {
    __m256i codes = _mm256_setzero_si256();
    unsigned low = 0;
    for (unsigned plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        const unsigned slices = 8 / plane, shift = k % slices * plane;
        const __m256i vector = _mm256_loadu_si256((const void *)(block + 64 * low + k / slices * 64 + 32 * half));
        const __m256i mask = _mm256_set1_epi8((char)((1u << plane) - 1));
        const __m256i field = _mm256_and_si256(_mm256_srli_epi16(vector, (int)shift), mask);
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(field, (int)low));
        low += plane;
    }
    return codes;
}

// Four products a lane, added up; exact in 16 bits for codes of at most 7 bits.
INLINE __m256i sum_of_four(__m256i codes, __m256i token) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, token), _mm256_set1_epi16(1));
}

INLINE __m256i products(__m256i codes, unsigned bits, __m256i token) {
    if (bits < 8) return sum_of_four(codes, token);
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i high = sum_of_four(_mm256_and_si256(_mm256_srli_epi16(codes, 4), mask), token);
    return _mm256_add_epi32(sum_of_four(_mm256_and_si256(codes, mask), token), _mm256_slli_epi32(high, 4));
}

INLINE void add_bits(const uint8_t *block, size_t count, unsigned bits, const int8_t *token, int32_t *sums) {
    __m256i low = _mm256_loadu_si256((const void *)sums), high = _mm256_loadu_si256((const void *)(sums + 8));
    for (; count > 0; count--, block += 64 * bits, token += QSLM_BLOCK_COLUMNS) {
#pragma GCC unroll 8
        for (unsigned k = 0; k < 8; k++) {
            int32_t four;
            memcpy(&four, token + 4 * k, 4);
            const __m256i numbers = _mm256_set1_epi32(four);
            low = _mm256_add_epi32(low, products(codes_of(block, bits, k, 0), bits, numbers));
            high = _mm256_add_epi32(high, products(codes_of(block, bits, k, 1), bits, numbers));
        }
    }
    _mm256_storeu_si256((void *)sums, low);
    _mm256_storeu_si256((void *)(sums + 8), high);
}

// One copy for every number of bits.
AVX2 static void add_blocks(const uint8_t *block, size_t count, unsigned bits, const int8_t *token, int32_t *sums) {
    switch (bits) {
    case 1:
        add_bits(block, count, 1, token, sums);
        break;
    case 2:
        add_bits(block, count, 2, token, sums);
        break;
    case 3:
        add_bits(block, count, 3, token, sums);
        break;
    case 4:
        add_bits(block, count, 4, token, sums);
        break;
    case 5:
        add_bits(block, count, 5, token, sums);
        break;
    case 6:
        add_bits(block, count, 6, token, sums);
        break;
    case 7:
        add_bits(block, count, 7, token, sums);
        break;
    default:
        add_bits(block, count, 8, token, sums);
    }
}

static void by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    qslm_multiply_tiles(matrix, add_blocks, tokens, first, last, y);
}

static void by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    qslm_scalar_kernels.by_columns(matrix, tokens, first, last, y);
}

const qslm_kernels qslm_avx2_kernels = {"avx2", usable, by_tiles, by_columns};

#else
typedef int qslm_no_avx2; // a translation unit is not empty
#endif
