// Products of matrices of random shapes and formats: every kernel of this machine against the definition of matrix.h, to
// the bit. Buffers have exactly their sizes, so that the address sanitizer sees whoever reads behind them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "products/matrix.h"
#include "packing/packing.h"

static uint64_t state = 88172645463325252u;

static uint32_t below(uint32_t bound) { // xorshift64
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 20) % bound;
}

static void *bytes_of(size_t size) {
    void *found = malloc(size > 0 ? size : 1);
    if (found == NULL) exit(2);
    return found;
}

typedef struct {
    qslm_matrix matrix;
    uint8_t *plain;  // codes (rows, columns)
    uint8_t *zeros;  // (rows * groups,) as they are ordered
    float *scales;   // likewise
    uint16_t *halves; // the same as float16, where they are stored so
} example;

static size_t groups_of(const qslm_matrix *matrix) {
    return (matrix->columns + matrix->group - 1) / matrix->group;
}

static void draw_scales(example *one) {
    qslm_matrix *matrix = &one->matrix;
    const size_t grid = matrix->one_scale ? 1 : matrix->rows * groups_of(matrix);
    uint8_t *packed = bytes_of(qslm_packed_size(grid, matrix->bits));
    one->scales = bytes_of(grid * sizeof *one->scales);
    one->halves = bytes_of(grid * sizeof *one->halves);
    one->zeros = bytes_of(grid);
    for (size_t i = 0; i < grid; i++) {
        const uint32_t mantissa = below(1024); // 1 + mantissa / 1024 is exact in both types
        one->halves[i] = (uint16_t)(0x3c00u + mantissa);
        one->scales[i] = matrix->scale_type == QSLM_SCALE_FLOAT16 ? (float)(1024 + mantissa) / 1024.0f
                                                                  : ((float)below(1 << 20) + 1.0f) / (float)(1 << 18);
        one->zeros[i] = matrix->symmetric ? (uint8_t)(1u << (matrix->bits - 1)) : (uint8_t)below(1u << matrix->bits);
    }
    qslm_pack_u8(one->zeros, grid, matrix->bits, packed);
    matrix->scales =
        matrix->scale_type == QSLM_SCALE_FLOAT16 ? (const uint8_t *)one->halves : (const uint8_t *)one->scales;
    matrix->zeros = packed;
}

static void draw(example *one) {
    const size_t rows = 1 + below(below(3) == 0 ? 400 : 70), columns = 1 + below(below(3) == 0 ? 700 : 70);
    const size_t sizes[] = {32, 64, 128, columns};
    const bool sign = below(8) == 0;
    const unsigned bits = sign ? 1 : 1 + below(8);
    one->matrix = (qslm_matrix){.kind = sign ? QSLM_SIGN : QSLM_INTEGER, .bits = bits, .symmetric = below(2) == 0,
                                .layout = below(2) == 0 ? QSLM_BY_TILES : QSLM_BY_COLUMNS,
                                .scale_type = below(2) == 0 ? QSLM_SCALE_FLOAT16 : QSLM_SCALE_FLOAT32, .rows = rows, .columns = columns};
    one->matrix.group = sign ? columns : sizes[below(4)];
    one->matrix.one_scale = one->matrix.group == columns && below(4) == 0;
    one->plain = bytes_of(rows * columns);
    const bool largest = below(3) == 0; // what is added up in 16 bits is to reach its bounds
    for (size_t i = 0; i < rows * columns; i++) {
        one->plain[i] = (uint8_t)(largest ? (1u << bits) - 1 : below(1u << bits));
    }
    uint8_t *packed = bytes_of(qslm_packed_size(rows * columns, bits));
    qslm_pack_matrix(one->plain, rows, columns, bits, one->matrix.layout, packed);
    one->matrix.codes = packed;
    draw_scales(one);
}

static void release(example *one) {
    free((void *)one->matrix.codes), free((void *)one->matrix.zeros), free(one->plain), free(one->zeros), free(one->scales);
    free(one->halves);
}

// One row of the product, as matrix.h defines it.
static float expected(const example *one, size_t row, const int8_t *token, float scale) {
    const qslm_matrix *matrix = &one->matrix;
    const size_t groups = groups_of(matrix), tile = row / 16 * 16, left = matrix->rows - tile;
    float y = 0.0f;
    for (size_t group = 0; group < groups; group++) {
        const size_t index = matrix->one_scale ? 0 : tile * groups + group * (left < 16 ? left : 16) + row - tile;
        int32_t sum = 0;
        for (size_t i = group * matrix->group; i < matrix->columns && i < (group + 1) * matrix->group; i++) {
            const int32_t code = one->plain[row * matrix->columns + i];
            sum += (matrix->kind == QSLM_SIGN ? 2 * code - 1 : code - one->zeros[index]) * token[i];
        }
        y += (float)sum * (matrix->kind == QSLM_SIGN ? 1.0f : one->scales[index]);
    }
    return y * scale;
}

static bool same(const example *one, const qslm_tokens *tokens, const float *y) {
    for (size_t i = 0; i < tokens->tokens; i++) {
        for (size_t row = 0; row < one->matrix.rows; row++) {
            const float wanted = expected(one, row, tokens->codes + i * tokens->stride, tokens->scales[i]);
            if (memcmp(&y[i * one->matrix.rows + row], &wanted, sizeof wanted) != 0) return false;
        }
    }
    return true;
}

static bool check(const example *one) {
    const size_t columns = one->matrix.columns, stride = (columns + 63) / 64 * 64, count = 1 + below(9);
    const uint32_t density = 1 + below(4), edge = below(3); // numbers at random, or all the largest, or the smallest
    int8_t *codes = bytes_of(count * stride);
    float *scales = bytes_of(count * sizeof *scales), *y = bytes_of(count * one->matrix.rows * sizeof *y);
    memset(codes, 0, count * stride);
    for (size_t i = 0; i < count; i++) {
        scales[i] = (float)(1 + below(100)) / 8.0f;
        for (size_t j = 0; j < columns; j++) {
            const int number = edge == 0 ? (int)below(256) - 128 : edge == 1 ? 127 : -128;
            codes[i * stride + j] = (int8_t)(below(4) < density ? number : 0);
        }
    }
    const qslm_tokens tokens = {codes, stride, scales, count};
    bool good = true;
    for (const char *const *name = qslm_kernel_names(); *name != NULL; name++) {
        qslm_choose_kernels(*name);
        qslm_multiply(&(qslm_product){&one->matrix, &tokens, NULL, count, y}, 1, NULL);
        if (same(one, &tokens, y)) continue;
        fprintf(stderr, "FAILED: %s, kind %d, %u bits, layout %d, %zu x %zu, group %zu, %zu tokens\n", *name,
                one->matrix.kind, one->matrix.bits, one->matrix.layout, one->matrix.rows, columns, one->matrix.group, count);
        good = false;
    }
    free(codes), free(scales), free(y);
    return good;
}

int main(int count, char **arguments) {
    const int examples = count > 1 ? atoi(arguments[1]) : 500;
    for (int i = 0; i < examples; i++) {
        example one;
        draw(&one);
        const bool good = check(&one);
        release(&one);
        if (!good) return 1;
    }
    printf("%d products, the bits of the definition:", examples);
    for (const char *const *name = qslm_kernel_names(); *name != NULL; name++) printf(" %s", *name);
    printf("\n");
    return 0;
}
