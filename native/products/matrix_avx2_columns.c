// AVX2 by columns: 32 codes are 32 rows of one column; those of two columns that fire are interleaved, so that a lane of
// 16 bits is a row. Pairs are added up there as long as they fit, then in 32 bits.
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_AVX2)

#include "products/matrix_avx2.h"

enum {
    MOST_BLOCKS = 8,                      // of rows, for which there are sums
    BLOCK_VECTORS = QSLM_COLUMN_ROWS / 8, // of eight sums
    QUARTERS = 4,                         // of 32 rows, of a block
    QUARTER_ROWS = 32,
    MOST_TOGETHER = 16,                   // columns that are added up in 16 bits
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

// How many columns are added up in 16 bits, where a pair adds 2 (2^bits - 1) 128 at most. Of 8 bits only one fits.
INLINE size_t columns_in_16_bits(unsigned bits) {
    return bits <= 4 ? MOST_TOGETHER : bits == 5 ? 8 : bits == 6 ? 4 : bits == 7 ? 2 : 1;
}

// Add pairs of columns times pairs of numbers to the sums of 32 rows.
INLINE void add_pairs(const uint8_t *const columns[MOST_TOGETHER], const int16_t *numbers, size_t pairs, size_t offset,
                      unsigned bits, unsigned q, __m256i sums[4]) {
    __m256i low = _mm256_setzero_si256(), high = low; // of rows 0 to 7 and 16 to 23, and of the others
    for (size_t i = 0; i < pairs; i++) {
        const __m256i one = quarter_column(columns[2 * i] + offset, bits, q);
        const __m256i other = quarter_column(columns[2 * i + 1] + offset, bits, q);
        const __m256i both = _mm256_set1_epi16(numbers[i]);
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(one, other), both));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(one, other), both));
    }
    sums[0] = _mm256_add_epi32(sums[0], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(low)));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(high)));
    sums[2] = _mm256_add_epi32(sums[2], _mm256_cvtepi16_epi32(_mm256_extracti128_si256(low, 1)));
    sums[3] = _mm256_add_epi32(sums[3], _mm256_cvtepi16_epi32(_mm256_extracti128_si256(high, 1)));
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
    for (size_t most = columns_in_16_bits(bits), count; from < to; from += count) {
        const uint8_t *columns[MOST_TOGETHER];
        int16_t numbers[MOST_TOGETHER / 2]; // pairs of bytes
        count = to - from < most ? to - from : most;
        const size_t pairs = (count + 1) / 2;
        for (size_t i = 0; i < count; i++) {
            columns[i] = start + part->firing[from + i] * column_bytes;
            if (from + i + AHEAD < part->count) { // they lie apart, so nothing else asks memory for them early
                fetch(start + part->firing[from + i + AHEAD] * column_bytes, blocks * 16 * bits);
            }
        }
        for (size_t i = 0; i < pairs; i++) {
            const bool alone = 2 * i + 1 == count; // then times 0 once more
            const int8_t pair[2] = {part->codes[part->firing[from + 2 * i]],
                                    alone ? 0 : part->codes[part->firing[from + 2 * i + 1]]};
            if (alone) columns[2 * i + 1] = columns[2 * i];
            memcpy(&numbers[i], pair, sizeof pair);
        }
        for (size_t block = 0; block < blocks; block++) {
UNROLL(4)
            for (unsigned q = 0; q < QUARTERS; q++) {
                add_pairs(columns, numbers, pairs, block * 16 * bits, bits, q,
                          sums + block * BLOCK_VECTORS + 4 * q);
            }
        }
    }
}

// The scales of all groups of some rows lie side by side, but are read group by group: too far apart to be foreseen.
INLINE void fetch_scales(const qslm_matrix *matrix, size_t first, size_t count) {
    const size_t bytes = matrix->scale_type == QSLM_SCALE_FLOAT32 ? 4 : matrix->scale_type == QSLM_SCALE_FLOAT16 ? 2 : 1;
    if (matrix->kind == QSLM_SIGN || matrix->one_scale) return;
    fetch(matrix->scales + bytes * first * qslm_groups(matrix), bytes * count);
}

// Rows [first, first + 128 * blocks) times one token.
INLINE void multiply_columns(const part_of *part, unsigned bits, bool plain, size_t first, size_t blocks) {
    const qslm_matrix copy = known(part->matrix, plain), *matrix = &copy;
    const size_t column_bytes = matrix->rows / QSLM_COLUMN_ROWS * 16 * bits, groups = part->groups;
    const uint8_t *start = matrix->codes + first / QSLM_COLUMN_ROWS * 16 * bits;
    const size_t vectors = blocks * BLOCK_VECTORS;
    __m256 totals[MOST_BLOCKS * BLOCK_VECTORS];
    fetch_scales(matrix, first, blocks * QSLM_COLUMN_ROWS * groups);
    for (size_t i = 0; i < vectors; i++) totals[i] = _mm256_setzero_ps();
    for (size_t group = 0, from = 0, to = 0; group < groups; group++, from = to) {
        __m256i sums[MOST_BLOCKS * BLOCK_VECTORS];
        for (size_t i = 0; i < vectors; i++) sums[i] = _mm256_setzero_si256();
        while (to < part->count && part->firing[to] < (group + 1) * matrix->group) to++;
        add_columns(part, bits, start, column_bytes, blocks, from, to, sums);
        for (size_t i = 0; i < vectors; i += 2) {
            const size_t row = first + 8 * i, index = row * groups + group * QSLM_TILE_ROWS;
            __m256 scales[2];
            __m256i zeros[2];
            tile_scales(matrix, row, index, scales);
            tile_zeros(matrix, bits, index, zeros);
            for (size_t j = i; j < i + 2; j++) {
                totals[j] = add_group(matrix, totals[j], sums[j], scales[j % 2], zeros[j % 2],
                                      part->sums[0][group]);
            }
        }
    }
    for (size_t i = 0; i < vectors; i++) {
        _mm256_storeu_ps(part->y + first + 8 * i, _mm256_mul_ps(totals[i], _mm256_set1_ps(part->scales[0])));
    }
}

#define DEFINE_COLUMNS(NAME, BITS, PLAIN)                                                        \
    AVX2 static void NAME##_##BITS(const part_of *part, size_t first, size_t last) {             \
        for (; first < last; first += MOST_BLOCKS * QSLM_COLUMN_ROWS) {                          \
            const size_t left = (last - first) / QSLM_COLUMN_ROWS;                               \
            multiply_columns(part, BITS, PLAIN, first, left < MOST_BLOCKS ? left : MOST_BLOCKS); \
        }                                                                                        \
    }
#define DEFINE_BITS(BITS) DEFINE_COLUMNS(plain, BITS, true) DEFINE_COLUMNS(any, BITS, false)
DEFINE_FOR_ALL_BITS

static multiply_some *const PLAIN[8] = FOR_ALL_BITS(plain), *const ANY[8] = FOR_ALL_BITS(any); // (bits - 1,)

AVX2 void qslm_avx2_by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last,
                               float *y) {
    int32_t sums[1][MOST_GROUPS];
    uint16_t firing[QSLM_MOST_COLUMNS];
    const size_t whole = matrix->rows / QSLM_COLUMN_ROWS * QSLM_COLUMN_ROWS, end = last < whole ? last : whole;
    for (size_t token = 0; token < tokens->tokens; token++) {
        const int8_t *codes = tokens->codes + token * tokens->stride;
        const part_of part = {.matrix = matrix,
                              .codes = codes,
                              .scales = tokens->scales + token,
                              .stride = tokens->stride,
                              .sums = (const int32_t(*)[MOST_GROUPS])sums,
                              .y = y + token * matrix->rows,
                              .groups = qslm_groups(matrix),
                              .firing = firing,
                              .count = find_firing(codes, matrix->columns, firing)};
        sum_groups(matrix, part.codes, sums[0]);
        (is_plain(matrix) ? PLAIN : ANY)[matrix->bits - 1](&part, first, end);
    }
    if (end < last) qslm_scalar_kernels.by_columns(matrix, tokens, end, last, y);
}

#else
typedef int qslm_no_avx2; // a translation unit is not empty
#endif
