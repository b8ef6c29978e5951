// AVX-512 with VNNI and GFNI: four unsigned codes times four signed numbers of the token in every lane of 32 bits.
//
// By tiles a lane is a row, and 64 codes are 16 rows by 4 columns, as they lie (layout.h). By columns 64 codes are 64
// rows of one column; those of four columns that fire are interleaved first. The bits of a plane are brought to their
// place in the code by one affine transformation over GF(2) of every byte.
#include "matrix_inside.h"

#if defined(QSLM_HAVE_AVX512)

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,gfni,bmi2,f16c,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX512

enum { MOST_TOKENS = 8, MOST_GROUPS = QSLM_MOST_COLUMNS / QSLM_BLOCK_COLUMNS };

static bool usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni") && __builtin_cpu_supports("bmi2");
}

// The matrix over GF(2) that moves `plane` bits from bit `from` to bit `to` of every byte and clears the others.
INLINE int64_t moving(unsigned plane, unsigned from, unsigned to) {
    uint64_t rows = 0;
    for (unsigned bit = 0; bit < plane; bit++) rows |= (uint64_t)1 << (from + bit) << 8 * (7 - (to + bit));
    return (int64_t)rows;
}

// ---- scales -------------------------------------------------------------------------------------------------------

INLINE __m512 sixteen_scales(const qslm_matrix *matrix, size_t first, size_t group) {
    if (matrix->kind == QSLM_SIGN || matrix->one_scale) return _mm512_set1_ps(qslm_scale(matrix, first, group));
    const size_t index = first * qslm_groups(matrix) + group * QSLM_TILE_ROWS;
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
INLINE __m512i sixteen_zeros(const qslm_matrix *matrix, unsigned bits, size_t first, size_t group) {
    if (matrix->symmetric) return _mm512_set1_epi32(1 << (bits - 1));
    if (matrix->one_scale) return _mm512_set1_epi32(qslm_zero(matrix, first, group));
    const size_t index = first * qslm_groups(matrix) + group * QSLM_TILE_ROWS;
    const uint64_t mask = 0x0101010101010101u * ((1u << bits) - 1);
    const uint8_t *from = matrix->zeros + index / 8 * bits;
    uint64_t low = 0, high = 0;
    memcpy(&low, from, bits);
    memcpy(&high, from + bits, bits);
    return _mm512_cvtepu8_epi32(_mm_set_epi64x((int64_t)_pdep_u64(high, mask), (int64_t)_pdep_u64(low, mask)));
}

// The exact sums of a group as they count: less the zero points, or of +1 and -1.
INLINE __m512i exact_sums(const qslm_matrix *matrix, __m512i codes, __m512i zeros, int32_t token) {
    const __m512i sum = _mm512_set1_epi32(token);
    if (matrix->kind == QSLM_SIGN) return _mm512_sub_epi32(_mm512_slli_epi32(codes, 1), sum);
    return _mm512_sub_epi32(codes, _mm512_mullo_epi32(zeros, sum));
}

// The sum of a token in every group: (MOST_TOKENS, MOST_GROUPS).
typedef int32_t group_sums[MOST_TOKENS][MOST_GROUPS];

AVX512 static void sum_groups(const qslm_matrix *matrix, const int8_t *token, int32_t *sums) {
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

// ---- by tiles -----------------------------------------------------------------------------------------------------

// The field of `plane` bits of columns 4k to 4k + 3, at bit `to`; planes begin at `offset` in the block.
INLINE __m512i field(const uint8_t *block, unsigned offset, unsigned plane, unsigned k, unsigned to) {
    const __m512i vector = _mm512_loadu_si512(block + offset + k / (8 / plane) * 64);
    return _mm512_gf2p8affine_epi64_epi8(vector, _mm512_set1_epi64(moving(plane, k % (8 / plane) * plane, to)), 0);
}

// The codes of columns 4k to 4k + 3 of the sixteen rows of a block.
INLINE __m512i codes_of(const uint8_t *block, unsigned bits, unsigned k) {
    if (bits == 8) return _mm512_loadu_si512(block + 64 * k);
    const unsigned low = bits & 4, middle = bits & 2;
    if (bits == 4) {
        const __m512i vector = _mm512_loadu_si512(block + k / 2 * 64), mask = _mm512_set1_epi8(15);
        return _mm512_and_si512(k % 2 ? _mm512_srli_epi32(vector, 4) : vector, mask);
    }
    __m512i codes = _mm512_setzero_si512();
    if (low) codes = field(block, 0, 4, k, 0);
    if (middle) codes = _mm512_or_si512(codes, field(block, 64 * low, 2, k, low));
    if (bits & 1) codes = _mm512_or_si512(codes, field(block, 64 * (low + middle), 1, k, low + middle));
    return codes;
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

// Columns behind the last block, of sixteen rows.
AVX512 static __m512i rest_of_tile(const qslm_matrix *matrix, size_t first, const int8_t *token) {
    const size_t left = matrix->columns % QSLM_BLOCK_COLUMNS, whole = matrix->columns - left;
    const uint8_t *rest =
        matrix->codes + qslm_rest_offset(matrix->rows, matrix->columns, matrix->bits, QSLM_BY_TILES);
    int32_t sums[QSLM_TILE_ROWS];
    for (size_t row = 0; row < QSLM_TILE_ROWS; row++) {
        sums[row] = qslm_stream_product(rest, (first + row) * left, left, matrix->bits, token + whole);
    }
    return _mm512_loadu_si512(sums);
}

// `tiles` tiles from row `first` on, times `count` tokens.
INLINE void multiply_tiles(const part_of *part, unsigned bits, unsigned tiles, unsigned count, size_t first) {
    const qslm_matrix *matrix = part->matrix;
    const size_t whole = matrix->columns / QSLM_BLOCK_COLUMNS * QSLM_BLOCK_COLUMNS, tile_bytes = 2 * whole * bits;
    const size_t groups = qslm_groups(matrix);
    const uint8_t *block = matrix->codes + first / QSLM_TILE_ROWS * tile_bytes;
    __m512 totals[4][MOST_TOKENS];
    for (unsigned tile = 0; tile < tiles; tile++) {
        for (unsigned i = 0; i < count; i++) totals[tile][i] = _mm512_setzero_ps();
    }
    for (size_t group = 0, column = 0; group < groups; group++) {
        __m512i sums[4][MOST_TOKENS];
        for (unsigned tile = 0; tile < tiles; tile++) {
            for (unsigned i = 0; i < count; i++) sums[tile][i] = _mm512_setzero_si512();
        }
        const size_t end = group + 1 < groups ? column + matrix->group : whole;
        for (; column < end; column += QSLM_BLOCK_COLUMNS, block += 64 * bits) {
#pragma GCC unroll 8
            for (unsigned k = 0; k < 8; k++) {
                __m512i token[MOST_TOKENS];
                for (unsigned i = 0; i < count; i++) {
                    int32_t four;
                    memcpy(&four, part->codes + i * part->stride + column + 4 * k, 4);
                    token[i] = _mm512_set1_epi32(four);
                }
                for (unsigned tile = 0; tile < tiles; tile++) {
                    const __m512i codes = codes_of(block + tile * tile_bytes, bits, k);
                    for (unsigned i = 0; i < count; i++) {
                        sums[tile][i] = _mm512_dpbusd_epi32(sums[tile][i], codes, token[i]);
                    }
                }
            }
        }
        for (unsigned tile = 0; tile < tiles; tile++) {
            const size_t row = first + tile * QSLM_TILE_ROWS;
            const __m512 scales = sixteen_scales(matrix, row, group);
            const __m512i zeros = sixteen_zeros(matrix, bits, row, group);
            for (unsigned i = 0; i < count; i++) {
                __m512i codes = sums[tile][i];
                if (group + 1 == groups && whole < matrix->columns) {
                    codes = _mm512_add_epi32(codes, rest_of_tile(matrix, row, part->codes + i * part->stride));
                }
                const __m512i exact = exact_sums(matrix, codes, zeros, part->sums[i][group]);
                const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scales);
                totals[tile][i] = _mm512_add_ps(totals[tile][i], scaled);
            }
        }
    }
    for (unsigned tile = 0; tile < tiles; tile++) {
        for (unsigned i = 0; i < count; i++) {
            const __m512 scaled = _mm512_mul_ps(totals[tile][i], _mm512_set1_ps(part->scales[i]));
            _mm512_storeu_ps(part->y + i * matrix->rows + first + tile * QSLM_TILE_ROWS, scaled);
        }
    }
}

// Whole tiles of rows [first, last), four at a time where registers suffice.
INLINE void multiply_rows(const part_of *part, unsigned bits, unsigned count, size_t first, size_t last) {
    const unsigned tiles = count > 4 ? 2 : 4;
    for (; first + tiles * QSLM_TILE_ROWS <= last; first += tiles * QSLM_TILE_ROWS) {
        multiply_tiles(part, bits, tiles, count, first);
    }
    for (; first + QSLM_TILE_ROWS <= last; first += QSLM_TILE_ROWS) multiply_tiles(part, bits, 1, count, first);
}

#define DEFINE_ROWS(BITS, COUNT)                                                                      \
    AVX512 static void rows_##BITS##_##COUNT(const part_of *part, size_t first, size_t last) {        \
        multiply_rows(part, BITS, COUNT, first, last);                                                \
    }
#define DEFINE_BITS(BITS) DEFINE_ROWS(BITS, 1) DEFINE_ROWS(BITS, 2) DEFINE_ROWS(BITS, 4) DEFINE_ROWS(BITS, 8)
DEFINE_BITS(1)
DEFINE_BITS(2)
DEFINE_BITS(3)
DEFINE_BITS(4)
DEFINE_BITS(5)
DEFINE_BITS(6)
DEFINE_BITS(7)
DEFINE_BITS(8)

#define ROWS_OF(BITS) {rows_##BITS##_1, rows_##BITS##_2, rows_##BITS##_4, rows_##BITS##_8}
typedef void multiply_some(const part_of *part, size_t first, size_t last);
static multiply_some *const ROWS[8][4] = {ROWS_OF(1), ROWS_OF(2), ROWS_OF(3), ROWS_OF(4),
                                          ROWS_OF(5), ROWS_OF(6), ROWS_OF(7), ROWS_OF(8)}; // (bits - 1, log2 tokens)

static void by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    group_sums sums;
    const size_t whole = matrix->rows / QSLM_TILE_ROWS * QSLM_TILE_ROWS, end = last < whole ? last : whole;
    for (size_t token = 0; token < tokens->tokens;) {
        unsigned power = 3;
        while ((size_t)1 << power > tokens->tokens - token) power--;
        const part_of part = {matrix, tokens->codes + token * tokens->stride, tokens->scales + token, tokens->stride,
                              (const int32_t(*)[MOST_GROUPS])sums, y + token * matrix->rows};
        for (unsigned i = 0; i < 1u << power; i++) sum_groups(matrix, part.codes + i * tokens->stride, sums[i]);
        ROWS[matrix->bits - 1][power](&part, first, end);
        token += (size_t)1 << power;
    }
    if (end < last) qslm_scalar_kernels.by_tiles(matrix, tokens, end, last, y);
}

// ---- by columns ---------------------------------------------------------------------------------------------------

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
        for (size_t i = 0; i < blocks * BLOCK_VECTORS; i++) sums[i] = _mm512_setzero_si512();
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
                const size_t row = first + (i + j) * 16;
                const __m512i zeros = sixteen_zeros(matrix, bits, row, group);
                const __m512i exact = exact_sums(matrix, rows[j], zeros, part->sums[0][group]);
                const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), sixteen_scales(matrix, row, group));
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

static void by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
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

const qslm_kernels qslm_avx512_kernels = {"avx512-vnni", usable, by_tiles, by_columns};

#else
typedef int qslm_no_avx512; // a translation unit is not empty
#endif
