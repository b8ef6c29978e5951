#define _DEFAULT_SOURCE // for POSIX under -std=c11
#include "formats/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool qslm_map_file(const char *path, qslm_bytes *content, qslm_error *error) {
    const int file = open(path, O_RDONLY);
    if (file < 0) return qslm_fail(error, "%s cannot be opened: %s.", path, strerror(errno));
    struct stat status;
    if (fstat(file, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) {
        close(file);
        return qslm_fail(error, "%s is not a file, or it is empty.", path);
    }
    void *start = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    const int problem = errno;
    close(file);
    if (start == MAP_FAILED) return qslm_fail(error, "%s cannot be mapped: %s.", path, strerror(problem));
    *content = (qslm_bytes){start, (size_t)status.st_size};
    return true;
}

void qslm_unmap_file(qslm_bytes content) {
    munmap((void *)content.start, content.size);
}
