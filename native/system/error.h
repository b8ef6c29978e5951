// What went wrong, in words for the user: what, where, the numbers.
#ifndef QSLM_ERROR_H
#define QSLM_ERROR_H

#include <stdbool.h>

#include "system/print.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char text[256]; // ends in 0; a longer message is cut
} qslm_error;

// Writes the message, as qslm_print does, where `error` is not NULL. Always returns false: `return qslm_fail(error, ...);`.
bool qslm_fail(qslm_error *error, const char *format, ...) QSLM_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif

#endif
