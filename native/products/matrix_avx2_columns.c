// AVX2 by columns: 32 codes are 32 rows of one column; those of four columns that fire are interleaved, so that a lane of
// 32 bits is a row again.
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_AVX2)

#include "products/matrix_avx2.h"

enum {
    MOST_BLOCKS = 8,                      // of rows, for which there are sums
    BLOCK_VECTORS = QSLM_COLUMN_ROWS / 8, // of eight sums
    QUARTERS = 4,                         // of 32 rows, of a block
    QUARTER_ROWS = 32,
    AHEAD = 16,                           // columns between the one that is fetched and the one that is added
};

INLINE __m256i masked(__m256i vector, unsigned mask) {
    return _mm256_and_si256(vector, _mm256_set1_epi8((char)mask));
}

// Rows 32q to 32q + 31 of a block of one column.
INLINE __m256i quarter_column(const uint8_t *block, unsigned bits, unsigned q) {
    if (bits == 8) return _mm256_loadu_si256((const void *)(block + QUARTER_ROWS * q));
    const unsigned low = bits & 4, middle = bits & 2;
    __m256i codes = _mm256_setzero_si256();
    if (low) {
        const __m256i vector = _mm256_loadu_si256((const void *)(block + 32 * (q % 2)));
        codes = masked(q < 2 ? vector : _mm256_srli_epi16(vector, 4), 15);
    }
    if (middle) { // 32 rows of each of four slices
        const __m256i vector = _mm256_loadu_si256((const void *)(block + 16 * low));
        const __m256i field = masked(_mm256_srli_epi16(vector, (int)(2 * q)), 3);
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(field, (int)low));
    }
    if (bits & 1) { // 16 rows of each of eight slices
        const __m256i twice =
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(block + 16 * (low + middle))));
        const __m256i shifts = _mm256_set_epi64x(2 * q + 1, 2 * q + 1, 2 * q, 2 * q);
        const __m256i field = masked(_mm256_srlv_epi64(twice, shifts), 1);
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(field, (int)(low + middle)));
    }
    return codes;
}

// What four columns, interleaved, add to eight rows. Pairs of codes of 8 bits would not fit 16 bits: they are taken apart.
INLINE __m256i add_lanes(__m256i sums, __m256i codes, unsigned bits, __m256i token) {
    if (bits < 8) {
        const __m256i pairs = _mm256_maddubs_epi16(codes, token);
        return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    const __m256i even = _mm256_and_si256(codes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(codes, 8);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(token, 8), 8)));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(odd, _mm256_srai_epi16(token, 8)));
}

// Add four columns times four numbers to the sums of 32 rows. Sum 8 m + 4 l + i is that of row 16 l + 4 m + i.
INLINE void add_four(const __m256i columns[4], unsigned bits, __m256i token, __m256i *sums) {
    const __m256i low_ab = _mm256_unpacklo_epi8(columns[0], columns[1]);
    const __m256i high_ab = _mm256_unpackhi_epi8(columns[0], columns[1]);
    const __m256i low_cd = _mm256_unpacklo_epi8(columns[2], columns[3]);
    const __m256i high_cd = _mm256_unpackhi_epi8(columns[2], columns[3]);
    sums[0] = add_lanes(sums[0], _mm256_unpacklo_epi16(low_ab, low_cd), bits, token);
    sums[1] = add_lanes(sums[1], _mm256_unpackhi_epi16(low_ab, low_cd), bits, token);
    sums[2] = add_lanes(sums[2], _mm256_unpacklo_epi16(high_ab, high_cd), bits, token);
    sums[3] = add_lanes(sums[3], _mm256_unpackhi_epi16(high_ab, high_cd), bits, token);
}

// The sums of rows 8i to 8i + 7 of 32.
INLINE __m256i in_order(const __m256i *sums, size_t i) {
    const __m256i one = sums[i % 2 * 2], other = sums[i % 2 * 2 + 1];
    return i < 2 ? _mm256_permute2x128_si256(one, other, 0x20) : _mm256_permute2x128_si256(one, other, 0x31);
}

// The columns that fire, (count,).
AVX2 static size_t find_firing(const int8_t *token, size_t columns, uint16_t *firing) {
    size_t count = 0;
    for (size_t column = 0; column < columns; column += 32) { // zeros stand behind the last column
        const __m256i codes = _mm256_loadu_si256((const void *)(token + column));
        const __m256i silent = _mm256_cmpeq_epi8(codes, _mm256_setzero_si256());
        for (uint32_t mask = ~(uint32_t)_mm256_movemask_epi8(silent); mask != 0; mask &= mask - 1) {
            firing[count++] = (uint16_t)(column + (unsigned)__builtin_ctz(mask));
        }
    }
    return count;
}

// Add columns firing[from] to firing[to - 1] to the sums of `blocks` blocks of rows.
INLINE void add_columns(const part_of *part, unsigned bits, const uint8_t *start, size_t column_bytes, size_t blocks,
                        size_t from, size_t to, __m256i *sums) {
    for (size_t i = from; i < to; i += 4) {
        uint32_t four = 0;
        const uint8_t *columns[4];
        for (size_t j = 0; j < 4; j++) {
            const size_t which = part->firing[i + j < to ? i + j : i];
            columns[j] = start + which * column_bytes;
            if (i + j < to) four |= (uint32_t)(uint8_t)part->codes[which] << 8 * j;
            if (i + j + AHEAD < part->count) { // they lie apart, so nothing else asks memory for them early
                fetch(start + part->firing[i + j + AHEAD] * column_bytes, blocks * 16 * bits);
            }
        }
        const __m256i token = _mm256_set1_epi32((int32_t)four);
        for (size_t block = 0; block < blocks; block++) {
UNROLL(4)
            for (unsigned q = 0; q < QUARTERS; q++) {
                __m256i codes[4];
                for (size_t j = 0; j < 4; j++) codes[j] = quarter_column(columns[j] + block * 16 * bits, bits, q);
                add_four(codes, bits, token, sums + block * BLOCK_VECTORS + 4 * q);
            }
        }
    }
}

// Rows [first, first + 128 * blocks) times one token.
INLINE void multiply_columns(const part_of *part, unsigned bits, size_t first, size_t blocks) {
    const qslm_matrix *matrix = part->matrix;
    const size_t column_bytes = matrix->rows / QSLM_COLUMN_ROWS * 16 * bits, groups = qslm_groups(matrix);
    const uint8_t *start = matrix->codes + first / QSLM_COLUMN_ROWS * 16 * bits;
    const size_t vectors = blocks * BLOCK_VECTORS;
    __m256 totals[MOST_BLOCKS * BLOCK_VECTORS];
    for (size_t i = 0; i < vectors; i++) totals[i] = _mm256_setzero_ps();
    for (size_t group = 0, from = 0, to = 0; group < groups; group++, from = to) {
        __m256i sums[MOST_BLOCKS * BLOCK_VECTORS];
        for (size_t i = 0; i < vectors; i++) sums[i] = _mm256_setzero_si256();
        while (to < part->count && part->firing[to] < (group + 1) * matrix->group) to++;
        add_columns(part, bits, start, column_bytes, blocks, from, to, sums);
        for (size_t i = 0; i < vectors; i++) {
            const size_t row = first + 8 * i;
            const size_t index = row / QSLM_TILE_ROWS * QSLM_TILE_ROWS * groups + group * QSLM_TILE_ROWS + row % 16;
            totals[i] = add_group(matrix, totals[i], in_order(sums + i / 4 * 4, i % 4), bits,
                                  eight_scales(matrix, row, index), index, part->sums[0][group]);
        }
    }
    for (size_t i = 0; i < vectors; i++) {
        _mm256_storeu_ps(part->y + first + 8 * i, _mm256_mul_ps(totals[i], _mm256_set1_ps(part->scales[0])));
    }
}

#define DEFINE_COLUMNS(BITS)                                                                        \
    AVX2 static void columns_##BITS(const part_of *part, size_t first, size_t last) {               \
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

AVX2 void qslm_avx2_by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last,
                               float *y) {
    int32_t sums[1][MOST_GROUPS];
    uint16_t firing[QSLM_MOST_COLUMNS];
    const size_t whole = matrix->rows / QSLM_COLUMN_ROWS * QSLM_COLUMN_ROWS, end = last < whole ? last : whole;
    for (size_t token = 0; token < tokens->tokens; token++) {
        const part_of part = {matrix, tokens->codes + token * tokens->stride, tokens->scales + token, tokens->stride,
                              (const int32_t(*)[MOST_GROUPS])sums, y + token * matrix->rows, firing,
                              find_firing(tokens->codes + token * tokens->stride, matrix->columns, firing)};
        sum_groups(matrix, part.codes, sums[0]);
        COLUMNS[matrix->bits - 1](&part, first, end);
    }
    if (end < last) qslm_scalar_kernels.by_columns(matrix, tokens, end, last, y);
}

#else
typedef int qslm_no_avx2; // a translation unit is not empty
#endif
