// What differs between compilers and targets, and arithmetic that must not differ between them.
#ifndef QSLM_PORTABLE_H
#define QSLM_PORTABLE_H

#include <stdint.h>
#include <string.h>

// One source, several instruction sets, chosen when the program starts. Without contraction all give the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(QSLM_ONE_TARGET)
#define QSLM_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define QSLM_SIMD
#endif

// Some floats side by side, as a register holds them: for sums that a compiler would keep in memory. What is done with
// them is done with each.
#if defined(__GNUC__)
#if defined(__x86_64__)
enum { QSLM_SIDE = 8 };
#else
enum { QSLM_SIDE = 4 };
#endif
typedef float qslm_floats __attribute__((vector_size(4 * QSLM_SIDE), aligned(4), may_alias));
#define QSLM_INLINE static inline __attribute__((always_inline))
#else
enum { QSLM_SIDE = 1 };
typedef float qslm_floats;
#define QSLM_INLINE static inline
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define QSLM_UNROLL _Pragma("GCC unroll 16")
#else
#define QSLM_UNROLL
#endif

// e^x in float, relative error below 2^-22; 0 below -87.3, and 2^127 at most. Vectorizes; same bits on every target.
static inline float qslm_expf(float x) {
    const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const float round_bias = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    float clamped = x < -87.33f ? -87.33f : x;
    clamped = clamped > 88.0f ? 88.0f : clamped;
    float biased = clamped * log2e + round_bias;
    float n = biased - round_bias;
    float r = (clamped - n * ln2_high) - n * ln2_low; // |r| <= ln 2 / 2
    float p = 1.9875691500e-4f;                       // minimax polynomial of (e^r - 1 - r) / r^2 (Cephes expf)
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    uint32_t bits; // n stands in the low bits of `biased`, the others are shifted out
    memcpy(&bits, &biased, sizeof bits);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    float result = p * power;
    return x < -87.33f ? 0.0f : result;
}

#endif
