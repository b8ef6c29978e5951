// Reading a packed model (a safetensors file that qslm wrote, version 2) in place: nothing is copied, every length, offset
// and metadata value is checked before it is used, and what is wrong is said.
#ifndef QSLM_FILE_H
#define QSLM_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

// A range of memory: a mapped file, or flash.
typedef struct {
    const uint8_t *start;
    size_t size;
} qslm_bytes;

// Memory that is handed out from its start and never given back.
typedef struct {
    uint8_t *start;
    size_t size, used;
} qslm_arena;

// `size` bytes at a multiple of 64; NULL and an error that names the bytes wanted where they are not left.
void *qslm_take(qslm_arena *arena, size_t size, qslm_error *error);

typedef struct {
    const char *name; // in the file's header, not terminated, without escapes
    size_t name_size;
    qslm_matrix matrix; // of one row where the site has one axis; (out, in) as the first axis against all others
} qslm_site;

typedef struct {
    qslm_bytes content;
    const qslm_site *sites; // (count,)
    size_t count;
    size_t weights;         // bytes of all tensors
} qslm_file;

// How many bytes of an arena qslm_read_file takes at most, for any file of that size of header.
size_t qslm_file_memory(qslm_bytes content);

// Check a file and find its sites. Names with escapes, formats of more than 8 bits, and matrices of more than
// QSLM_MOST_COLUMNS columns are refused by name. Scales and floats are not read here: qslm_check_numbers does.
bool qslm_read_file(qslm_bytes content, qslm_arena *arena, qslm_file *file, qslm_error *error);

// Read all scales, steps and floats once: false where one is not finite, or a scale not positive. Costs the time of
// reading them.
bool qslm_check_numbers(const qslm_file *file, qslm_error *error);

// The site of that name or alias, terminated; NULL and an error where there is none.
const qslm_site *qslm_find_site(const qslm_file *file, const char *name, qslm_error *error);

#ifdef __cplusplus
}
#endif

#endif
