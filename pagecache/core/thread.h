/* The calling thread's number, for counters that no two threads should share; what started it; threads without the GIL. */
#ifndef PC_THREAD_H
#define PC_THREAD_H
#include <pthread.h>
#include <stdint.h>
#include <time.h>
#if defined(__GLIBC__)  /* which keeps room for libraries that are loaded later; musl refuses to load them */
#define PC_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define PC_TLS_MODEL
#endif

static __thread uint32_t pc_thread_slot PC_TLS_MODEL;
static uint32_t pc_thread_slots_taken;

/* 1, 2, 3 ... in the order in which threads first ask. */
static inline uint32_t thread_slot(void) {
    uint32_t slot = pc_thread_slot;
    if (__builtin_expect(slot == 0, 0))
        slot = pc_thread_slot = __atomic_add_fetch(&pc_thread_slots_taken, 1, __ATOMIC_RELAXED);
    return slot;
}

/* What started the thread, as far as it has been looked up. */
enum { THREAD_KIND_UNKNOWN, THREAD_KIND_PYTHON, THREAD_KIND_NATIVE };
static __thread uint8_t pc_thread_kind PC_TLS_MODEL;
static inline int thread_kind(void) { return pc_thread_kind; }
static inline void thread_kind_set(int kind) { pc_thread_kind = (uint8_t)kind; }

typedef struct { pthread_t id; int started; } pc_thread;

static inline int thread_start(pc_thread *thread, void *(*run)(void *), void *argument) {
    int r = pthread_create(&thread->id, NULL, run, argument);
    thread->started = r == 0;
    return -r;
}
static inline void thread_join(pc_thread *thread) {
    if (thread->started) { pthread_join(thread->id, NULL); thread->started = 0; }
}
static inline int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
/* The same clock as of its last tick, at most COARSE_TICK_NS ago: read without asking the processor for the time. */
enum { COARSE_TICK_NS = 10000000 };
static inline int64_t monotonic_coarse_ns(void) {
#ifdef CLOCK_MONOTONIC_COARSE
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#else
    return monotonic_ns();
#endif
}
#endif
