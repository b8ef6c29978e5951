#include "memory.h"

#if defined(__GLIBC__) || defined(__linux__)
#include <malloc.h>
#endif

int qslm_return_freed_memory(size_t least) {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
    return mallinfo2().fordblks > least && malloc_trim(0);
#else
    (void)least;
    return 0;
#endif
}

void qslm_keep_freed_memory(void) {
#if defined(M_MMAP_THRESHOLD) && defined(M_TRIM_THRESHOLD)
    mallopt(M_MMAP_THRESHOLD, 32 << 20); // the largest that glibc takes
    mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
#endif
}
