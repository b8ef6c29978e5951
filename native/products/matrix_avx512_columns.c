// AVX-512 by columns: 64 codes are 64 rows of one column; those of four columns that fire are interleaved, so that a
// lane of 32 bits is a row again.
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_AVX512)

#include "products/matrix_avx512.h"

enum { MOST_BLOCKS = 8, BLOCK_VECTORS = QSLM_COLUMN_ROWS / 16 };

// Sixty-four codes of a column, the first or the second half of a block of 128 rows.
INLINE __m512i half_column(const uint8_t *block, unsigned bits, unsigned half) {
    if (bits == 8) return _mm512_loadu_si512(block + 64 * half);
    const unsigned low = bits & 4, middle = bits & 2;
    __m512i codes = _mm512_setzero_si512();
    if (low) {
        const __m512i matrix = _mm512_set1_epi64(half ? moving(4, 4, 0) : moving(4, 0, 0));
        codes = _mm512_gf2p8affine_epi64_epi8(_mm512_loadu_si512(block), matrix, 0);
    }
    if (middle) { // 32 rows of each of four slices
        const __m512i twice = _mm512_broadcast_i32x8(_mm256_loadu_si256((const void *)(block + 16 * low)));
        const int64_t one = half ? moving(2, 4, low) : moving(2, 0, low);
        const int64_t other = half ? moving(2, 6, low) : moving(2, 2, low);
        const __m512i matrix = _mm512_set_epi64(other, other, other, other, one, one, one, one);
        codes = _mm512_or_si512(codes, _mm512_gf2p8affine_epi64_epi8(twice, matrix, 0));
    }
    if (bits & 1) { // 16 rows of each of eight slices
        const unsigned to = low + middle;
        const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(block + 16 * to)));
        const int64_t a = half ? moving(1, 4, to) : moving(1, 0, to), b = half ? moving(1, 5, to) : moving(1, 1, to);
        const int64_t c = half ? moving(1, 6, to) : moving(1, 2, to), d = half ? moving(1, 7, to) : moving(1, 3, to);
        const __m512i matrix = _mm512_set_epi64(d, d, c, c, b, b, a, a);
        codes = _mm512_or_si512(codes, _mm512_gf2p8affine_epi64_epi8(four, matrix, 0));
    }
    return codes;
}

// Add four columns times four numbers to the sums of 64 rows. Sum 16 m + 4 l + i is that of row 16 l + 4 m + i.
INLINE void add_four(const __m512i columns[4], __m512i token, __m512i *sums) {
    const __m512i low_ab = _mm512_unpacklo_epi8(columns[0], columns[1]);
    const __m512i high_ab = _mm512_unpackhi_epi8(columns[0], columns[1]);
    const __m512i low_cd = _mm512_unpacklo_epi8(columns[2], columns[3]);
    const __m512i high_cd = _mm512_unpackhi_epi8(columns[2], columns[3]);
    sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_unpacklo_epi16(low_ab, low_cd), token);
    sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_unpackhi_epi16(low_ab, low_cd), token);
    sums[2] = _mm512_dpbusd_epi32(sums[2], _mm512_unpacklo_epi16(high_ab, high_cd), token);
    sums[3] = _mm512_dpbusd_epi32(sums[3], _mm512_unpackhi_epi16(high_ab, high_cd), token);
}

// The sums of 64 rows in the order of the rows: a transposition of four by four lanes of 128 bits.
INLINE void in_order(const __m512i *sums, __m512i *rows) {
    const __m512i a = _mm512_shuffle_i32x4(sums[0], sums[1], 0x44), b = _mm512_shuffle_i32x4(sums[0], sums[1], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(sums[2], sums[3], 0x44), d = _mm512_shuffle_i32x4(sums[2], sums[3], 0xee);
    rows[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    rows[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    rows[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    rows[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// The columns of [first, end) that fire, as (count,); `first` is a multiple of 32.
AVX512 static size_t find_firing(const int8_t *token, size_t first, size_t end, uint16_t *firing) {
    size_t count = 0;
    for (size_t column = first; column < end; column += 32) {
        const __m256i codes = _mm256_loadu_si256((const void *)(token + column));
        for (uint32_t mask = _mm256_test_epi8_mask(codes, codes); mask != 0; mask &= mask - 1) {
            firing[count++] = (uint16_t)(column + (unsigned)__builtin_ctz(mask));
        }
    }
    return count;
}

// Rows [first, first + 128 * blocks) times one token.
INLINE void multiply_columns(const part_of *part, unsigned bits, size_t first, size_t blocks) {
    const qslm_matrix *matrix = part->matrix;
    const size_t column_bytes = matrix->rows / QSLM_COLUMN_ROWS * 16 * bits, groups = qslm_groups(matrix);
    const uint8_t *start = matrix->codes + first / QSLM_COLUMN_ROWS * 16 * bits;
    __m512 totals[MOST_BLOCKS * BLOCK_VECTORS];
    uint16_t firing[QSLM_MOST_COLUMNS / 16]; // of a part of a group
    for (size_t i = 0; i < blocks * BLOCK_VECTORS; i++) totals[i] = _mm512_setzero_ps();
    for (size_t group = 0, column = 0; group < groups; group++) {
        __m512i sums[MOST_BLOCKS * BLOCK_VECTORS];
        const __m512i from = first_sums(matrix, bits, part->sums[0][group]);
        for (size_t i = 0; i < blocks * BLOCK_VECTORS; i++) sums[i] = from;
        const size_t end = group + 1 < groups ? column + matrix->group : matrix->columns;
        while (column < end) {
            const size_t most = sizeof firing / sizeof *firing, stop = end - column > most ? column + most : end;
            const size_t count = find_firing(part->codes, column, stop, firing);
            for (size_t i = 0; i < count; i += 4) {
                uint32_t four = 0;
                const uint8_t *from[4];
                for (size_t j = 0; j < 4; j++) {
                    const size_t which = firing[i + j < count ? i + j : i];
                    from[j] = start + which * column_bytes;
                    if (i + j < count) four |= (uint32_t)(uint8_t)part->codes[which] << 8 * j;
                }
                const __m512i token = _mm512_set1_epi32((int32_t)four);
                for (size_t block = 0; block < blocks; block++) {
                    for (unsigned half = 0; half < 2; half++) {
                        __m512i columns[4];
                        for (size_t j = 0; j < 4; j++) {
                            columns[j] = half ? half_column(from[j] + block * 16 * bits, bits, 1)
                                              : half_column(from[j] + block * 16 * bits, bits, 0);
                        }
                        add_four(columns, token, sums + block * BLOCK_VECTORS + half * 4);
                    }
                }
            }
            column = stop;
        }
        for (size_t i = 0; i < blocks * BLOCK_VECTORS; i += 4) {
            __m512i rows[4];
            in_order(sums + i, rows);
            for (size_t j = 0; j < 4; j++) {
                const size_t row = first + (i + j) * 16, index = row * groups + group * QSLM_TILE_ROWS;
                const __m512i exact = exact_sums(matrix, rows[j], bits, index, part->sums[0][group]);
                const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), sixteen_scales(matrix, row, index));
                totals[i + j] = _mm512_add_ps(totals[i + j], scaled);
            }
        }
    }
    for (size_t i = 0; i < blocks * BLOCK_VECTORS; i++) {
        _mm512_storeu_ps(part->y + first + i * 16, _mm512_mul_ps(totals[i], _mm512_set1_ps(part->scales[0])));
    }
}

#define DEFINE_COLUMNS(BITS)                                                                        \
    AVX512 static void columns_##BITS(const part_of *part, size_t first, size_t last) {             \
        for (; first < last; first += MOST_BLOCKS * QSLM_COLUMN_ROWS) {                             \
            const size_t blocks = (last - first) / QSLM_COLUMN_ROWS;                                \
            multiply_columns(part, BITS, first, blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);       \
        }                                                                                           \
    }
DEFINE_COLUMNS(1)
DEFINE_COLUMNS(2)
DEFINE_COLUMNS(3)
DEFINE_COLUMNS(4)
DEFINE_COLUMNS(5)
DEFINE_COLUMNS(6)
DEFINE_COLUMNS(7)
DEFINE_COLUMNS(8)

static multiply_some *const COLUMNS[8] = {columns_1, columns_2, columns_3, columns_4,
                                          columns_5, columns_6, columns_7, columns_8}; // (bits - 1,)

AVX512 void qslm_avx512_by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last,
                                   float *y) {
    int32_t sums[1][MOST_GROUPS];
    const size_t whole = matrix->rows / QSLM_COLUMN_ROWS * QSLM_COLUMN_ROWS, end = last < whole ? last : whole;
    for (size_t token = 0; token < tokens->tokens; token++) {
        const part_of part = {matrix, tokens->codes + token * tokens->stride, tokens->scales + token, tokens->stride,
                              (const int32_t(*)[MOST_GROUPS])sums, y + token * matrix->rows};
        sum_groups(matrix, part.codes, sums[0]);
        COLUMNS[matrix->bits - 1](&part, first, end);
    }
    if (end < last) qslm_scalar_kernels.by_columns(matrix, tokens, end, last, y);
}

#else
typedef int qslm_no_avx512; // a translation unit is not empty
#endif
