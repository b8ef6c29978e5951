// One block is copied into the order of its codes and cut into planes; what fills no block is a bit stream.
#include "packing/layout.h"

#include <string.h>

#include "packing/packing.h"

enum { MOST_CODES = QSLM_TILE_ROWS * QSLM_BLOCK_COLUMNS };

// How a layout cuts a matrix: blocks (down, across) of (high, wide) codes each.
typedef struct {
    size_t high, wide, down, across;
} cut_of;

static cut_of cut(size_t rows, size_t columns, qslm_layout layout) {
    const size_t high = layout == QSLM_BY_TILES ? QSLM_TILE_ROWS : QSLM_COLUMN_ROWS;
    const size_t wide = layout == QSLM_BY_TILES ? QSLM_BLOCK_COLUMNS : 1;
    return (cut_of){high, wide, rows / high, columns / wide};
}

static size_t block_bytes(cut_of blocks, unsigned bits) {
    return blocks.high * blocks.wide / 8 * bits;
}

// By tiles the blocks of one tile are neighbours, by columns those of one column.
static size_t block_offset(cut_of blocks, unsigned bits, qslm_layout layout, size_t down, size_t across) {
    const size_t index = layout == QSLM_BY_TILES ? down * blocks.across + across : across * blocks.down + down;
    return index * block_bytes(blocks, bits);
}

size_t qslm_rest_offset(size_t rows, size_t columns, unsigned bits, qslm_layout layout) {
    const cut_of blocks = cut(rows, columns, layout);
    return blocks.down * blocks.across * block_bytes(blocks, bits);
}

static size_t index_in_block(size_t row, size_t column, qslm_layout layout) {
    return layout == QSLM_BY_TILES ? column / 4 * 64 + row * 4 + column % 4 : row;
}

static size_t vector_bytes(unsigned plane, qslm_layout layout) {
    return layout == QSLM_BY_TILES ? 64 : 16 * plane;
}

static void pack_block(const uint8_t *codes, size_t count, unsigned bits, qslm_layout layout, uint8_t *packed) {
    unsigned low = 0;
    memset(packed, 0, count / 8 * bits);
    for (unsigned plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        const size_t size = vector_bytes(plane, layout);
        const uint8_t *code = codes;
        for (size_t vector = 0; vector < count / 8 * plane / size; vector++, packed += size) {
            for (unsigned shift = 0; shift < 8; shift += plane, code += size) {
                for (size_t i = 0; i < size; i++) {
                    packed[i] |= (uint8_t)((code[i] >> low & ((1u << plane) - 1)) << shift);
                }
            }
        }
        low += plane;
    }
}

static inline void unpack(const uint8_t *packed, size_t count, unsigned bits, qslm_layout layout, uint8_t *codes) {
    unsigned low = 0;
    memset(codes, 0, count);
    for (unsigned plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        const size_t size = vector_bytes(plane, layout);
        uint8_t *code = codes;
        for (size_t vector = 0; vector < count / 8 * plane / size; vector++, packed += size) {
            for (unsigned shift = 0; shift < 8; shift += plane, code += size) {
                for (size_t i = 0; i < size; i++) {
                    code[i] |= (uint8_t)((packed[i] >> shift & ((1u << plane) - 1)) << low);
                }
            }
        }
        low += plane;
    }
}

void qslm_unpack_block(const uint8_t *block, unsigned bits, qslm_layout layout, uint8_t *codes) {
    unpack(block, layout == QSLM_BY_TILES ? MOST_CODES : QSLM_COLUMN_ROWS, bits, layout, codes);
}

// The codes of one block, from its first on, in the block's order.
static void gather(const uint8_t *codes, size_t columns, cut_of blocks, qslm_layout layout, uint8_t *block) {
    for (size_t row = 0; row < blocks.high; row++) {
        for (size_t column = 0; column < blocks.wide; column++) {
            block[index_in_block(row, column, layout)] = codes[row * columns + column];
        }
    }
}

// ---- what fills no block ------------------------------------------------------------------------------------------

// Calls of `one` for every code that fills no block, in the order of the stream.
typedef void visit(void *state, uint8_t *code);

static void visit_rest(uint8_t *codes, size_t rows, size_t columns, qslm_layout layout, visit *one, void *state) {
    const cut_of blocks = cut(rows, columns, layout);
    const size_t whole_rows = blocks.down * blocks.high, whole_columns = blocks.across * blocks.wide;
    if (layout == QSLM_BY_COLUMNS) {
        for (size_t column = 0; column < columns; column++) {
            for (size_t row = whole_rows; row < rows; row++) one(state, &codes[row * columns + column]);
        }
        return;
    }
    for (size_t row = 0; row < rows; row++) {
        for (size_t column = row < whole_rows ? whole_columns : 0; column < columns; column++) {
            one(state, &codes[row * columns + column]);
        }
    }
}

// A bit stream that is read or written code by code.
typedef struct {
    uint8_t *to;
    const uint8_t *from;
    unsigned bits, filled;
    uint32_t word;
} stream;

static void put(void *state, uint8_t *code) {
    stream *bits = state;
    bits->word |= (*code & ((1u << bits->bits) - 1)) << bits->filled;
    for (bits->filled += bits->bits; bits->filled >= 8; bits->filled -= 8) {
        *bits->to++ = (uint8_t)bits->word;
        bits->word >>= 8;
    }
}

static void take(void *state, uint8_t *code) {
    stream *bits = state;
    for (; bits->filled < bits->bits; bits->filled += 8) bits->word |= (uint32_t)*bits->from++ << bits->filled;
    *code = (uint8_t)(bits->word & ((1u << bits->bits) - 1));
    bits->word >>= bits->bits;
    bits->filled -= bits->bits;
}

void qslm_unpack_stream(const uint8_t *from, size_t first, size_t count, unsigned bits, uint8_t *codes) {
    if (count == 0) return;
    from += first / 8 * bits + first % 8 * bits / 8;
    stream state = {.from = from + 1, .bits = bits, .word = *from >> (first % 8 * bits % 8)};
    state.filled = 8 - (unsigned)(first % 8 * bits % 8);
    for (size_t i = 0; i < count; i++) take(&state, &codes[i]);
}

// ---- matrices -----------------------------------------------------------------------------------------------------

static bool fits(const uint8_t *codes, size_t count, unsigned bits) {
    unsigned seen = 0;
    for (size_t i = 0; i < count; i++) seen |= codes[i];
    return seen >> bits == 0;
}

bool qslm_pack_matrix(const uint8_t *codes, size_t rows, size_t columns, unsigned bits, qslm_layout layout,
                      uint8_t *packed) {
    const cut_of blocks = cut(rows, columns, layout);
    uint8_t block[MOST_CODES];
    for (size_t down = 0; down < blocks.down; down++) {
        for (size_t across = 0; across < blocks.across; across++) {
            gather(codes + down * blocks.high * columns + across * blocks.wide, columns, blocks, layout, block);
            pack_block(block, blocks.high * blocks.wide, bits, layout,
                       packed + block_offset(blocks, bits, layout, down, across));
        }
    }
    stream rest = {.to = packed + qslm_rest_offset(rows, columns, bits, layout), .bits = bits};
    visit_rest((uint8_t *)codes, rows, columns, layout, put, &rest); // `put` reads the codes only
    if (rest.filled > 0) *rest.to = (uint8_t)rest.word;
    return fits(codes, rows * columns, bits);
}

// The codes of one block from its own order into a matrix.
static void scatter(const uint8_t *block, size_t columns, cut_of blocks, qslm_layout layout, uint8_t *codes) {
    for (size_t row = 0; row < blocks.high; row++) {
        for (size_t column = 0; column < blocks.wide; column++) {
            codes[row * columns + column] = block[index_in_block(row, column, layout)];
        }
    }
}

void qslm_unpack_matrix(const uint8_t *packed, size_t rows, size_t columns, unsigned bits, qslm_layout layout,
                        uint8_t *codes) {
    const cut_of blocks = cut(rows, columns, layout);
    uint8_t block[MOST_CODES];
    for (size_t down = 0; down < blocks.down; down++) {
        for (size_t across = 0; across < blocks.across; across++) {
            qslm_unpack_block(packed + block_offset(blocks, bits, layout, down, across), bits, layout, block);
            scatter(block, columns, blocks, layout, codes + down * blocks.high * columns + across * blocks.wide);
        }
    }
    stream rest = {.from = packed + qslm_rest_offset(rows, columns, bits, layout), .bits = bits};
    visit_rest(codes, rows, columns, layout, take, &rest);
}

void qslm_unpack_part(const uint8_t *packed, size_t rows, size_t columns, unsigned bits, qslm_layout layout, size_t row,
                      size_t first, size_t count, uint8_t *codes) {
    const cut_of blocks = cut(rows, columns, layout);
    const size_t whole_rows = blocks.down * blocks.high, whole_columns = blocks.across * blocks.wide;
    const size_t left = columns - whole_columns, width = row < whole_rows ? left : columns;
    const uint8_t *rest = packed + qslm_rest_offset(rows, columns, bits, layout);
    uint8_t block[MOST_CODES];
    for (size_t i = 0; i < count; i++) {
        const size_t column = first + i;
        if (row < whole_rows && column < whole_columns) {
            if (i == 0 || layout == QSLM_BY_COLUMNS) {
                qslm_unpack_block(packed + block_offset(blocks, bits, layout, row / blocks.high, column / blocks.wide),
                                  bits, layout, block);
            }
            codes[i] = block[index_in_block(row % blocks.high, column % blocks.wide, layout)];
        } else if (layout == QSLM_BY_COLUMNS) {
            qslm_unpack_stream(rest, column * (rows - whole_rows) + row - whole_rows, 1, bits, codes + i);
        } else {
            const size_t before = row < whole_rows ? row * left : whole_rows * left + (row - whole_rows) * columns;
            qslm_unpack_stream(rest, before + column - (columns - width), 1, bits, codes + i);
        }
    }
}
