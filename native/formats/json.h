// A pull parser for JSON in memory: a cursor walks over the text, nothing is copied, there is no heap.
//
//     qslm_json json = qslm_json_open(text, size, &error);
//     qslm_json_span key;
//     int64_t layers = 0;
//     qslm_json_enter_object(&json);
//     while (qslm_json_next_member(&json, &key)) {
//         if (qslm_json_equals(key, "layers")) qslm_json_int64(&json, &layers);
//         else qslm_json_skip(&json, NULL);
//     }
//     if (!qslm_json_close(&json)) return false; // `error` says what, at which byte and behind which key
//
// A failure sticks: every later call returns false, so that loops end and only the last call has to be checked.
// After qslm_json_next_member or qslm_json_next_element returned true exactly one value is to be read or skipped.
// Texts that are not strict JSON in UTF-8 are refused, and nesting of more than QSLM_JSON_DEPTH.
#ifndef QSLM_JSON_H
#define QSLM_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "system/error.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QSLM_JSON_DEPTH 64

// A part of the text: of a string what stands between its quotes, with its escapes; of another value all of it.
typedef struct {
    const char *text;
    size_t size;
} qslm_json_span;

typedef struct {
    const char *start, *next, *end; // the text and the first byte that was not read
    qslm_json_span key;             // the last that was read, for messages
    qslm_error *error;              // may be NULL
    uint64_t objects;               // bit k: the container at depth k is an object
    unsigned depth;                 // of containers that are open
    bool fresh;                     // a container was opened and nothing in it was read
    bool failed;
} qslm_json;

typedef enum {
    QSLM_JSON_NOTHING, // the end of the text, or what begins no value
    QSLM_JSON_NULL,
    QSLM_JSON_BOOL,
    QSLM_JSON_NUMBER,
    QSLM_JSON_STRING,
    QSLM_JSON_ARRAY,
    QSLM_JSON_OBJECT
} qslm_json_kind;

// `text` has `size` bytes, needs no 0 at its end, and must outlive the cursor and its spans.
qslm_json qslm_json_open(const char *text, size_t size, qslm_error *error);

// Whether all went well and nothing but white space is left.
bool qslm_json_close(qslm_json *json);

// What the next value is; reads nothing.
qslm_json_kind qslm_json_peek(qslm_json *json);

// Containers: enter, then call next until it returns false, which is the end of the container or a failure.
bool qslm_json_enter_object(qslm_json *json);
bool qslm_json_next_member(qslm_json *json, qslm_json_span *key);
bool qslm_json_enter_array(qslm_json *json);
bool qslm_json_next_element(qslm_json *json);

// Values. Each fails where the next value is of another kind, or does not fit the type.
bool qslm_json_null(qslm_json *json);
bool qslm_json_bool(qslm_json *json, bool *value);
bool qslm_json_int64(qslm_json *json, int64_t *value);   // without fraction and exponent
bool qslm_json_double(qslm_json *json, double *value);   // of 63 characters at most; finite
bool qslm_json_string(qslm_json *json, qslm_json_span *value);

// Reads over any value, and checks it. `value` may be NULL; of a string it has the quotes.
bool qslm_json_skip(qslm_json *json, qslm_json_span *value);

// Puts the string of a span that qslm_json_string or qslm_json_next_member gave, without escapes, as UTF-8 to `buffer`
// (no 0 is added), its bytes into `size`: at most those of the span. Returns false where it does not fit.
bool qslm_json_decode(qslm_json_span string, char *buffer, size_t capacity, size_t *size);

// Whether the string of a span is `text`, of 255 bytes at most.
bool qslm_json_equals(qslm_json_span string, const char *text);

// Fails with a message that names the byte that the cursor is at: for what is JSON but not what the caller wants.
bool qslm_json_fail(qslm_json *json, const char *problem);

#ifdef __cplusplus
}
#endif

#endif
