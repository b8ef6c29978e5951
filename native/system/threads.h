// A pool of threads that share the rows of a product. Threads wait on a condition when idle, never by spinning for long.
#ifndef QSLM_THREADS_H
#define QSLM_THREADS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qslm_threads qslm_threads;

// A pool of `count` threads, the caller's among them; NULL where there is no memory, or on targets without threads
// (QSLM_NO_THREADS), where everything runs in the caller's.
qslm_threads *qslm_start_threads(unsigned count);
void qslm_stop_threads(qslm_threads *pool);

// How many threads share work, the caller's among them; 1 with pool NULL.
unsigned qslm_count_threads(const qslm_threads *pool);

// Call work(state, first, last) for parts of [0, count) that begin at multiples of `grain`, on all threads, and wait.
// With pool NULL: one call.
void qslm_share(qslm_threads *pool, size_t count, size_t grain, void (*work)(void *state, size_t first, size_t last),
                void *state);

#ifdef __cplusplus
}
#endif

#endif
