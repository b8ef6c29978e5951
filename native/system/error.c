#include "system/error.h"

#include <stdarg.h>

bool qslm_fail(qslm_error *error, const char *format, ...) {
    if (!error) return false;
    va_list values;
    va_start(values, format);
    qslm_print_list(error->text, sizeof error->text, format, values);
    va_end(values);
    return false;
}
