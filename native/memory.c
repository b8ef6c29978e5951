#include "memory.h"

#if defined(__GLIBC__) || defined(__linux__)
#include <malloc.h>
#endif

void qslm_keep_freed_memory(void) {
#if defined(M_MMAP_THRESHOLD) && defined(M_TRIM_THRESHOLD)
    mallopt(M_MMAP_THRESHOLD, 32 << 20); // the largest that glibc takes
    mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
#endif
}
