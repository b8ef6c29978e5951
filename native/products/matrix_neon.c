// NEON with and without dot product: a lane of 32 bits is a row, and 16 codes are 4 rows by 4 columns (layout.h).
//
// Codes of 8 bits do not fit signed bytes: less 128 they do, and 128 times the token is added.
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_NEON)

#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define INLINE static inline __attribute__((always_inline))

enum { HAS_DOT_PRODUCT = 1 << 20 }; // HWCAP_ASIMDDP of Linux

static bool usable(void) {
    return true;
}

static bool dot_usable(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HAS_DOT_PRODUCT) != 0;
#else
    return false;
#endif
}

// The codes of columns 4k to 4k + 3 of rows 4 * quarter to 4 * quarter + 3 of a block; of 8 bits less 128.
INLINE int8x16_t codes_of(const uint8_t *block, unsigned bits, unsigned k, unsigned quarter) {
    uint8x16_t codes = vdupq_n_u8(0);
    unsigned low = 0;
    for (unsigned plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        const unsigned slices = 8 / plane, shift = k % slices * plane;
        const uint8x16_t vector = vld1q_u8(block + 64 * low + k / slices * 64 + 16 * quarter);
        const uint8x16_t mask = vdupq_n_u8((uint8_t)((1u << plane) - 1));
        const uint8x16_t field = vandq_u8(vshlq_u8(vector, vdupq_n_s8(-(int8_t)shift)), mask);
        codes = vorrq_u8(codes, vshlq_u8(field, vdupq_n_s8((int8_t)low)));
        low += plane;
    }
    return vreinterpretq_s8_u8(bits == 8 ? veorq_u8(codes, vdupq_n_u8(128)) : codes);
}

INLINE int8x16_t four_of(const int8_t *token) {
    int32_t four;
    memcpy(&four, token, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// The sum of four products of every lane.
INLINE int32x4_t sum_of_four(int32x4_t sum, int8x16_t codes, int8x16_t token) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(token)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(codes, token));
    return vaddq_s32(sum, vpaddq_s32(low, high));
}

// What the codes of 8 bits lack.
INLINE int32_t lacking(size_t count, unsigned bits, const int8_t *token) {
    int32_t sum = 0;
    for (size_t i = 0; bits == 8 && i < count * QSLM_BLOCK_COLUMNS; i++) sum += token[i];
    return 128 * sum;
}

#define DEFINE_ADD(NAME, TARGET, SUM)                                                                                \
    TARGET static void NAME(const uint8_t *block, size_t count, unsigned bits, const int8_t *token, int32_t *sums) { \
        const int32x4_t more = vdupq_n_s32(lacking(count, bits, token));                                             \
        int32x4_t sum[4];                                                                                            \
        for (unsigned i = 0; i < 4; i++) sum[i] = vaddq_s32(vld1q_s32(sums + 4 * i), more);                          \
        for (; count > 0; count--, block += 64 * bits, token += QSLM_BLOCK_COLUMNS) {                                \
            for (unsigned k = 0; k < 8; k++) {                                                                       \
                const int8x16_t four = four_of(token + 4 * k);                                                       \
                for (unsigned i = 0; i < 4; i++) sum[i] = SUM(sum[i], codes_of(block, bits, k, i), four);            \
            }                                                                                                        \
        }                                                                                                            \
        for (unsigned i = 0; i < 4; i++) vst1q_s32(sums + 4 * i, sum[i]);                                            \
    }

DEFINE_ADD(add_blocks, , sum_of_four)
DEFINE_ADD(add_dot, DOT, vdotq_s32)

static void by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    qslm_multiply_tiles(matrix, add_blocks, tokens, first, last, y);
}

static void dot_by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    qslm_multiply_tiles(matrix, add_dot, tokens, first, last, y);
}

static void by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    qslm_scalar_kernels.by_columns(matrix, tokens, first, last, y);
}

const qslm_kernels qslm_neon_kernels = {"neon", usable, by_tiles, by_columns};
const qslm_kernels qslm_neon_dot_kernels = {"neon-dot", dot_usable, dot_by_tiles, by_columns};

#else
typedef int qslm_no_neon; // a translation unit is not empty
#endif
