// Recurrences of a spike-driven language model along the token axis: WKV attention and the LIF neuron.
//
// All arrays are contiguous and row-major: (batch, tokens, channels) unless a comment says otherwise.
// Work is shared over batch and tiles of channels; no sum crosses a thread, so results do not depend on `threads`.
// Functions return 0, or -1 when memory for scratch space is missing.
#ifndef QSLM_RECURRENCE_H
#define QSLM_RECURRENCE_H

#include <stdint.h>

typedef struct {
    int64_t batch, tokens, channels;
} qslm_shape;

// Every function exists for float (_f32) and double (_f64).
#define QSLM_DECLARE_RECURRENCE(REAL, SUFFIX)                                                                        \
    /* wkv_t = (p + e^(u + k_t) v_t) / (q + e^(u + k_t)); then p = e^w p + e^k_t v_t and q = e^w q + e^k_t, kept as  \
       p, q scaled by e^-o so that no exponential overflows.                                                         \
       w, u: (channels); state: (batch, 3, channels) rows p, q, o, read and overwritten; y: output. */               \
    int qslm_wkv_forward_##SUFFIX(qslm_shape shape, const REAL *w, const REAL *u, const REAL *k, const REAL *v,      \
                                  REAL *state, REAL *y, int threads);                                                \
    /* Gradients for windows that start from the empty state. gw, gu: (batch, channels), to be summed over batch. */ \
    int qslm_wkv_backward_##SUFFIX(qslm_shape shape, const REAL *w, const REAL *u, const REAL *k, const REAL *v,     \
                                   const REAL *gy, REAL *gw, REAL *gu, REAL *gk, REAL *gv, int threads);             \
    /* h_t = v + (x_t - v) / 2;  s_t = [h_t >= 1], or forced_t where `forced` is not NULL;  v = s_t ? 0 : h_t.       \
       v: (batch, channels), read and overwritten; spikes: output; h: output, may be NULL. */                        \
    int qslm_lif_forward_##SUFFIX(qslm_shape shape, const REAL *x, const REAL *forced, REAL *v, REAL *spikes,        \
                                  REAL *h, int threads);                                                             \
    /* Gradient with the arctangent surrogate ds/dh = (alpha/2) / (1 + (pi/2 alpha (h - 1))^2), through the reset,   \
       for windows that start from v = 0. h ds/dh is 0, its limit, where h is infinite. */                           \
    int qslm_lif_backward_##SUFFIX(qslm_shape shape, const REAL *x, const REAL *gspikes, double alpha, REAL *gx,     \
                                   int threads);

QSLM_DECLARE_RECURRENCE(float, f32)
QSLM_DECLARE_RECURRENCE(double, f64)

#endif
