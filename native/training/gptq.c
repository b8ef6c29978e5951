#include "training/gptq.h"

#include <math.h>
#include <stdlib.h>

#include "system/portable.h"

enum { LANES = 16 }; // rows that go through the columns together

// tile (columns, LANES) -= error (LANES) times the row u of the factor, for the columns that follow.
QSLM_SIMD static void spread(float *restrict tile, const float *restrict u, const float *restrict error, size_t first,
                             size_t columns) {
    for (size_t j = first; j < columns; j++) {
        float *restrict column = tile + j * LANES;
        for (int lane = 0; lane < LANES; lane++) {
            column[lane] -= error[lane] * u[j];
        }
    }
}

static void round_rows(const float *weight, const float *factor, const float *scales, const float *zeros,
                       const int32_t *group, size_t rows, size_t columns, size_t groups, float lowest, float highest,
                       int32_t *codes, float *tile) {
    for (size_t j = 0; j < columns; j++) {
        for (size_t lane = 0; lane < LANES; lane++) {
            tile[j * LANES + lane] = lane < rows ? weight[lane * columns + j] : 0.0f;
        }
    }
    float error[LANES] = {0};
    for (size_t i = 0; i < columns; i++) {
        const float *u = factor + i * columns;
        for (size_t lane = 0; lane < rows; lane++) {
            const float w = tile[i * LANES + lane];
            const float s = scales[lane * groups + (size_t)group[i]], z = zeros[lane * groups + (size_t)group[i]];
            float q = rintf(w / s) + z;
            q = q > lowest ? (q < highest ? q : highest) : lowest; // the lowest, too, where q is no number
            codes[lane * columns + i] = (int32_t)q;
            error[lane] = (w - (q - z) * s) / u[i];
        }
        spread(tile, u, error, i + 1, columns);
    }
}

bool qslm_gptq(const float *weight, const float *factor, const float *scales, const float *zeros, const int32_t *group,
               size_t rows, size_t columns, size_t groups, float lowest, float highest, int32_t *codes, int threads) {
    const ptrdiff_t tiles = (ptrdiff_t)((rows + LANES - 1) / LANES);
    bool enough = true;
    (void)threads;
#pragma omp parallel num_threads(threads) reduction(&& : enough)
    {
        float *tile = malloc((columns ? columns : 1) * LANES * sizeof *tile);
        enough = tile != NULL;
#pragma omp for schedule(static)
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const size_t row = (size_t)t * LANES, count = rows - row < LANES ? rows - row : LANES;
            if (tile != NULL) {
                round_rows(weight + row * columns, factor, scales + row * groups, zeros + row * groups, group, count,
                           columns, groups, lowest, highest, codes + row * columns, tile);
            }
        }
        free(tile);
    }
    return enough;
}
