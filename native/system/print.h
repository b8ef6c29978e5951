// Text by a format, without the C library's printf: on small targets that one brings a heap along.
#ifndef QSLM_PRINT_H
#define QSLM_PRINT_H

#include <stdarg.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QSLM_PRINTF(FORMAT, FIRST) __attribute__((format(printf, FORMAT, FIRST)))
#else
#define QSLM_PRINTF(FORMAT, FIRST)
#endif

// As snprintf, of which it knows %s, %.*s, %d, %u, %x, both l, ll and z before the last three, and %%. A longer text is cut;
// it ends in 0. Returns how many characters stand there, without the 0. `size` is at least 1.
int qslm_print(char *text, size_t size, const char *format, ...) QSLM_PRINTF(3, 4);
int qslm_print_list(char *text, size_t size, const char *format, va_list values);

#ifdef __cplusplus
}
#endif

#endif
