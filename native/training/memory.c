#include "training/memory.h"

#if defined(__GLIBC__) || defined(__linux__)
#include <malloc.h>
#endif

#if defined(__GLIBC__)
#include <stdio.h>
#include <unistd.h>

// Bytes of this process in memory, 0 where the system does not tell.
static size_t resident(void) {
    size_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        if (fscanf(file, "%*s %zu", &pages) != 1) pages = 0;
        fclose(file);
    }
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

int qslm_return_freed_memory(size_t least) {
    static size_t settled; // after the last time
    size_t now = resident();
    if (now < settled) settled = now;
    if (now - settled <= least) return 0;
    malloc_trim(0);
    settled = resident();
    return 1;
}
#else
int qslm_return_freed_memory(size_t least) {
    (void)least;
    return 0;
}
#endif

void qslm_keep_freed_memory(void) {
#if defined(M_MMAP_THRESHOLD) && defined(M_TRIM_THRESHOLD)
    mallopt(M_MMAP_THRESHOLD, 32 << 20); // the largest that glibc takes
    mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
#endif
}
