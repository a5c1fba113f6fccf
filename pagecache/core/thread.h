/* The calling thread's slot, for counters that no two threads should share; what started it; threads without the GIL. */
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

/* Counter shards. A thread has one of its own from its first count to its end; those that begin while all are taken
 * share one. What the next owner finds there was counted before the last one gave it back (release, acquire). */
enum { PC_THREAD_SLOTS = 16 };      /* slot 0 is no thread's own */
static __thread uint32_t pc_thread_slot PC_TLS_MODEL;
static uint32_t pc_thread_slots_taken;          /* a bit for each */
static pthread_key_t pc_thread_slot_key;
static pthread_once_t pc_thread_slot_once = PTHREAD_ONCE_INIT;

static inline void thread_slot_give_back(void *value) {
    uint32_t slot = (uint32_t)(uintptr_t)value;
    pc_thread_slot = 0;             /* what the thread counts after this takes one again */
    __atomic_fetch_and(&pc_thread_slots_taken, ~(1u << slot), __ATOMIC_RELEASE);
}
static inline void thread_slots_after_fork(void) {      /* a child has none of the other threads */
    uint32_t own = pc_thread_slot;
    __atomic_store_n(&pc_thread_slots_taken, own != 0 && own < PC_THREAD_SLOTS ? 1u << own : 0, __ATOMIC_RELAXED);
}
static inline void thread_slots_setup(void) {
    pthread_key_create(&pc_thread_slot_key, thread_slot_give_back);
    pthread_atfork(NULL, NULL, thread_slots_after_fork);
}
static __attribute__((noinline, cold, unused)) uint32_t thread_slot_take(void) {
    uint32_t taken = __atomic_load_n(&pc_thread_slots_taken, __ATOMIC_RELAXED), slot;
    pthread_once(&pc_thread_slot_once, thread_slots_setup);
    for (;;) {
        for (slot = 1; slot < PC_THREAD_SLOTS && taken >> slot & 1; slot++) { }
        if (slot == PC_THREAD_SLOTS) break;
        if (__atomic_compare_exchange_n(&pc_thread_slots_taken, &taken, taken | 1u << slot, 0, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED)) {
            pthread_setspecific(pc_thread_slot_key, (void *)(uintptr_t)slot);
            break;
        }
    }
    return pc_thread_slot = slot;
}
/* 1 .. PC_THREAD_SLOTS - 1: the thread's own; PC_THREAD_SLOTS: it has none. */
static inline uint32_t thread_slot(void) {
    uint32_t slot = pc_thread_slot;
    return __builtin_expect(slot != 0, 1) ? slot : thread_slot_take();
}

/* Memory events that the thread itself has raised: what it gives back while it looks for memory is no news to it. */
static __thread uint32_t pc_thread_events PC_TLS_MODEL;
static inline void thread_count_event(void) { pc_thread_events++; }
static inline uint32_t thread_events(void) { return pc_thread_events; }

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
static inline void thread_nap(int64_t ns) {
    struct timespec nap = {0, (long)ns};        /* less than a second */
    nanosleep(&nap, NULL);
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
