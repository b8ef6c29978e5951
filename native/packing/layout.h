// Where the codes of a matrix (rows, columns) of 1 to 8 bits lie, so that kernels read them in the order of the file.
//
// By tiles: 16 rows by 32 columns make a block of 64 * bits bytes; the blocks of a tile of rows follow one another along
// the columns, then comes the next tile. In a block the codes are ordered by four columns, row, column:
//     i = column / 4 * 64 + row * 4 + column % 4
// By columns, for inputs that are mostly zero: 128 rows of one column make a block of 16 * bits bytes, i = row; the
// blocks of a column follow one another, then comes the next column.
//
// A block is cut into planes of 8, 4, 2 and 1 bits, those that add up to its bits, the low bits of a code in the first.
// A plane of p bits is made of vectors, 64 bytes by tiles and 16 * p bytes by columns. A vector holds 8 / p slices, one
// code of each in every byte, the first in its lowest bits; i runs along the bytes of a slice, then slices, then vectors.
//
// What fills no block follows as one bit stream (packing.h): by tiles first the last columns of every whole tile, row by
// row, then the last rows; by columns the last rows of every column. So a matrix takes
// qslm_packed_size(rows * columns, bits) bytes in either layout.
//
// Scales and zero points (rows, groups) are ordered by tiles of 16 rows, then group, then row: (rows / 16, groups, 16);
// the last tile may have fewer rows.
#ifndef QSLM_LAYOUT_H
#define QSLM_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QSLM_TILE_ROWS = 16, QSLM_BLOCK_COLUMNS = 32, QSLM_COLUMN_ROWS = 128 };

typedef enum { QSLM_BY_TILES, QSLM_BY_COLUMNS } qslm_layout;

// Write the codes (rows, columns), row by row, of `bits` bits, 1 to 8, into qslm_packed_size(rows * columns, bits) bytes.
// Returns false when a code needs more than `bits` bits (its high bits were dropped).
bool qslm_pack_matrix(const uint8_t *codes, size_t rows, size_t columns, unsigned bits, qslm_layout layout,
                      uint8_t *packed);

// The inverse.
void qslm_unpack_matrix(const uint8_t *packed, size_t rows, size_t columns, unsigned bits, qslm_layout layout,
                        uint8_t *codes);

// Columns [first, first + count) of one row. By tiles they lie in one block of columns or behind the last.
void qslm_unpack_part(const uint8_t *packed, size_t rows, size_t columns, unsigned bits, qslm_layout layout, size_t row,
                      size_t first, size_t count, uint8_t *codes);

// The codes of one block in its order: QSLM_TILE_ROWS * QSLM_BLOCK_COLUMNS by tiles, QSLM_COLUMN_ROWS by columns.
void qslm_unpack_block(const uint8_t *block, unsigned bits, qslm_layout layout, uint8_t *codes);

// Where the codes that fill no block begin, in bytes.
size_t qslm_rest_offset(size_t rows, size_t columns, unsigned bits, qslm_layout layout);

// `count` codes of a bit stream from code `first` on; the stream holds qslm_packed_size(first + count, bits) bytes at least.
void qslm_unpack_stream(const uint8_t *stream, size_t first, size_t count, unsigned bits, uint8_t *codes);

#ifdef __cplusplus
}
#endif

#endif
