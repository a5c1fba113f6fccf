/* In checking builds: how many page faults a thread meets while it holds an engine lock. What is touched for the first time
 * under a lock makes all who wait for it wait for the system too. */
#ifndef PC_LOCK_WATCH_H
#define PC_LOCK_WATCH_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include "check.h"

#if PAGECACHE_CHECKS && defined(__linux__)
#include <sys/resource.h>
static int pc_watches_locks;
static uint64_t pc_faults_locked;
static __thread uint32_t pc_locks_held;
static __thread long pc_faults_before;

static inline long pc_faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt + usage.ru_majflt;
}
static inline void lock_watch_taken(void) {
    if (__atomic_load_n(&pc_watches_locks, __ATOMIC_RELAXED) && pc_locks_held++ == 0) pc_faults_before = pc_faults();
}
static inline void lock_watch_released(void) {
    if (pc_locks_held != 0 && --pc_locks_held == 0)
        __atomic_fetch_add(&pc_faults_locked, (uint64_t)(pc_faults() - pc_faults_before), __ATOMIC_RELAXED);
}
/* Begins or ends watching. Returns the faults under locks since it began. */
static inline int64_t lock_watch_set(int watches) {
    __atomic_store_n(&pc_watches_locks, watches, __ATOMIC_RELAXED);
    return (int64_t)__atomic_exchange_n(&pc_faults_locked, 0, __ATOMIC_RELAXED);
}
#else
#define lock_watch_taken() ((void)0)
#define lock_watch_released() ((void)0)
static inline int64_t lock_watch_set(int watches) { (void)watches; return -1; }
#endif
#endif
