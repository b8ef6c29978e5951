// GPTQ: the columns of a matrix are rounded one after the other, and those that follow make up for the error of each.
#ifndef QSLM_GPTQ_H
#define QSLM_GPTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// weight (rows, columns), in the order in which the columns are rounded. factor (columns, columns): the upper triangle
// U with U^T U the inverse of the Hessian; what is below its diagonal is not read. scales, zeros (rows, groups) of the
// grid, scales > 0; group (columns), each below groups: which scale a column has. codes (rows, columns) come out, between
// lowest and highest. Column i with w in it becomes q = clamp(round(w / s) + z), ties to even, and then
// w_j -= (w - (q - z) s) / U_ii * U_ij for all j > i. Every row has the same bits whatever `threads` is.
// Returns false when there is no memory for the tiles.
bool qslm_gptq(const float *weight, const float *factor, const float *scales, const float *zeros, const int32_t *group,
               size_t rows, size_t columns, size_t groups, float lowest, float highest, int32_t *codes, int threads);

#ifdef __cplusplus
}
#endif

#endif
