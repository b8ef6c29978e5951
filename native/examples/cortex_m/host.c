// The console of a host, so that the same example runs there.
#include "console.h"

#include <stdio.h>

void console_write(const char *text) {
    fputs(text, stdout);
}

size_t stack_used(void) {
    return 0;
}

size_t stack_size(void) {
    return 0;
}
