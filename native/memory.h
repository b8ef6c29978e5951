#ifndef QSLM_MEMORY_H
#define QSLM_MEMORY_H

// Ask the C library to keep freed memory of up to 32 MiB a block for later use. Training frees and allocates the same
// buffers at every step; fresh pages for them cost a third of its time. Does nothing where the library has no such knob.
void qslm_keep_freed_memory(void);

#endif
