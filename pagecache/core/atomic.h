/* C11 atomics named by memory order. The types are opaque to Cython, so a plain `field += 1` does not compile. */
#ifndef PC_ATOMIC_H
#define PC_ATOMIC_H
#include <stdint.h>

/* A place where a thread may be held up. With PAGECACHE_RACE_POINTS (tests only) it sometimes is, before any atomic
 * operation, so that windows of a few instructions are met in seconds and not in months. */
#if defined(PAGECACHE_RACE_POINTS)
#include <sched.h>
#include <time.h>
static __thread uint32_t pc_race_state;
static inline void pc_race_point(void) {
    if (pc_race_state == 0) pc_race_state = (uint32_t)(uintptr_t)&pc_race_state | 1;
    pc_race_state ^= pc_race_state << 13;
    pc_race_state ^= pc_race_state >> 17;
    pc_race_state ^= pc_race_state << 5;
    if ((pc_race_state & 127) == 0) sched_yield();
    else if ((pc_race_state & 8191) == 1) {
        struct timespec nap = {0, 20000};
        nanosleep(&nap, 0);
    }
}
#define PC_RACE pc_race_point();
#else
#define PC_RACE
#endif

typedef struct { _Atomic uint32_t word; } pc_u32;
typedef struct { _Atomic uint64_t word; } pc_u64;

#define PC_ATOMIC_OPS(T, C, S)                                                                                        \
static inline C load_relaxed_##S(const T *a) { PC_RACE return __atomic_load_n((const C *)&a->word, __ATOMIC_RELAXED); }\
static inline C load_acquire_##S(const T *a) { PC_RACE return __atomic_load_n((const C *)&a->word, __ATOMIC_ACQUIRE); }\
static inline void store_relaxed_##S(T *a, C v) { PC_RACE __atomic_store_n((C *)&a->word, v, __ATOMIC_RELAXED); }     \
static inline void store_release_##S(T *a, C v) { PC_RACE __atomic_store_n((C *)&a->word, v, __ATOMIC_RELEASE); }     \
static inline C exchange_acq_rel_##S(T *a, C v) { PC_RACE return __atomic_exchange_n((C *)&a->word, v, __ATOMIC_ACQ_REL); }\
static inline C add_relaxed_##S(T *a, C v) { PC_RACE return __atomic_fetch_add((C *)&a->word, v, __ATOMIC_RELAXED); } \
static inline C add_acq_rel_##S(T *a, C v) { PC_RACE return __atomic_fetch_add((C *)&a->word, v, __ATOMIC_ACQ_REL); } \
static inline C sub_acq_rel_##S(T *a, C v) { PC_RACE return __atomic_fetch_sub((C *)&a->word, v, __ATOMIC_ACQ_REL); } \
static inline C or_relaxed_##S(T *a, C v) { PC_RACE return __atomic_fetch_or((C *)&a->word, v, __ATOMIC_RELAXED); }   \
static inline C or_acq_rel_##S(T *a, C v) { PC_RACE return __atomic_fetch_or((C *)&a->word, v, __ATOMIC_ACQ_REL); }   \
static inline C and_acq_rel_##S(T *a, C v) { PC_RACE return __atomic_fetch_and((C *)&a->word, v, __ATOMIC_ACQ_REL); } \
static inline C xor_acq_rel_##S(T *a, C v) { PC_RACE return __atomic_fetch_xor((C *)&a->word, v, __ATOMIC_ACQ_REL); } \
/* Stores `desired` if *a == *expected; else loads the current value into *expected. */                               \
static inline int cas_acq_rel_##S(T *a, C *expected, C desired) { PC_RACE                                             \
    return __atomic_compare_exchange_n((C *)&a->word, expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }    \
static inline int cas_relaxed_##S(T *a, C *expected, C desired) { PC_RACE                                             \
    return __atomic_compare_exchange_n((C *)&a->word, expected, desired, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED); }

PC_ATOMIC_OPS(pc_u32, uint32_t, u32)
PC_ATOMIC_OPS(pc_u64, uint64_t, u64)

/* Plain fields that are written under a lock and also read without it, as a hint. */
static inline uint32_t hint_u32(const uint32_t *a) { return __atomic_load_n(a, __ATOMIC_RELAXED); }
static inline uint64_t hint_u64(const uint64_t *a) { return __atomic_load_n(a, __ATOMIC_RELAXED); }
static inline void set_hint_u32(uint32_t *a, uint32_t v) { __atomic_store_n(a, v, __ATOMIC_RELAXED); }
static inline void set_hint_u64(uint64_t *a, uint64_t v) { __atomic_store_n(a, v, __ATOMIC_RELAXED); }

/* Orders earlier loads (of plain data too) before later loads: the closing half of a sequence-counter read. */
static inline void fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
/* Orders earlier stores before later stores: the opening half of a sequence-counter write. */
static inline void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
/* Orders a store before a later load of another word (store-buffering pattern). */
static inline void fence_seq_cst(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}
#define prefetch_read(address) __builtin_prefetch((address), 0, 3)
#define ctz32(v) ((uint32_t)__builtin_ctz(v))
#define clz64(v) ((uint32_t)__builtin_clzll(v))
#define ctz64(v) ((uint32_t)__builtin_ctzll(v))
#endif
