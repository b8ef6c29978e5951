// What stands between the products of a network, in float32: the same bits on every target, as sums have a fixed order
// (16 lanes, matrix.h), nothing is contracted, and the exponential is our own.
#ifndef QSLM_ELEMENTWISE_H
#define QSLM_ELEMENTWISE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// y = (x - mean) / sqrt(variance + 1e-5) * weight + bias, (width,); y may be x.
void qslm_layer_norm(const float *x, const float *weight, const float *bias, size_t width, float *y);

// y = x / sqrt(mean(x^2) + epsilon) * weight, (width,); y may be x.
void qslm_rms_norm(const float *x, const float *weight, float epsilon, size_t width, float *y);

// A share of x, the rest of `previous`, as torch.lerp(previous, x, share), (width,).
void qslm_mix(const float *x, const float *previous, const float *share, size_t width, float *y);

// y = relu(x)^2, and y = sigmoid(gate) * x, (width,); y may be x.
void qslm_squared_relu(const float *x, size_t width, float *y);
void qslm_gate(const float *gate, const float *x, size_t width, float *y);

// y = y * silu(gate), (width,).
void qslm_silu(const float *gate, size_t width, float *y);

// One token of WKV (models/wkv.py), (width,): `decay` is negative; state (3, width) rows p, q, o is read and overwritten.
void qslm_wkv(const float *decay, const float *bonus, const float *key, const float *value, float *state, size_t width,
              float *y);

// One step of the LIF neuron: h = v + (current - v) / 2, it fires where h >= 1, and v = 0 there, else h. Adds the spikes
// to `stream`. `forced` (width,) may be NULL: spikes to emit instead; so may `potentials`, which gets h.
void qslm_fire(const float *current, float *membrane, const float *forced, float *potentials, size_t width,
               float *stream);

// sum of x[i] * y[i] in the order of the lanes.
float qslm_dot(const float *x, const float *y, size_t count);

// y = y + x, (count,).
void qslm_add(const float *x, size_t count, float *y);

// Probabilities of logits (count,), in place.
void qslm_softmax(float *x, size_t count);

#ifdef __cplusplus
}
#endif

#endif
