/* What the anchors share: threads that start together and repeat a lookup without the GIL.

An anchor is a shared library of its own. It defines ANCHOR_FILL, ANCHOR_LOOKUP and, if it can pin what it found,
ANCHOR_PIN, and includes this file, which makes of them

    void *anchor_open(nr_pages, order)   fills it with nr_pages entries, in the order given
    int anchor_pins(void)                whether it can look up, pin and unpin
    int anchor_run(...)                  times one round
    void anchor_close(anchor)

ANCHOR_FILL(nr_pages, order) returns what the others get. ANCHOR_LOOKUP(filled, index) and ANCHOR_PIN(filled, index) return
a number made of what they found, so that the compiler cannot leave them out. ANCHOR_THREAD_BEGIN and ANCHOR_THREAD_END run
in every thread. */

#ifndef PAGECACHE_ANCHOR_H
#define PAGECACHE_ANCHOR_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef __cplusplus
#define ANCHOR_API extern "C" __attribute__((visibility("default")))
#else
#define ANCHOR_API __attribute__((visibility("default")))
#endif

#ifndef ANCHOR_THREAD_BEGIN
#define ANCHOR_THREAD_BEGIN()
#define ANCHOR_THREAD_END()
#endif

enum { ANCHOR_THREADS_MAX = 8 };

typedef struct {
    void *filled;
    uint32_t nr_pages;          /* a power of two */
    uint32_t *indices;          /* nr_pages of them, in the order of access */
    uint64_t nr_operations;     /* of one thread */
    uint32_t nr_threads;
    int pin;
    uint32_t nr_ready;          /* threads that wait for the others */
} Anchor;

typedef struct {
    Anchor *anchor;
    uint32_t slot;
    int64_t start_ns, end_ns, cpu_ns;
    uint64_t sum;
} AnchorWorker;

static int64_t anchor_clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint64_t anchor_work(const Anchor *anchor, uint64_t first, uint64_t nr_operations)
{
    const uint32_t *indices = anchor->indices;
    const uint64_t mask = anchor->nr_pages - 1;
    uint64_t i, sum = 0;
#ifdef ANCHOR_PIN
    if (anchor->pin) {
        for (i = first; i < first + nr_operations; i++)
            sum += ANCHOR_PIN(anchor->filled, indices[i & mask]);
        return sum;
    }
#endif
    for (i = first; i < first + nr_operations; i++)
        sum += ANCHOR_LOOKUP(anchor->filled, indices[i & mask]);
    return sum;
}

/* Visits every entry, which is not timed, waits until all threads are there, then works. */
static void *anchor_thread(void *argument)
{
    AnchorWorker *worker = (AnchorWorker *)argument;
    Anchor *anchor = worker->anchor;
    const uint64_t first = (uint64_t)worker->slot * (anchor->nr_pages / 2);
    int64_t cpu_ns;
    ANCHOR_THREAD_BEGIN();
    worker->sum = anchor_work(anchor, first, anchor->nr_pages);
    __atomic_fetch_add(&anchor->nr_ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&anchor->nr_ready, __ATOMIC_ACQUIRE) < anchor->nr_threads)
        ;
    cpu_ns = anchor_clock_ns(CLOCK_THREAD_CPUTIME_ID);
    worker->start_ns = anchor_clock_ns(CLOCK_MONOTONIC);
    worker->sum = anchor_work(anchor, first, anchor->nr_operations);
    worker->end_ns = anchor_clock_ns(CLOCK_MONOTONIC);
    worker->cpu_ns = anchor_clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;
    ANCHOR_THREAD_END();
    return NULL;
}

ANCHOR_API int anchor_pins(void)
{
#ifdef ANCHOR_PIN
    return 1;
#else
    return 0;
#endif
}

ANCHOR_API void *anchor_open(uint32_t nr_pages, const uint32_t *order)
{
    Anchor *anchor = (Anchor *)calloc(1, sizeof(Anchor));
    if (anchor == NULL)
        return NULL;
    anchor->nr_pages = nr_pages;
    anchor->filled = ANCHOR_FILL(nr_pages, order);
    anchor->indices = (uint32_t *)calloc(nr_pages, sizeof(uint32_t));
    if (anchor->filled == NULL || anchor->indices == NULL) {
        free(anchor->indices);
        free(anchor);
        return NULL;
    }
    return anchor;
}

/* Repeats the operation over `order` (nr_pages indices). Writes the time from the first start to the last end, the
processor time of all threads, and the sum of what was found; returns 0, or -1 if a thread did not start. */
ANCHOR_API int anchor_run(void *opened, int pin, uint32_t nr_threads, uint64_t nr_operations, const uint32_t *order,
                          int64_t *elapsed_ns, int64_t *cpu_ns, uint64_t *sum)
{
    Anchor *anchor = (Anchor *)opened;
    AnchorWorker workers[ANCHOR_THREADS_MAX] = {};
    pthread_t threads[ANCHOR_THREADS_MAX];
    uint32_t i, nr_started = 0;
    int64_t start_ns, end_ns;
    for (i = 0; i < anchor->nr_pages; i++)
        anchor->indices[i] = order[i];
    anchor->pin = pin;
    anchor->nr_threads = nr_threads;
    anchor->nr_operations = nr_operations;
    anchor->nr_ready = 0;
    for (i = 0; i < nr_threads; i++) {
        workers[i].anchor = anchor;
        workers[i].slot = i;
        if (pthread_create(&threads[i], NULL, anchor_thread, &workers[i]) != 0)
            break;
        nr_started++;
    }
    __atomic_fetch_add(&anchor->nr_ready, nr_threads - nr_started, __ATOMIC_ACQ_REL);
    for (i = 0; i < nr_started; i++)
        pthread_join(threads[i], NULL);
    if (nr_started < nr_threads)
        return -1;
    start_ns = workers[0].start_ns;
    end_ns = workers[0].end_ns;
    *cpu_ns = 0;
    *sum = 0;
    for (i = 0; i < nr_threads; i++) {
        start_ns = workers[i].start_ns < start_ns ? workers[i].start_ns : start_ns;
        end_ns = workers[i].end_ns > end_ns ? workers[i].end_ns : end_ns;
        *cpu_ns += workers[i].cpu_ns;
        *sum += workers[i].sum;
    }
    *elapsed_ns = end_ns - start_ns;
    return 0;
}

/* What was filled stays until the process ends: some of the libraries cannot take down a table from any thread. */
ANCHOR_API void anchor_close(void *opened)
{
    Anchor *anchor = (Anchor *)opened;
    free(anchor->indices);
    free(anchor);
}

#endif
