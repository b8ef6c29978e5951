// A matrix (rows, columns) of a model file as it lies there, and its products with tokens. What a row of the product is,
// to the bit, on every target and with every number of threads:
//
// Integers and signs times integers. A token is a vector of int8 with one scale, x[j] = scale * q[j]. For every group g
// of columns an exact int32 is found, sum over j of (code[j] - zero) * q[j] with zero = 2^(bits - 1) for symmetric
// formats; sign codes stand for 2 * code - 1. Then, in float32 without contraction, groups in order:
//     y = 0;  y = y + (float)sum[g] * weight_scale[g], for all g;  y = y * scale
// A scale of 8 bits is (float)code * step, or step * 2^code. A matrix has at most QSLM_MOST_COLUMNS columns, so that no
// sum overflows.
//
// Anything times floats (a checking mode), and float weights in both modes. Columns go to 16 lanes, j % 16; each lane
// sums weight * x in float32 in order; the lanes are added as (0 + 8), (1 + 9), ..., then 4 apart, 2 apart, 1 apart.
// The weight is ((float)code - zero) * weight_scale, as PyTorch computes it.
#ifndef QSLM_MATRIX_H
#define QSLM_MATRIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packing/layout.h"
#include "system/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QSLM_MOST_COLUMNS = 1 << 16 };

typedef enum { QSLM_INTEGER, QSLM_SIGN, QSLM_FLOAT32, QSLM_FLOAT16, QSLM_BFLOAT16 } qslm_kind;
typedef enum { QSLM_SCALE_FLOAT16, QSLM_SCALE_FLOAT32, QSLM_SCALE_STEPS, QSLM_SCALE_SHIFTS } qslm_scale_type;

typedef struct {
    qslm_kind kind;
    unsigned bits;              // of a code, 1 to 8
    bool symmetric;             // no zero points: codes count from -2^(bits - 1)
    unsigned activations;       // bits of the spike counts that it reads; 0 where it reads numbers
    qslm_layout layout;
    qslm_scale_type scale_type;
    size_t rows, columns;
    size_t group;               // columns that share a scale: 32, 64, 128, or all
    bool one_scale;             // for the whole matrix
    const uint8_t *codes;       // layout.h; or the values of a float matrix, row by row, little-endian
    const uint8_t *scales;      // (rows / 16, groups, 16), layout.h
    const uint8_t *zeros;       // in the same order, a bit stream; NULL where symmetric
    const uint8_t *step;        // float32: one, or one a row where scales are shifts
} qslm_matrix;

// Tokens as integers.
typedef struct {
    const int8_t *codes; // (tokens, stride)
    size_t stride;       // at least columns, a multiple of 64; what lies between is zero
    const float *scales; // (tokens,)
    size_t tokens;
} qslm_tokens;

// Round a token (columns,) to int8, scale = max |x| / 127, ties away from zero; NaN counts as 0. Returns the scale, which
// is 1 where all are zero or below 1e-35. Writes `stride` codes, zeros behind the last.
float qslm_round_token(const float *x, size_t columns, size_t stride, int8_t *codes);

// y (count, rows) = matrix times the same tokens as integers or as floats (count, columns). A matrix of floats takes these;
// so does any where there are no integers, which is the checking mode.
typedef struct {
    const qslm_matrix *matrix;
    const qslm_tokens *tokens; // may be NULL
    const float *floats;       // may be NULL unless they are taken
    size_t count;              // of tokens
    float *y;
} qslm_product;

// Several products that need nothing of each other, shared among threads as one. Nothing is allocated. threads may be NULL.
void qslm_multiply(const qslm_product *products, size_t count, qslm_threads *threads);

// Row `row` as floats, (columns,): what an embedding reads. Signs are 0 or 1 here, as H(x) = [x >= 0] is what they store.
void qslm_read_row(const qslm_matrix *matrix, size_t row, float *values);

// The instruction sets that this build can choose from on this machine, best first, NULL-terminated: "avx512-vnni",
// "avx2", "neon-dot", "neon", "scalar". qslm_choose_kernels returns false where the name is none of them; NULL chooses
// the best. For tests and benchmarks; not while products are being computed.
const char *const *qslm_kernel_names(void);
bool qslm_choose_kernels(const char *name);

#ifdef __cplusplus
}
#endif

#endif
