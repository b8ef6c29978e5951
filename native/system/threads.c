// A generation number tells the workers of a new job; a part belongs to whoever takes it first.
#include "system/threads.h"

#if defined(QSLM_NO_THREADS)

qslm_threads *qslm_start_threads(unsigned count) {
    (void)count;
    return NULL;
}

void qslm_stop_threads(qslm_threads *pool) {
    (void)pool;
}

unsigned qslm_count_threads(const qslm_threads *pool) {
    (void)pool;
    return 1;
}

void qslm_share(qslm_threads *pool, size_t count, size_t grain, void (*work)(void *, size_t, size_t), void *state) {
    (void)pool, (void)grain;
    if (count > 0) work(state, 0, count);
}

#else

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SPINS = 2000, PARTS_PER_THREAD = 4, STACK = 1 << 20 }; // some microseconds: shorter than sleeping and waking up

struct qslm_threads {
    pthread_mutex_t mutex;
    pthread_cond_t begun, ended;
    void (*work)(void *, size_t, size_t);
    void *state;
    size_t count, part;
    atomic_size_t next;         // the first that nobody has taken
    atomic_uint generation;     // of the job
    atomic_uint running;        // workers that have not finished it
    unsigned workers, sleeping; // without the caller's thread; both under the mutex
    bool stop;
    pthread_t threads[];
};

static void pause_briefly(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_ia32_pause();
#endif
}

static void run_parts(qslm_threads *pool) {
    size_t first;
    while ((first = atomic_fetch_add(&pool->next, pool->part)) < pool->count) {
        const size_t last = first + pool->part;
        pool->work(pool->state, first, last < pool->count ? last : pool->count);
    }
}

static void wait_for_work(qslm_threads *pool, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->generation) != seen) return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    pool->sleeping++;
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->begun, &pool->mutex);
    pool->sleeping--;
    pthread_mutex_unlock(&pool->mutex);
}

static void *serve(void *argument) {
    qslm_threads *pool = argument;
    for (unsigned seen = 0;; seen++) {
        wait_for_work(pool, seen);
        if (pool->stop) return NULL;
        run_parts(pool);
        if (atomic_fetch_sub(&pool->running, 1) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->ended);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

// Tell the workers of a new job, whose fields are set.
static void begin(qslm_threads *pool) {
    atomic_store(&pool->running, pool->workers);
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->generation, 1);
    if (pool->sleeping > 0) pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->mutex);
}

static void wait_for_end(qslm_threads *pool) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->running) == 0) return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->running) > 0) pthread_cond_wait(&pool->ended, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

qslm_threads *qslm_start_threads(unsigned count) {
    if (count < 2) return NULL;
    qslm_threads *pool = calloc(1, sizeof *pool + (count - 1) * sizeof(pthread_t));
    if (pool == NULL) return NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pthread_cond_init(&pool->ended, NULL);
    pthread_attr_t attributes; // some C libraries give a thread less than the lists of a product take
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    while (pool->workers < count - 1 && !pthread_create(&pool->threads[pool->workers], &attributes, serve, pool)) {
        pool->workers++;
    }
    pthread_attr_destroy(&attributes);
    return pool;
}

void qslm_stop_threads(qslm_threads *pool) {
    if (pool == NULL) return;
    pool->stop = true;
    begin(pool);
    for (unsigned i = 0; i < pool->workers; i++) pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->begun);
    pthread_cond_destroy(&pool->ended);
    free(pool);
}

unsigned qslm_count_threads(const qslm_threads *pool) {
    return pool == NULL ? 1 : pool->workers + 1;
}

void qslm_share(qslm_threads *pool, size_t count, size_t grain, void (*work)(void *, size_t, size_t), void *state) {
    if (count == 0) return;
    if (pool == NULL || pool->workers == 0 || count <= grain) {
        work(state, 0, count);
        return;
    }
    const size_t parts = (size_t)(pool->workers + 1) * PARTS_PER_THREAD;
    pool->part = ((count + parts - 1) / parts + grain - 1) / grain * grain;
    pool->count = count;
    pool->work = work;
    pool->state = state;
    atomic_store(&pool->next, 0);
    begin(pool);
    run_parts(pool);
    wait_for_end(pool);
}

#endif
