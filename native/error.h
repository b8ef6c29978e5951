// What was wrong, in words.
#ifndef QSLM_ERROR_H
#define QSLM_ERROR_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char text[256]; // terminated; a sentence with its full stop
} qslm_error;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool qslm_fail(qslm_error *error, const char *format, ...); // returns false; error may be NULL

#ifdef __cplusplus
}
#endif

#endif
