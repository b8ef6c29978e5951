// AVX2 by tiles: a lane of 32 bits is a row, and 32 codes are 8 rows by 4 columns, as they lie (layout.h). Pairs of codes
// times pairs of numbers are added up in 16 bits as long as they fit, then pairs of these in 32.
#include "products/matrix_inside.h"

#if defined(QSLM_HAVE_AVX2)

#include "products/matrix_avx2.h"

static bool usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); // and F16C, which came before AVX2
}

INLINE __m256i shifted(__m256i vector, int left) {
    return left > 0 ? _mm256_slli_epi16(vector, left) : left < 0 ? _mm256_srli_epi16(vector, -left) : vector;
}

// The codes of columns 4k to 4k + 3 of eight rows of a block, the first or the second half of the sixteen.
INLINE __m256i slice(const uint8_t *block, unsigned bits, unsigned k, unsigned half) {
    if (bits == 8) return _mm256_loadu_si256((const void *)(block + 64 * k + 32 * half));
    __m256i codes = _mm256_setzero_si256();
    unsigned low = 0;
UNROLL(3)
    for (unsigned plane = 4; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        const unsigned slices = 8 / plane;
        const __m256i vector = _mm256_loadu_si256((const void *)(block + 64 * low + k / slices * 64 + 32 * half));
        const __m256i mask = _mm256_set1_epi8((char)(((1u << plane) - 1) << low));
        const __m256i field = _mm256_and_si256(shifted(vector, (int)low - (int)(k % slices * plane)), mask);
        codes = low > 0 ? _mm256_or_si256(codes, field) : field;
        low += plane;
    }
    return codes;
}

// How many slices of a block are added up in 16 bits, where every lane of a slice adds 2 (2^bits - 1) 128 at most; and
// how many blocks, where that is all eight slices: where it is fewer, a block leaves nothing there.
INLINE unsigned slices_in_16_bits(unsigned bits) {
    return bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
}

INLINE size_t blocks_in_16_bits(unsigned bits) {
    return bits == 1 ? 15 : bits == 2 ? 5 : bits == 3 ? 2 : 1;
}

INLINE __m256i four_of(const int8_t *token) {
    int32_t four;
    memcpy(&four, token, 4);
    return _mm256_set1_epi32(four);
}

// The sum, at this point of the program: a compiler that is free to add up in another order, as it is with integers,
// keeps more partial sums than there are registers.
INLINE __m256i settled(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

INLINE __m256i pairs_of(__m256i words) {
    return _mm256_madd_epi16(words, _mm256_set1_epi16(1));
}

// Four products a lane of codes of 8 bits: a pair would not fit 16 bits, so even and odd columns are taken apart.
INLINE __m256i add_wide(__m256i sum, __m256i codes, __m256i token) {
    const __m256i even = _mm256_and_si256(codes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(codes, 8);
    const __m256i even_numbers = _mm256_srai_epi16(_mm256_slli_epi16(token, 8), 8);
    sum = settled(_mm256_add_epi32(sum, _mm256_madd_epi16(even, even_numbers)));
    return settled(_mm256_add_epi32(sum, _mm256_madd_epi16(odd, _mm256_srai_epi16(token, 8))));
}

// How far before their use codes are asked for: as far as the next tiles lie, where caches hold so much. What the
// processor asks for by itself ends with a page of memory, and a tile is hardly longer.
INLINE size_t fetched_ahead(size_t tile_bytes, unsigned tiles) {
    return tiles * tile_bytes <= 16384 ? tiles * tile_bytes : 2048;
}

// `blocks` blocks of `halves` halves of tiles, 32 * `tiles` columns, times `count` tokens, added to the sums.
INLINE void add_blocks(const part_of *part, const uint8_t *block, size_t tile_bytes, size_t blocks, unsigned bits,
                       unsigned halves, unsigned count, const int8_t *token, __m256i sums[4][MOST_TOKENS]) {
    const unsigned most = slices_in_16_bits(bits);
    __m256i words[4][MOST_TOKENS];
UNROLL(4)
    for (unsigned half = 0; half < halves; half++) {
UNROLL(4)
        for (unsigned i = 0; i < count; i++) words[half][i] = _mm256_setzero_si256();
    }
    const size_t ahead = fetched_ahead(tile_bytes, halves / 2);
    for (; blocks > 0; blocks--, block += 64 * bits, token += QSLM_BLOCK_COLUMNS) {
        for (unsigned half = 0; count == 1 && half < halves; half += 2) {
            fetch(block + half / 2 * tile_bytes + ahead, 64 * bits);
        }
UNROLL(8)
        for (unsigned k = 0; k < 8; k++) {
UNROLL(4)
            for (unsigned half = 0; half < halves; half++) {
                const __m256i codes = slice(block + half / 2 * tile_bytes, bits, k, half % 2);
UNROLL(4)
                for (unsigned i = 0; i < count; i++) {
                    const __m256i numbers = four_of(token + i * part->stride + 4 * k);
                    if (bits == 8) {
                        sums[half][i] = add_wide(sums[half][i], codes, numbers);
                        continue;
                    }
                    const __m256i products = _mm256_maddubs_epi16(codes, numbers);
                    const bool fresh = most < 8 && k % most == 0;
                    words[half][i] = settled(fresh ? products : _mm256_add_epi16(words[half][i], products));
                    if (most < 8 && k % most == most - 1) {
                        sums[half][i] = settled(_mm256_add_epi32(sums[half][i], pairs_of(words[half][i])));
                    }
                }
            }
        }
    }
UNROLL(4)
    for (unsigned half = 0; most == 8 && half < halves; half++) {
UNROLL(4)
        for (unsigned i = 0; i < count; i++) {
            sums[half][i] = _mm256_add_epi32(sums[half][i], pairs_of(words[half][i]));
        }
    }
}

// Columns behind the last block, of eight rows.
AVX2 static __m256i rest_of_rows(const qslm_matrix *matrix, size_t first, const int8_t *token) {
    const size_t left = matrix->columns % QSLM_BLOCK_COLUMNS, whole = matrix->columns - left;
    const uint8_t *rest =
        matrix->codes + qslm_rest_offset(matrix->rows, matrix->columns, matrix->bits, QSLM_BY_TILES);
    int32_t sums[8];
    for (size_t row = 0; row < 8; row++) {
        sums[row] = qslm_stream_product(rest, (first + row) * left, left, matrix->bits, token + whole);
    }
    return _mm256_loadu_si256((const void *)sums);
}

// The sums of a group of `tiles` tiles and `count` tokens, times their scales, are added to the totals.
INLINE void add_scaled(const part_of *part, const qslm_matrix *matrix, unsigned bits, unsigned tiles, unsigned count,
                       size_t first, size_t group, __m256i sums[4][MOST_TOKENS], __m256 totals[4][MOST_TOKENS]) {
UNROLL(2)
    for (unsigned half = 0; half < 2 * tiles; half += 2) {
        const size_t row = first + 8 * half, index = row * part->groups + group * QSLM_TILE_ROWS;
        __m256 scales[2];
        __m256i zeros[2];
        tile_scales(matrix, row, index, scales);
        tile_zeros(matrix, bits, index, zeros);
UNROLL(4)
        for (unsigned i = 0; i < count; i++) {
UNROLL(2)
            for (unsigned j = 0; j < 2; j++) {
                __m256 *total = &totals[half + j][i];
                *total = add_group(matrix, *total, sums[half + j][i], scales[j], zeros[j], part->sums[i][group]);
            }
        }
    }
}

// `tiles` tiles from row `first` on, times `count` tokens.
INLINE void multiply_tiles(const part_of *part, unsigned bits, unsigned tiles, unsigned count, bool plain, size_t first) {
    const qslm_matrix copy = known(part->matrix, plain), *matrix = &copy;
    const size_t whole = matrix->columns / QSLM_BLOCK_COLUMNS * QSLM_BLOCK_COLUMNS, tile_bytes = 2 * whole * bits;
    const size_t groups = part->groups;
    const uint8_t *block = matrix->codes + first / QSLM_TILE_ROWS * tile_bytes;
    const unsigned halves = 2 * tiles;
    __m256 totals[4][MOST_TOKENS];
UNROLL(4)
    for (unsigned half = 0; half < halves; half++) {
UNROLL(4)
        for (unsigned i = 0; i < count; i++) totals[half][i] = _mm256_setzero_ps();
    }
    for (size_t group = 0, column = 0; group < groups; group++) {
        __m256i sums[4][MOST_TOKENS];
UNROLL(4)
        for (unsigned half = 0; half < halves; half++) {
UNROLL(4)
            for (unsigned i = 0; i < count; i++) sums[half][i] = _mm256_setzero_si256();
        }
        const size_t end = group + 1 < groups ? column + matrix->group : whole;
        while (column < end) {
            const size_t left = (end - column) / QSLM_BLOCK_COLUMNS, most = blocks_in_16_bits(bits);
            const size_t blocks = left < most ? left : most;
            add_blocks(part, block, tile_bytes, blocks, bits, halves, count, part->codes + column, sums);
            block += blocks * 64 * bits;
            column += blocks * QSLM_BLOCK_COLUMNS;
        }
        if (group + 1 == groups && whole < matrix->columns) {
UNROLL(4)
            for (unsigned half = 0; half < halves; half++) {
UNROLL(4)
                for (unsigned i = 0; i < count; i++) {
                    const __m256i rest = rest_of_rows(matrix, first + 8 * half, part->codes + i * part->stride);
                    sums[half][i] = _mm256_add_epi32(sums[half][i], rest);
                }
            }
        }
        add_scaled(part, matrix, bits, tiles, count, first, group, sums, totals);
    }
UNROLL(4)
    for (unsigned half = 0; half < halves; half++) {
UNROLL(4)
        for (unsigned i = 0; i < count; i++) {
            _mm256_storeu_ps(part->y + i * matrix->rows + first + 8 * half,
                             _mm256_mul_ps(totals[half][i], _mm256_set1_ps(part->scales[i])));
        }
    }
}

// Whole tiles of rows [first, last), two at a time where registers suffice.
INLINE void multiply_rows(const part_of *part, unsigned bits, unsigned count, bool plain, size_t first, size_t last) {
    const unsigned tiles = count > 1 ? 1 : 2;
    for (; first + tiles * QSLM_TILE_ROWS <= last; first += tiles * QSLM_TILE_ROWS) {
        multiply_tiles(part, bits, tiles, count, plain, first);
    }
    for (; first + QSLM_TILE_ROWS <= last; first += QSLM_TILE_ROWS) multiply_tiles(part, bits, 1, count, plain, first);
}

#define DEFINE_ROWS(NAME, BITS, COUNT, PLAIN)                                        \
    AVX2 static void NAME##_##BITS(const part_of *part, size_t first, size_t last) { \
        multiply_rows(part, BITS, COUNT, PLAIN, first, last);                        \
    }
#define DEFINE_BITS(BITS)                 \
    DEFINE_ROWS(one_plain, BITS, 1, true) \
    DEFINE_ROWS(one, BITS, 1, false)      \
    DEFINE_ROWS(four, BITS, 4, false)
DEFINE_FOR_ALL_BITS

static multiply_some *const ONE_PLAIN[8] = FOR_ALL_BITS(one_plain), *const ONE[8] = FOR_ALL_BITS(one);
static multiply_some *const FOUR[8] = FOR_ALL_BITS(four); // (bits - 1,)

AVX2 static void by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    int32_t sums[MOST_TOKENS][MOST_GROUPS];
    const size_t whole = matrix->rows / QSLM_TILE_ROWS * QSLM_TILE_ROWS, end = last < whole ? last : whole;
    for (size_t token = 0; token < tokens->tokens;) {
        const size_t count = tokens->tokens - token < MOST_TOKENS ? 1 : MOST_TOKENS;
        const part_of part = {.matrix = matrix,
                              .codes = tokens->codes + token * tokens->stride,
                              .scales = tokens->scales + token,
                              .stride = tokens->stride,
                              .sums = (const int32_t(*)[MOST_GROUPS])sums,
                              .y = y + token * matrix->rows,
                              .groups = qslm_groups(matrix)};
        for (size_t i = 0; i < count; i++) sum_groups(matrix, part.codes + i * tokens->stride, sums[i]);
        multiply_some *const *all = count > 1 ? FOUR : is_plain(matrix) ? ONE_PLAIN : ONE;
        all[matrix->bits - 1](&part, first, end);
        token += count;
    }
    if (end < last) qslm_scalar_kernels.by_tiles(matrix, tokens, end, last, y);
}

const qslm_kernels qslm_avx2_kernels = {"avx2", usable, by_tiles, qslm_avx2_by_columns};

#else
typedef int qslm_no_avx2; // a translation unit is not empty
#endif
