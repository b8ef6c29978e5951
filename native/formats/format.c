// The text of a number format, part by part: int4 -sym -g64 -s8 -a4.
#include <string.h>

#include "formats/file.h"

typedef struct {
    const char *next, *end;
} rest_of;

// Whether the text goes on with `word`; if so, it is read over.
static bool goes_on(rest_of *text, const char *word) {
    const size_t size = strlen(word);
    if ((size_t)(text->end - text->next) < size || memcmp(text->next, word, size) != 0) return false;
    text->next += size;
    return true;
}

static unsigned digit(rest_of *text) {
    return text->next < text->end && *text->next >= '0' && *text->next <= '9' ? (unsigned)(*text->next++ - '0') : 0;
}

static bool is_float(const char *text, size_t size, qslm_matrix *matrix) {
    static const char *const names[] = {"float32", "float16", "bfloat16"};
    static const qslm_kind kinds[] = {QSLM_FLOAT32, QSLM_FLOAT16, QSLM_BFLOAT16};
    for (size_t i = 0; i < 3; i++) {
        if (strlen(names[i]) == size && memcmp(names[i], text, size) == 0) {
            *matrix = (qslm_matrix){.kind = kinds[i], .bits = i == 0 ? 32 : 16, .symmetric = true};
            return true;
        }
    }
    return false;
}

static bool read_grain(rest_of *text, qslm_matrix *matrix) {
    if (goes_on(text, "-row")) return true;
    if (goes_on(text, "-tensor")) {
        matrix->one_scale = true;
        return true;
    }
    matrix->group = goes_on(text, "-g32") ? 32 : goes_on(text, "-g64") ? 64 : goes_on(text, "-g128") ? 128 : 0;
    return matrix->group > 0;
}

static void read_scales(rest_of *text, qslm_matrix *matrix) {
    matrix->scale_type = goes_on(text, "-s32")  ? QSLM_SCALE_FLOAT32
                         : goes_on(text, "-s8") ? QSLM_SCALE_STEPS
                         : goes_on(text, "-p2") ? QSLM_SCALE_SHIFTS
                                                : QSLM_SCALE_FLOAT16;
}

// What Python's Format refuses too.
static bool is_possible(const qslm_matrix *matrix) {
    const bool shifts = matrix->scale_type == QSLM_SCALE_SHIFTS;
    if (matrix->scale_type == QSLM_SCALE_STEPS && matrix->one_scale) return false;
    if (shifts && !(matrix->symmetric && matrix->group > 0 && matrix->bits >= 2 && matrix->bits <= 7)) return false;
    if (matrix->activations == 0) return true;
    const bool by_rows = matrix->group == 0 && !matrix->one_scale && matrix->scale_type != QSLM_SCALE_STEPS;
    return matrix->activations >= 2 && matrix->activations <= 8 && matrix->bits >= 2 && matrix->symmetric &&
           (by_rows || shifts);
}

bool qslm_read_format(const char *text, size_t size, qslm_matrix *matrix) {
    rest_of rest = {text, text + size};
    if (is_float(text, size, matrix)) return true;
    if (goes_on(&rest, "sign")) {
        *matrix = (qslm_matrix){.kind = QSLM_SIGN, .bits = 1, .symmetric = true};
        return rest.next == rest.end;
    }
    if (!goes_on(&rest, "int")) return false;
    *matrix = (qslm_matrix){.kind = QSLM_INTEGER, .bits = digit(&rest)};
    matrix->symmetric = goes_on(&rest, "-sym");
    if (matrix->bits < 1 || matrix->bits > 8 || !read_grain(&rest, matrix)) return false;
    read_scales(&rest, matrix);
    if (goes_on(&rest, "-a")) {
        matrix->activations = digit(&rest);
        if (matrix->activations == 0) return false;
    }
    return rest.next == rest.end && is_possible(matrix);
}
