// How fast this machine reads memory: the limit of a product whose matrix lies in no cache.
#ifndef QSLM_BANDWIDTH_H
#define QSLM_BANDWIDTH_H

#include <stddef.h>
#include <stdint.h>

#include "system/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

// Read `count` words on all threads of the pool; returns their sum, so that nothing is left out.
uint64_t qslm_sum_words(const uint64_t *words, size_t count, qslm_threads *threads);

#ifdef __cplusplus
}
#endif

#endif
