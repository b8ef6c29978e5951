// Reading a packed model (a safetensors file that qslm wrote, version 2) in place: numbers are not copied; every length,
// offset and metadata value is checked before it is used, and what is wrong is said.
#ifndef QSLM_FILE_H
#define QSLM_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "system/error.h"
#include "products/matrix.h"

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

// `size` bytes at a multiple of 64; NULL and an error that tells the bytes wanted where they are not left.
void *qslm_take(qslm_arena *arena, size_t size, qslm_error *error);

// How many bytes of an arena such a call takes at most.
static inline size_t qslm_room(size_t count, size_t size) {
    return count * size + 63;
}

typedef struct {
    const char *name; // not terminated
    size_t name_size;
    qslm_matrix matrix; // (out, in): the first axis against all others; a vector is one row
} qslm_site;

typedef struct {
    const char *name, *stands_for;
    size_t name_size, stands_for_size;
} qslm_alias;

typedef struct {
    qslm_bytes content;
    const qslm_site *sites; // (count,), by name
    size_t count;
    const qslm_alias *aliases; // (alias_count,)
    size_t alias_count;
    size_t data_bytes; // of all tensors
} qslm_file;

// How many bytes of an arena qslm_read_file takes at most, of a file as qslm writes it; and how many of these it gives back
// when it has read. 0 where the file is too short for its header, or that one too long for the target.
size_t qslm_file_memory(qslm_bytes content);
size_t qslm_file_scratch(qslm_bytes content);

// Check a file and find its sites. Names with escapes, formats of more than 8 bits, and matrices of more than
// QSLM_MOST_COLUMNS columns are refused by name. Scales and floats are not read here: see qslm_check_numbers.
bool qslm_read_file(qslm_bytes content, qslm_arena *arena, qslm_file *file, qslm_error *error);

// Read all scales, steps and floats once: false where one is not finite, or a scale not positive.
bool qslm_check_numbers(const qslm_file *file, qslm_error *error);

// The site of that name or alias, terminated; NULL and an error where there is none.
const qslm_site *qslm_find_site(const qslm_file *file, const char *name, qslm_error *error);

// The text of a number format, such as int4-sym-g64, into the fields of a matrix that it decides; `group` is 0 where a row
// has one scale. False where it is none that the engine reads.
bool qslm_read_format(const char *text, size_t size, qslm_matrix *matrix);

#ifdef __cplusplus
}
#endif

#endif
