// The reference: what every other path computes to the bit. Plain loops over blocks that a compiler can vectorize.
#include "products/matrix_inside.h"

static bool always(void) {
    return true;
}

static int32_t sum_of(const int8_t *token, size_t first, size_t last) {
    int32_t sum = 0;
    for (size_t i = first; i < last; i++) sum += token[i];
    return sum;
}

static size_t end_of_group(const qslm_matrix *matrix, size_t group) {
    const size_t end = (group + 1) * matrix->group;
    return end < matrix->columns ? end : matrix->columns;
}

// ---- by tiles -----------------------------------------------------------------------------------------------------

static void add_blocks(const uint8_t *packed, size_t count, unsigned bits, const int8_t *token, int32_t *sums) {
    uint8_t codes[QSLM_TILE_ROWS * QSLM_BLOCK_COLUMNS];
    for (size_t block = 0; block < count; block++, packed += 64 * bits, token += QSLM_BLOCK_COLUMNS) {
        qslm_unpack_block(packed, bits, QSLM_BY_TILES, codes);
        const uint8_t *code = codes;
        for (size_t column = 0; column < QSLM_BLOCK_COLUMNS; column += 4) {
            for (size_t row = 0; row < QSLM_TILE_ROWS; row++, code += 4) {
                sums[row] += code[0] * token[column] + code[1] * token[column + 1] + code[2] * token[column + 2] +
                             code[3] * token[column + 3];
            }
        }
    }
}

int32_t qslm_stream_product(const uint8_t *stream, size_t first, size_t count, unsigned bits, const int8_t *token) {
    uint8_t codes[QSLM_BLOCK_COLUMNS];
    int32_t sum = 0;
    for (size_t done = 0; done < count; done += QSLM_BLOCK_COLUMNS) {
        const size_t piece = count - done < QSLM_BLOCK_COLUMNS ? count - done : QSLM_BLOCK_COLUMNS;
        qslm_unpack_stream(stream, first + done, piece, bits, codes);
        for (size_t i = 0; i < piece; i++) sum += codes[i] * token[done + i];
    }
    return sum;
}

static void multiply_tile(const qslm_matrix *matrix, qslm_add_blocks *add, const int8_t *token, float scale,
                          size_t first, float *y) {
    const size_t whole = matrix->columns / QSLM_BLOCK_COLUMNS * QSLM_BLOCK_COLUMNS, left = matrix->columns - whole;
    const uint8_t *block = matrix->codes + first * whole / 8 * matrix->bits;
    const uint8_t *rest =
        matrix->codes + qslm_rest_offset(matrix->rows, matrix->columns, matrix->bits, QSLM_BY_TILES);
    for (size_t row = 0; row < QSLM_TILE_ROWS; row++) y[first + row] = 0.0f;
    for (size_t group = 0, column = 0; group < qslm_groups(matrix); group++) {
        int32_t sums[QSLM_TILE_ROWS] = {0};
        const size_t end = end_of_group(matrix, group), start = column;
        const size_t blocks = (end - start) / QSLM_BLOCK_COLUMNS;
        add(block, blocks, matrix->bits, token + column, sums);
        block += blocks * 64 * matrix->bits;
        column += blocks * QSLM_BLOCK_COLUMNS;
        const int32_t sum = sum_of(token, start, end);
        for (size_t row = 0; row < QSLM_TILE_ROWS; row++) {
            if (column < end) {
                sums[row] += qslm_stream_product(rest, (first + row) * left, left, matrix->bits, token + whole);
            }
            y[first + row] = qslm_add_group(matrix, first + row, group, sums[row], sum, y[first + row]);
        }
        column = end;
    }
    for (size_t row = 0; row < QSLM_TILE_ROWS; row++) y[first + row] *= scale;
}

// A row behind the last whole tile.
static void multiply_last_row(const qslm_matrix *matrix, const int8_t *token, float scale, size_t row, float *y) {
    const size_t whole_rows = matrix->rows / QSLM_TILE_ROWS * QSLM_TILE_ROWS;
    const size_t left = matrix->columns % QSLM_BLOCK_COLUMNS;
    const size_t first = whole_rows * left + (row - whole_rows) * matrix->columns;
    const uint8_t *rest =
        matrix->codes + qslm_rest_offset(matrix->rows, matrix->columns, matrix->bits, QSLM_BY_TILES);
    float total = 0.0f;
    for (size_t group = 0; group < qslm_groups(matrix); group++) {
        const size_t start = group * matrix->group, end = end_of_group(matrix, group);
        const int32_t codes = qslm_stream_product(rest, first + start, end - start, matrix->bits, token + start);
        total = qslm_add_group(matrix, row, group, codes, sum_of(token, start, end), total);
    }
    y[row] = total * scale;
}

void qslm_multiply_tiles(const qslm_matrix *matrix, qslm_add_blocks *add, const qslm_tokens *tokens, size_t first,
                         size_t last, float *y) {
    for (size_t i = 0; i < tokens->tokens; i++, y += matrix->rows) {
        const int8_t *token = tokens->codes + i * tokens->stride;
        size_t row = first;
        for (; row + QSLM_TILE_ROWS <= last; row += QSLM_TILE_ROWS) {
            multiply_tile(matrix, add, token, tokens->scales[i], row, y);
        }
        for (; row < last; row++) multiply_last_row(matrix, token, tokens->scales[i], row, y);
    }
}

static void by_tiles(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    qslm_multiply_tiles(matrix, add_blocks, tokens, first, last, y);
}

// ---- by columns ---------------------------------------------------------------------------------------------------

// The codes of `count` rows from `first` on, 128 of a block or those that fill none, of one column.
static void read_column(const qslm_matrix *matrix, size_t first, size_t count, size_t column, uint8_t *codes) {
    const size_t blocks = matrix->rows / QSLM_COLUMN_ROWS, left = matrix->rows % QSLM_COLUMN_ROWS;
    if (count == QSLM_COLUMN_ROWS) {
        const size_t block = column * blocks + first / QSLM_COLUMN_ROWS;
        qslm_unpack_block(matrix->codes + block * 16 * matrix->bits, matrix->bits, QSLM_BY_COLUMNS, codes);
    } else {
        const size_t rest = qslm_rest_offset(matrix->rows, matrix->columns, matrix->bits, QSLM_BY_COLUMNS);
        qslm_unpack_stream(matrix->codes + rest, column * left, left, matrix->bits, codes);
    }
}

static void multiply_columns(const qslm_matrix *matrix, const int8_t *token, float scale, size_t first, size_t count,
                             float *y) {
    uint8_t codes[QSLM_COLUMN_ROWS];
    for (size_t row = 0; row < count; row++) y[first + row] = 0.0f;
    for (size_t group = 0; group < qslm_groups(matrix); group++) {
        int32_t sums[QSLM_COLUMN_ROWS] = {0};
        const size_t start = group * matrix->group, end = end_of_group(matrix, group);
        for (size_t column = start; column < end; column++) {
            if (token[column] == 0) continue;
            read_column(matrix, first, count, column, codes);
            for (size_t row = 0; row < count; row++) sums[row] += codes[row] * token[column];
        }
        const int32_t sum = sum_of(token, start, end);
        for (size_t row = 0; row < count; row++) {
            y[first + row] = qslm_add_group(matrix, first + row, group, sums[row], sum, y[first + row]);
        }
    }
    for (size_t row = 0; row < count; row++) y[first + row] *= scale;
}

static void by_columns(const qslm_matrix *matrix, const qslm_tokens *tokens, size_t first, size_t last, float *y) {
    for (size_t i = 0; i < tokens->tokens; i++, y += matrix->rows) {
        for (size_t row = first; row < last; row += QSLM_COLUMN_ROWS) {
            const size_t count = last - row < QSLM_COLUMN_ROWS ? last - row : QSLM_COLUMN_ROWS;
            multiply_columns(matrix, tokens->codes + i * tokens->stride, tokens->scales[i], row, count, y);
        }
    }
}

const qslm_kernels qslm_scalar_kernels = {"scalar", always, by_tiles, by_columns};
