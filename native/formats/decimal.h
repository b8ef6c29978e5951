// Decimal text as a float64: the same bits on every target, with no locale and no heap.
#ifndef QSLM_DECIMAL_H
#define QSLM_DECIMAL_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QSLM_DECIMAL_LONGEST = 63 }; // characters

// The float64 that is nearest to a number by the grammar of JSON, of equally near ones the even one. False where it is
// beyond all of them.
bool qslm_read_decimal(const char *text, size_t size, double *value);

#ifdef __cplusplus
}
#endif

#endif
