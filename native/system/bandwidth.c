#include "system/bandwidth.h"

#include <stdatomic.h>

#include "system/portable.h"

enum { GRAIN = 1 << 12 };

typedef struct {
    const uint64_t *words;
    _Atomic uint64_t sum;
} reading;

QSLM_SIMD static uint64_t sum_of(const uint64_t *words, size_t first, size_t last) {
    uint64_t sum = 0;
    for (size_t i = first; i < last; i++) sum += words[i];
    return sum;
}

static void read_part(void *state, size_t first, size_t last) {
    reading *all = state;
    atomic_fetch_add(&all->sum, sum_of(all->words, first, last));
}

uint64_t qslm_sum_words(const uint64_t *words, size_t count, qslm_threads *threads) {
    reading all = {.words = words, .sum = 0};
    qslm_share(threads, count, GRAIN, read_part, &all);
    return atomic_load(&all.sum);
}
