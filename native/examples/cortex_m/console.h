// Where the example writes, and how it ends: semihosting.c on a board, host.c on a host.
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stddef.h>

void console_write(const char *text); // which ends in 0

// The deepest the stack has been, and the room that it has, in bytes; 0 where that is not known.
size_t stack_used(void);
size_t stack_size(void);

#endif
