#ifndef QSLM_MEMORY_H
#define QSLM_MEMORY_H

#include <stddef.h>

// Ask the C library to keep freed memory of up to 32 MiB a block for later use. Training frees and allocates the same
// buffers at every step; fresh pages for them cost a third of its time. Does nothing where the library has no such knob.
void qslm_keep_freed_memory(void);

// Give freed memory back to the system where the process has grown by more than `least` bytes since it last did: large
// buffers of many sizes, freed and allocated in turns, leave gigabytes of gaps. Returns 1 where it gave back, else 0;
// always 0 where neither can be asked for. For one thread at a time.
int qslm_return_freed_memory(size_t least);

#endif
