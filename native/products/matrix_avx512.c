// AVX-512 with VNNI and GFNI by tiles: a lane of 32 bits is a row, and 64 codes are 16 rows by 4 columns, as they lie
// (layout.h). The bits of a plane are brought to their place by shifts, masks, and affine transformations over GF(2).
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_AVX512)

#include "products/matrix_avx512.h"

static bool usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni") && __builtin_cpu_supports("bmi2");
}

// The field of `plane` bits of slice k at bit `to`; planes begin at `offset` in the block.
INLINE __m512i field(const uint8_t *block, unsigned offset, unsigned plane, unsigned k, unsigned to) {
    const __m512i vector = _mm512_loadu_si512(block + offset + k / (8 / plane) * 64);
    return _mm512_gf2p8affine_epi64_epi8(vector, _mm512_set1_epi64(moving(plane, k % (8 / plane) * plane, to)), 0);
}

// (codes & mask) | more
INLINE __m512i masked_or(__m512i codes, int mask, __m512i more) {
    return _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8((char)mask), more, 0xea);
}

// Slice k of a block, the codes of columns 4k to 4k + 3 of its sixteen rows, of 5 to 8 bits. Shifts and masks where
// they suffice: affine transformations share their ports with the products.
INLINE __m512i wide_slice(const uint8_t *block, unsigned bits, unsigned k) {
    if (bits == 8) return _mm512_loadu_si512(block + 64 * k);
    const __m512i vector = _mm512_loadu_si512(block + k / 2 * 64);
    __m512i high = bits & 2 ? field(block, 64 * 4, 2, k, 4) : _mm512_setzero_si512();
    if (bits & 1) high = _mm512_or_si512(high, field(block, 64 * (bits - 1), 1, k, bits - 1));
    return masked_or(k % 2 ? _mm512_srli_epi32(vector, 4) : vector, 15, high);
}

// Up to 4 bits two slices are found at once, in the low and in the high half of every byte. Which slice that is, in the
// low (half 0) or the high (half 1) of pair n of four; the same holds of wide slices, one after the other.
INLINE unsigned slice_of(unsigned bits, unsigned n, unsigned half) {
    if (bits >= 4) return 2 * n + half;
    return bits == 1 ? n + 4 * half : n / 2 * 4 + n % 2 + 2 * half;
}

INLINE __m512i narrow_pair(const uint8_t *block, unsigned bits, unsigned n) {
    const unsigned shift = bits == 4 ? 0 : bits == 1 ? n : n % 2 * 2;
    const __m512i vector = _mm512_loadu_si512(block + (bits == 4 ? n : bits == 1 ? 0 : n / 2) * 64);
    __m512i shifted = shift ? _mm512_srli_epi32(vector, shift) : vector;
    if (bits != 3) {
        __asm__("" : "+v"(shifted)); // not loaded a second time by the second mask: loads are what is scarce
        return shifted;
    }
    const int64_t last = moving(1, slice_of(3, n, 0), 2) | moving(1, slice_of(3, n, 1), 6);
    return masked_or(shifted, 0x33, _mm512_gf2p8affine_epi64_epi8(_mm512_loadu_si512(block + 128),
                                                                  _mm512_set1_epi64(last), 0));
}

// The slices of pair n. The codes of the second are 16 times as large where `in_place`.
INLINE void two_slices(const uint8_t *block, unsigned bits, unsigned n, bool in_place, __m512i *codes) {
    if (bits > 4) {
        codes[0] = wide_slice(block, bits, 2 * n);
        codes[1] = wide_slice(block, bits, 2 * n + 1);
        return;
    }
    const __m512i pair = narrow_pair(block, bits, n), high = in_place ? pair : _mm512_srli_epi32(pair, 4);
    const int mask = (1 << bits) - 1;
    codes[0] = _mm512_and_si512(pair, _mm512_set1_epi8((char)mask));
    codes[1] = _mm512_and_si512(high, _mm512_set1_epi8((char)(in_place ? mask << 4 : mask)));
}

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

INLINE __m512i four_of(const int8_t *token) {
    int32_t four;
    memcpy(&four, token, 4);
    return _mm512_set1_epi32(four);
}

// `tiles` tiles from row `first` on, times `count` tokens.
INLINE void multiply_tiles(const part_of *part, unsigned bits, unsigned tiles, unsigned count, size_t first) {
    const qslm_matrix *matrix = part->matrix;
    const size_t whole = matrix->columns / QSLM_BLOCK_COLUMNS * QSLM_BLOCK_COLUMNS, tile_bytes = 2 * whole * bits;
    const size_t groups = qslm_groups(matrix);
    const uint8_t *block = matrix->codes + first / QSLM_TILE_ROWS * tile_bytes;
    __m512 totals[4][MOST_TOKENS];
UNROLL(4)
    for (unsigned tile = 0; tile < tiles; tile++) {
UNROLL(8)
        for (unsigned i = 0; i < count; i++) totals[tile][i] = _mm512_setzero_ps();
    }
    for (size_t group = 0, column = 0; group < groups; group++) {
        __m512i sums[4][MOST_TOKENS], others[4]; // two chains for one token, which would wait for its products
UNROLL(4)
        for (unsigned tile = 0; tile < tiles; tile++) {
            others[tile] = _mm512_setzero_si512();
UNROLL(8)
            for (unsigned i = 0; i < count; i++) sums[tile][i] = first_sums(matrix, bits, part->sums[i][group]);
        }
        const size_t end = group + 1 < groups ? column + matrix->group : whole;
        for (; column < end; column += QSLM_BLOCK_COLUMNS, block += 64 * bits) {
UNROLL(4)
            for (unsigned n = 0; n < 4; n++) {
UNROLL(4)
                for (unsigned tile = 0; tile < tiles; tile++) {
                    __m512i codes[2];
                    two_slices(block + tile * tile_bytes, bits, n, count == 1, codes);
                    for (unsigned half = 0; half < 2; half++) {
                        const int8_t *token = part->codes + column + 4 * slice_of(bits, n, half);
UNROLL(8)
                        for (unsigned i = 0; i < count; i++) {
                            __m512i *sum = half && count == 1 ? &others[tile] : &sums[tile][i];
                            *sum = _mm512_dpbusd_epi32(*sum, codes[half], four_of(token + i * part->stride));
                        }
                    }
                }
            }
        }
UNROLL(4)
        for (unsigned tile = 0; count == 1 && tile < tiles; tile++) {
            const __m512i other = bits > 4 ? others[tile] : _mm512_srai_epi32(others[tile], 4);
            sums[tile][0] = _mm512_add_epi32(sums[tile][0], other);
        }
UNROLL(4)
        for (unsigned tile = 0; tile < tiles; tile++) {
            const size_t row = first + tile * QSLM_TILE_ROWS, index = row * groups + group * QSLM_TILE_ROWS;
            const __m512 scales = sixteen_scales(matrix, row, index);
UNROLL(8)
            for (unsigned i = 0; i < count; i++) {
                __m512i codes = sums[tile][i];
                if (group + 1 == groups && whole < matrix->columns) {
                    codes = _mm512_add_epi32(codes, rest_of_tile(matrix, row, part->codes + i * part->stride));
                }
                const __m512i exact = exact_sums(matrix, codes, bits, index, part->sums[i][group]);
                const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scales);
                totals[tile][i] = _mm512_add_ps(totals[tile][i], scaled);
            }
        }
    }
UNROLL(4)
    for (unsigned tile = 0; tile < tiles; tile++) {
UNROLL(8)
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
static multiply_some *const ROWS[8][4] = {ROWS_OF(1), ROWS_OF(2), ROWS_OF(3), ROWS_OF(4),
                                          ROWS_OF(5), ROWS_OF(6), ROWS_OF(7), ROWS_OF(8)}; // (bits - 1, log2 tokens)

AVX512 static void by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
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

const qslm_kernels qslm_avx512_kernels = {"avx512-vnni", usable, by_tiles, qslm_avx512_by_columns};

#else
typedef int qslm_no_avx512; // a translation unit is not empty
#endif
