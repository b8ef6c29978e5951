// Choosing kernels, products with floats, which are not worth a kernel of their own, and sharing rows among threads.
#include "products/matrix.h"

#include <stdatomic.h>

#include "products/matrix_inside.h"
#include "system/portable.h"

// ---- which kernels ------------------------------------------------------------------------------------------------

static const qslm_kernels *const BUILT[] = {
#if defined(QSLM_HAVE_AVX512)
    &qslm_avx512_kernels,
#endif
#if defined(QSLM_HAVE_AVX2)
    &qslm_avx2_kernels,
#endif
#if defined(QSLM_HAVE_NEON)
    &qslm_neon_dot_kernels,
    &qslm_neon_kernels,
#endif
    &qslm_scalar_kernels,
};
enum { BUILT_COUNT = sizeof BUILT / sizeof *BUILT };

// By whichever thread multiplies first: all choose the same constants, so that nothing is ordered by it. An order would
// want a barrier, which old 32-bit processors have not.
static const qslm_kernels *_Atomic chosen;

const char *const *qslm_kernel_names(void) {
    static const char *names[BUILT_COUNT + 1];
    size_t count = 0;
    for (size_t i = 0; i < BUILT_COUNT; i++) {
        if (BUILT[i]->usable()) names[count++] = BUILT[i]->name;
    }
    names[count] = NULL;
    return names;
}

bool qslm_choose_kernels(const char *name) {
    for (size_t i = 0; i < BUILT_COUNT; i++) {
        if (BUILT[i]->usable() && (name == NULL || strcmp(name, BUILT[i]->name) == 0)) {
            atomic_store_explicit(&chosen, BUILT[i], memory_order_relaxed);
            return true;
        }
    }
    return false;
}

static const qslm_kernels *kernels(void) {
    if (atomic_load_explicit(&chosen, memory_order_relaxed) == NULL) qslm_choose_kernels(NULL);
    return atomic_load_explicit(&chosen, memory_order_relaxed);
}

enum { WORTH_SHARING = 1 << 18 }; // products: fewer are done before another thread has woken up

// ---- integers -----------------------------------------------------------------------------------------------------

enum { INFINITE_BITS = 0x7f800000 };
static const float SMALLEST = 1e-35f; // neither its scale nor the inverse leave the range of normal numbers

// The largest absolute value, as the bits of a float, which are ordered as the values are; NaN counts as 0.
QSLM_SIMD static int32_t largest_bits(const float *x, size_t count) {
    int32_t most = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= INT32_MAX;
        bits = bits > INFINITE_BITS ? 0 : bits;
        most = bits > most ? bits : most;
    }
    return most;
}

QSLM_SIMD static void round_all(const float *x, size_t count, float inverse, int8_t *codes) {
    for (size_t i = 0; i < count; i++) {
        const float step = x[i] * inverse, away = step + (step < 0.0f ? -0.5f : 0.5f);
        float within = away == away ? away : 0.0f;
        within = within > 127.0f ? 127.0f : within;
        within = within < -127.0f ? -127.0f : within;
        codes[i] = (int8_t)(int32_t)within;
    }
}

float qslm_round_token(const float *x, size_t columns, size_t stride, int8_t *codes) {
    const int32_t bits = largest_bits(x, columns), finite = bits < INFINITE_BITS ? bits : INFINITE_BITS - 1;
    float most;
    memcpy(&most, &finite, sizeof most);
    const bool counts = most >= SMALLEST;
    const float scale = counts ? most / 127.0f : 1.0f, inverse = counts ? 127.0f / most : 0.0f;
    round_all(x, columns, inverse, codes);
    memset(codes + columns, 0, stride - columns);
    return scale;
}

// ---- floats -------------------------------------------------------------------------------------------------------

enum { LANES = 16 };

static float total_of(float *lanes) {
    for (size_t half = LANES / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

static bool is_float(const qslm_matrix *matrix) {
    return matrix->kind != QSLM_INTEGER && matrix->kind != QSLM_SIGN;
}

// Columns [first, first + count) of a row as floats, those of one block by tiles or fewer.
static void read_part(const qslm_matrix *matrix, size_t row, size_t first, size_t count, float *values) {
    if (is_float(matrix)) {
        for (size_t i = 0; i < count; i++) values[i] = qslm_value_at(matrix, row * matrix->columns + first + i);
        return;
    }
    uint8_t codes[QSLM_BLOCK_COLUMNS];
    qslm_unpack_part(matrix->codes, matrix->rows, matrix->columns, matrix->bits, matrix->layout, row, first, count,
                     codes);
    if (matrix->kind == QSLM_SIGN) {
        for (size_t i = 0; i < count; i++) values[i] = codes[i] ? 1.0f : -1.0f;
        return;
    }
    const size_t group = first / matrix->group; // groups begin where blocks do
    const float scale = qslm_scale(matrix, row, group), zero = (float)qslm_zero(matrix, row, group);
    for (size_t i = 0; i < count; i++) values[i] = ((float)codes[i] - zero) * scale;
}

static size_t part_size(const qslm_matrix *matrix, size_t first) {
    const size_t left = matrix->columns - first;
    return left < QSLM_BLOCK_COLUMNS ? left : QSLM_BLOCK_COLUMNS;
}

static float row_product(const qslm_matrix *matrix, size_t row, const float *x) {
    float lanes[LANES] = {0.0f}, values[QSLM_BLOCK_COLUMNS];
    for (size_t first = 0; first < matrix->columns; first += QSLM_BLOCK_COLUMNS) {
        const size_t count = part_size(matrix, first);
        read_part(matrix, row, first, count, values);
        for (size_t i = 0; i < count; i++) lanes[i % LANES] += values[i] * x[first + i];
    }
    return total_of(lanes);
}

static void multiply_floats(const qslm_product *one, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        for (size_t i = 0; i < one->count; i++) {
            one->y[i * one->matrix->rows + row] = row_product(one->matrix, row, one->floats + i * one->matrix->columns);
        }
    }
}

// ---- sharing ------------------------------------------------------------------------------------------------------

static bool takes_floats(const qslm_product *one) {
    return one->tokens == NULL || is_float(one->matrix);
}

static void multiply_rows(const qslm_kernels *set, const qslm_product *one, size_t first, size_t last) {
    if (takes_floats(one)) multiply_floats(one, first, last);
    else if (one->matrix->layout == QSLM_BY_TILES) set->by_tiles(one->matrix, one->tokens, first, last, one->y);
    else set->by_columns(one->matrix, one->tokens, first, last, one->y);
}

// Products whose rows are counted by units, one product after the other.
typedef struct {
    const qslm_product *products;
    size_t count;
    const qslm_threads *threads;
    const qslm_kernels *kernels;
} batch;

// Rows that one thread takes together. By columns it is a part for every thread: in fewer rows a column has so few bytes
// that most of what is fetched lies beside them.
static size_t unit_rows(const batch *all, const qslm_product *one) {
    if (one->matrix->layout == QSLM_BY_TILES || takes_floats(one)) return 4 * QSLM_TILE_ROWS;
    const size_t threads = qslm_count_threads(all->threads), share = (one->matrix->rows + threads - 1) / threads;
    return (share + QSLM_COLUMN_ROWS - 1) / QSLM_COLUMN_ROWS * QSLM_COLUMN_ROWS;
}

static size_t count_units(const batch *all, const qslm_product *one) {
    const size_t rows = unit_rows(all, one);
    return (one->matrix->rows + rows - 1) / rows;
}

static size_t smaller(size_t one, size_t other) {
    return one < other ? one : other;
}

static void multiply_units(void *state, size_t first, size_t last) {
    const batch *all = state;
    for (size_t i = 0, before = 0; i < all->count && before < last; i++) {
        const qslm_product *one = &all->products[i];
        const size_t units = count_units(all, one), rows = unit_rows(all, one);
        const size_t from = first > before ? first - before : 0, to = smaller(last - before, units);
        if (from < to) multiply_rows(all->kernels, one, from * rows, smaller(to * rows, one->matrix->rows));
        before += units;
    }
}

void qslm_multiply(const qslm_product *products, size_t count, qslm_threads *threads) {
    batch all = {products, count, threads, kernels()};
    size_t units = 0, work = 0;
    for (size_t i = 0; i < count; i++) {
        units += count_units(&all, &products[i]);
        work += products[i].matrix->rows * products[i].matrix->columns * products[i].count;
    }
    qslm_share(work < WORTH_SHARING ? NULL : threads, units, 1, multiply_units, &all);
}

void qslm_read_row(const qslm_matrix *matrix, size_t row, float *values) {
    for (size_t first = 0; first < matrix->columns; first += QSLM_BLOCK_COLUMNS) {
        const size_t count = part_size(matrix, first);
        read_part(matrix, row, first, count, values + first);
        for (size_t i = 0; matrix->kind == QSLM_SIGN && i < count; i++) {
            values[first + i] = values[first + i] > 0.0f ? 1.0f : 0.0f;
        }
    }
}
