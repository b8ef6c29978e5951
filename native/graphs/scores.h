// The inner loops of attention: some queries at once, so that a key and a value are loaded once for all of them. What a
// query gets does not depend on the others.
#ifndef QSLM_SCORES_H
#define QSLM_SCORES_H

#include <stddef.h>

enum { QSLM_TOGETHER = 4, QSLM_KEYS = 16 }; // queries at once, and keys of a tile

// scores[q][0..16) = the sums of queries[q] (width,) times the keys of a tile (width, 16), in the order of the lanes
// (products/matrix.h), times `factor`; `count` queries.
void qslm_score(const float *tile, size_t width, float factor, const float *const *queries, size_t count,
                float *const *scores);

// sums[q] (width,) += shares[q][i] * values[i], for each i < tokens in order, as values (tokens, width) are; `count` rows
// of shares and of sums.
void qslm_mingle(const float *values, size_t width, size_t tokens, const float *const *shares, size_t count,
                 float *const *sums);

#endif
