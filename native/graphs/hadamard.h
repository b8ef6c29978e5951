// Rotations by Hadamard matrices (qslm/models/hadamard.py): blocks of order base * 2^doublings on the diagonal.
#ifndef QSLM_HADAMARD_H
#define QSLM_HADAMARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/file.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    size_t width, base, doublings;
    int8_t *signs; // (base, base): of Paley's matrix
} qslm_rotation;

enum { QSLM_LARGEST_BASE = 256 };

// The rotation of a width with the fewest blocks and, of these, the smallest base; its signs are taken from the arena,
// base^2 bytes.
qslm_rotation qslm_rotation_of(size_t width);
bool qslm_prepare_rotation(qslm_rotation *rotation, qslm_arena *arena, qslm_error *error);

// x (width,) = x R, in place.
void qslm_rotate(const qslm_rotation *rotation, float *x);

#ifdef __cplusplus
}
#endif

#endif
