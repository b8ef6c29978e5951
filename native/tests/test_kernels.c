// Every kernel on ragged shapes, in heap buffers of exact size (so that the address sanitizer sees a byte too much),
// against naive loops. `test_kernels bits` prints a digest of the LIF, WKV and GPTQ results, to compare builds by.
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "training/gptq.h"
#include "training/memory.h"
#include "packing/layout.h"
#include "packing/packing.h"
#include "system/portable.h"
#include "training/recurrence.h"

static uint64_t random_state = 0x9E3779B97F4A7C15u;
static uint64_t digest = 0xCBF29CE484222325u;

static uint64_t random_bits(void) { // xorshift*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Du;
}

static double uniform(double low, double high) {
    return low + (high - low) * (double)(random_bits() >> 11) * 0x1p-53;
}

static void fail(const char *what, double found, double expected) {
    fprintf(stderr, "FAILED: %s: %.17g, expected %.17g\n", what, found, expected);
    exit(1);
}

static void near(const char *what, double found, double expected, double tolerance) {
    // Written so that NaN fails.
    if (!(fabs(found - expected) <= tolerance * fmax(1, fabs(expected)))) fail(what, found, expected);
}

static void *exactly(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

static void add_to_digest(const void *data, size_t bytes) { // FNV-1a
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) digest = (digest ^ byte[i]) * 0x100000001B3u;
}

static const qslm_shape SHAPES[] = {{1, 1, 1},   {2, 3, 5},   {1, 7, 63},  {3, 2, 64},  {2, 9, 65},
                                    {1, 33, 127}, {2, 5, 128}, {1, 4, 200}, {5, 17, 31}, {1, 0, 3}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof SHAPES[0] };

#define REAL float
#define SUFFIX f32
#define TOLERANCE 2e-5
#include "test_recurrence_body.h"
#undef REAL
#undef SUFFIX
#undef TOLERANCE

#define REAL double
#define SUFFIX f64
#define TOLERANCE 1e-11
#include "test_recurrence_body.h"

// ---- gptq ----------------------------------------------------------------------------------------------------------

// One row after the other, in the kernel's order of operations, so that codes are equal.
static void naive_gptq(const float *weight, const float *factor, const float *scales, const float *zeros,
                       const int32_t *group, size_t rows, size_t columns, size_t groups, float lowest, float highest,
                       int32_t *codes) {
    float *left = exactly(columns * sizeof *left);
    for (size_t r = 0; r < rows; r++) {
        memcpy(left, weight + r * columns, columns * sizeof *left);
        for (size_t i = 0; i < columns; i++) {
            const float s = scales[r * groups + (size_t)group[i]], z = zeros[r * groups + (size_t)group[i]];
            const float code = fminf(fmaxf(rintf(left[i] / s) + z, lowest), highest);
            codes[r * columns + i] = (int32_t)code;
            const float error = (left[i] - (code - z) * s) / factor[i * columns + i];
            for (size_t j = i + 1; j < columns; j++) left[j] -= error * factor[i * columns + j];
        }
    }
    free(left);
}

static void test_gptq_of(size_t rows, size_t columns, size_t groups, unsigned bits, int threads) {
    float *weight = exactly(rows * columns * sizeof *weight), *factor = exactly(columns * columns * sizeof *factor);
    float *scales = exactly(rows * groups * sizeof *scales), *zeros = exactly(rows * groups * sizeof *zeros);
    int32_t *group = exactly(columns * sizeof *group), *expected = exactly(rows * columns * sizeof *expected);
    int32_t *codes = exactly(rows * columns * sizeof *codes);
    const float highest = (float)((1u << bits) - 1);
    for (size_t i = 0; i < rows * columns; i++) weight[i] = (float)uniform(-1, 1);
    for (size_t i = 0; i < columns * columns; i++) factor[i] = (float)uniform(-0.3, 0.3);
    for (size_t i = 0; i < columns; i++) {
        factor[i * columns + i] = (float)uniform(0.5, 2);
        group[i] = (int32_t)(random_bits() % groups);
        for (size_t j = 0; j < i; j++) factor[i * columns + j] = NAN; // is not read
    }
    for (size_t i = 0; i < rows * groups; i++) {
        scales[i] = (float)uniform(0.01, 1);
        zeros[i] = (float)(random_bits() % (1u << bits));
    }
    naive_gptq(weight, factor, scales, zeros, group, rows, columns, groups, 0, highest, expected);
    if (!qslm_gptq(weight, factor, scales, zeros, group, rows, columns, groups, 0, highest, codes, threads)) abort();
    for (size_t i = 0; i < rows * columns; i++) {
        if (codes[i] != expected[i]) fail("gptq", codes[i], expected[i]);
    }
    add_to_digest(codes, rows * columns * sizeof *codes);
    free(weight), free(factor), free(scales), free(zeros), free(group), free(expected), free(codes);
}

static void test_gptq(void) {
    static const size_t shapes[][3] = {{1, 1, 1}, {3, 2, 1}, {16, 5, 2}, {17, 33, 3}, {40, 64, 1}, {5, 0, 1}, {0, 4, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        test_gptq_of(shapes[i][0], shapes[i][1], shapes[i][2], 3, 1);
        test_gptq_of(shapes[i][0], shapes[i][1], shapes[i][2], 8, 3);
    }
}

// ---- packing -------------------------------------------------------------------------------------------------------

#define DEFINE_PACKING_TEST(TYPE, SUFFIX, WIDEST)                                                                    \
    static void packing_##SUFFIX(size_t count, unsigned bits) {                                                      \
        const size_t size = qslm_packed_size(count, bits);                                                           \
        if (size != (count * bits + 7) / 8) fail("packed size", (double)size, (double)((count * bits + 7) / 8));     \
        TYPE *codes = exactly(count * sizeof(TYPE)), *back = exactly(count * sizeof(TYPE));                          \
        uint8_t *packed = exactly(size), *naive = exactly(size);                                                     \
        memset(packed, 0xA5, size);                                                                                  \
        memset(naive, 0, size);                                                                                      \
        for (size_t i = 0; i < count; i++) {                                                                         \
            codes[i] = (TYPE)(random_bits() & ((1u << bits) - 1));                                                   \
            for (unsigned b = 0; b < bits; b++) {                                                                    \
                const size_t at = i * bits + b;                                                                      \
                naive[at / 8] |= (uint8_t)((codes[i] >> b & 1u) << at % 8);                                          \
            }                                                                                                        \
        }                                                                                                            \
        if (!qslm_pack_##SUFFIX(codes, count, bits, packed)) fail("pack says that codes do not fit", 0, 1);          \
        if (memcmp(packed, naive, size)) fail("packed bits differ from the naive stream", bits, (double)count);      \
        if (bits <= (WIDEST)) {                                                                                      \
            qslm_unpack_##SUFFIX(packed, count, bits, back);                                                         \
            if (memcmp(codes, back, count * sizeof(TYPE))) fail("unpack is not the inverse", bits, (double)count);   \
        }                                                                                                            \
        if (count && bits < 8 * sizeof(TYPE)) {                                                                      \
            codes[count - 1] = (TYPE)(1u << bits);                                                                   \
            if (qslm_pack_##SUFFIX(codes, count, bits, packed)) fail("pack missed a code that is too wide", 1, 0);   \
        }                                                                                                            \
        free(codes), free(back), free(packed), free(naive);                                                          \
    }

DEFINE_PACKING_TEST(uint8_t, u8, 8)
DEFINE_PACKING_TEST(uint16_t, u16, 16)
DEFINE_PACKING_TEST(uint32_t, u32, 16)

static void test_packing(void) {
    for (size_t count = 0; count < 70; count++) {
        for (unsigned bits = 1; bits <= QSLM_PACKING_MAX_BITS; bits++) {
            if (bits <= 8) packing_u8(count, bits);
            packing_u16(count, bits);
            packing_u32(count, bits);
        }
    }
    packing_u16(10007, 11);
    packing_u8(10007, 3);
}

// Both layouts by their inverse, and every row alone; Python's tests hold the places against their definition.
static void layout_round_trip(size_t rows, size_t columns, unsigned bits, qslm_layout layout) {
    const size_t count = rows * columns, size = qslm_packed_size(count, bits);
    uint8_t *codes = exactly(count), *back = exactly(count), *packed = exactly(size), *row = exactly(columns);
    for (size_t i = 0; i < count; i++) codes[i] = (uint8_t)(random_bits() & ((1u << bits) - 1));
    memset(packed, 0xA5, size);
    if (!qslm_pack_matrix(codes, rows, columns, bits, layout, packed)) fail("codes do not fit", bits, layout);
    qslm_unpack_matrix(packed, rows, columns, bits, layout, back);
    if (memcmp(codes, back, count)) fail("unpacking a matrix is not the inverse", bits, layout);
    for (size_t i = 0; i < rows; i++) {
        for (size_t first = 0; first < columns; first += QSLM_BLOCK_COLUMNS) {
            const size_t part = columns - first < QSLM_BLOCK_COLUMNS ? columns - first : QSLM_BLOCK_COLUMNS;
            qslm_unpack_part(packed, rows, columns, bits, layout, i, first, part, row + first);
        }
        if (memcmp(codes + i * columns, row, columns)) fail("a row differs from its matrix", (double)i, bits);
    }
    free(codes), free(back), free(packed), free(row);
}

static void test_layout(void) {
    const size_t shapes[][2] = {{1, 1}, {16, 32}, {15, 31}, {17, 33}, {35, 100}, {128, 3}, {131, 5}, {300, 40}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (unsigned bits = 1; bits <= 8; bits++) {
            layout_round_trip(shapes[i][0], shapes[i][1], bits, QSLM_BY_TILES);
            layout_round_trip(shapes[i][0], shapes[i][1], bits, QSLM_BY_COLUMNS);
        }
    }
}

// ---- the exponential -----------------------------------------------------------------------------------------------

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The floats of one sign, `step` bit patterns apart and away from zero: e^x within 2^-21 of libm's, monotone up to
// that accuracy, an exact 0 or the limit outside.
static double test_exponential_of_sign(uint32_t sign, uint32_t step) {
    double worst = 0;
    float before = 1;
    for (uint32_t bits = 0; bits <= 0x7F800000u; bits += step) {
        const float x = float_of(sign | bits), found = qslm_expf(x);
        if (x < -87.33f) {
            if (found != 0 || signbit(found)) fail("exponential far below is not zero", found, 0);
            continue;
        }
        if (x > 88.0f) {
            if (found != qslm_expf(88.0f)) fail("exponential far above is not the limit", found, qslm_expf(88.0f));
            continue;
        }
        const double expected = exp((double)x), error = fabs(found / expected - 1);
        if (!(error < 0x1p-21)) fail("exponential", found, expected);
        worst = fmax(worst, error);
        if (sign ? found > before * (1 + 0x1p-21f) : found < before * (1 - 0x1p-21f)) {
            fail("exponential is not monotone", found, before);
        }
        before = found;
    }
    return worst;
}

static void test_exponential(uint32_t step) {
    const double below = test_exponential_of_sign(0x80000000u, step), above = test_exponential_of_sign(0, step);
    if (qslm_expf(0.0f) != 1.0f || qslm_expf(-0.0f) != 1.0f) fail("e^0", qslm_expf(0.0f), 1);
    if (qslm_expf(-INFINITY) != 0) fail("e^-inf", qslm_expf(-INFINITY), 0);
    if (qslm_expf(-1e38f) != 0) fail("e^-1e38", qslm_expf(-1e38f), 0);
    if (!(qslm_expf(INFINITY) >= 0x1p126f && qslm_expf(INFINITY) <= 0x1p127f)) fail("e^inf", qslm_expf(INFINITY), 1);
    if (!isnan(qslm_expf(NAN))) fail("e^NaN is a number", qslm_expf(NAN), NAN);
    printf("exponential: relative error at most 2^%.2f\n", log2(fmax(below, above)));
}

int main(int count, char **arguments) {
    const int only_bits = count > 1 && !strcmp(arguments[1], "bits");
    const uint32_t step = count > 2 ? (uint32_t)strtoul(arguments[2], NULL, 10) : 101;
    for (int i = 0; i < SHAPE_COUNT; i++) {
        test_lif_f32(SHAPES[i]);
        test_lif_f64(SHAPES[i]);
        test_wkv_f32(SHAPES[i]);
        test_wkv_f64(SHAPES[i]);
    }
    test_lif_infinite_f32();
    test_lif_infinite_f64();
    test_wkv_extremes_f32();
    test_wkv_extremes_f64();
    test_gptq();
    if (only_bits) {
        printf("%016" PRIx64 "\n", digest);
        return 0;
    }
    test_packing();
    test_layout();
    test_exponential(step);
    qslm_keep_freed_memory();
    if (qslm_return_freed_memory((size_t)-1) || (qslm_return_freed_memory(0) && qslm_return_freed_memory(1 << 20))) {
        printf("memory: given back although the process did not grow\n");
        return 1;
    }
    printf("kernels: all as the naive loops\n");
    return 0;
}
