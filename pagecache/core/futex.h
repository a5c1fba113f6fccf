/* Sleep on a 32-bit word until it is woken: the futex system call on Linux, else (or with PAGECACHE_FUTEX=0 in the
 * environment when the library is loaded) a table of mutexes and condition variables hashed by address, which serves
 * one process and one mapping of the word only. */
#ifndef PC_FUTEX_H
#define PC_FUTEX_H
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include "check.h"
#include "interpreter.h"
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#define PC_HAVE_FUTEX 1
#else
#define PC_HAVE_FUTEX 0
#endif

#define PC_PARKING_LOTS 64
typedef struct { pthread_mutex_t mutex; pthread_cond_t wake; uint32_t nr_waiting; } pc_parking_lot;
static pc_parking_lot pc_parking[PC_PARKING_LOTS];
static int pc_futex_native = PC_HAVE_FUTEX;

/* Call once when the module is loaded, and in the child of a fork. */
static inline void futex_setup(void) {
    const char *choice = getenv("PAGECACHE_FUTEX");
    pc_futex_native = PC_HAVE_FUTEX && !(choice && choice[0] == '0');
    for (int i = 0; i < PC_PARKING_LOTS; i++) {
        pthread_mutex_init(&pc_parking[i].mutex, NULL);
        pthread_cond_init(&pc_parking[i].wake, NULL);
        pc_parking[i].nr_waiting = 0;
    }
}
static inline int futex_is_native(void) { return pc_futex_native; }

static inline pc_parking_lot *pc_parking_of(const void *word) {
    return &pc_parking[(((uintptr_t)word >> 2) * 0x9E3779B97F4A7C15ull) >> 58];
}

/* Sleeps while *word == expected, at most timeout_ns (negative: for ever). Returns 0 when woken or when the word
 * differs, -EINTR after a signal, -ETIMEDOUT. Spurious returns of 0 are allowed: callers loop. Never with the
 * interpreter held: other threads could not run, perhaps not the one that is waited for. */
static inline int futex_wait(void *word, uint32_t expected, int64_t timeout_ns) {
    struct timespec limit;
    pc_assert(!interpreter_is_held());
    if (timeout_ns >= 0) { limit.tv_sec = timeout_ns / 1000000000; limit.tv_nsec = timeout_ns % 1000000000; }
#if PC_HAVE_FUTEX
    if (pc_futex_native) {
        long r = syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns >= 0 ? &limit : NULL, NULL, 0);
        if (r == 0) return 0;
        return errno == EAGAIN ? 0 : -errno;
    }
#endif
    pc_parking_lot *lot = pc_parking_of(word);
    int r = 0;
    pthread_mutex_lock(&lot->mutex);
    lot->nr_waiting++;
    if (__atomic_load_n((uint32_t *)word, __ATOMIC_ACQUIRE) == expected) {
        if (timeout_ns < 0) pthread_cond_wait(&lot->wake, &lot->mutex);
        else {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += limit.tv_sec + (until.tv_nsec + limit.tv_nsec) / 1000000000;
            until.tv_nsec = (until.tv_nsec + limit.tv_nsec) % 1000000000;
            if (pthread_cond_timedwait(&lot->wake, &lot->mutex, &until) == ETIMEDOUT) r = -ETIMEDOUT;
        }
    }
    lot->nr_waiting--;
    pthread_mutex_unlock(&lot->mutex);
    return r;
}

/* Wakes up to `count` sleepers on the word (the parking lots wake all of theirs: sleepers look again). */
static inline void futex_wake(void *word, int count) {
#if PC_HAVE_FUTEX
    if (pc_futex_native) { syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0); return; }
#endif
    (void)count;
    pc_parking_lot *lot = pc_parking_of(word);
    pthread_mutex_lock(&lot->mutex);
    if (lot->nr_waiting) pthread_cond_broadcast(&lot->wake);
    pthread_mutex_unlock(&lot->mutex);
}
#endif
