// A file of the host in memory, read-only; its pages are loaded as they are read.
#ifndef QSLM_MAPPING_H
#define QSLM_MAPPING_H

#include "formats/file.h"

#ifdef __cplusplus
extern "C" {
#endif

// False and an error where it cannot be opened or is empty.
bool qslm_map_file(const char *path, qslm_bytes *content, qslm_error *error);
void qslm_unmap_file(qslm_bytes content);

#ifdef __cplusplus
}
#endif

#endif
