/* C11 atomics named by memory order. The types are opaque to Cython, so a plain `field += 1` does not compile. */
#ifndef PC_ATOMIC_H
#define PC_ATOMIC_H
#include <stdint.h>

typedef struct { _Atomic uint32_t word; } pc_u32;
typedef struct { _Atomic uint64_t word; } pc_u64;

#define PC_ATOMIC_OPS(T, C, S)                                                                                        \
static inline C load_relaxed_##S(const T *a) { return __atomic_load_n((const C *)&a->word, __ATOMIC_RELAXED); }       \
static inline C load_acquire_##S(const T *a) { return __atomic_load_n((const C *)&a->word, __ATOMIC_ACQUIRE); }       \
static inline void store_relaxed_##S(T *a, C v) { __atomic_store_n((C *)&a->word, v, __ATOMIC_RELAXED); }             \
static inline void store_release_##S(T *a, C v) { __atomic_store_n((C *)&a->word, v, __ATOMIC_RELEASE); }             \
static inline C exchange_acq_rel_##S(T *a, C v) { return __atomic_exchange_n((C *)&a->word, v, __ATOMIC_ACQ_REL); }   \
static inline C add_relaxed_##S(T *a, C v) { return __atomic_fetch_add((C *)&a->word, v, __ATOMIC_RELAXED); }         \
static inline C add_acq_rel_##S(T *a, C v) { return __atomic_fetch_add((C *)&a->word, v, __ATOMIC_ACQ_REL); }         \
static inline C sub_acq_rel_##S(T *a, C v) { return __atomic_fetch_sub((C *)&a->word, v, __ATOMIC_ACQ_REL); }         \
static inline C or_relaxed_##S(T *a, C v) { return __atomic_fetch_or((C *)&a->word, v, __ATOMIC_RELAXED); }           \
static inline C or_acq_rel_##S(T *a, C v) { return __atomic_fetch_or((C *)&a->word, v, __ATOMIC_ACQ_REL); }           \
static inline C and_acq_rel_##S(T *a, C v) { return __atomic_fetch_and((C *)&a->word, v, __ATOMIC_ACQ_REL); }         \
static inline C xor_acq_rel_##S(T *a, C v) { return __atomic_fetch_xor((C *)&a->word, v, __ATOMIC_ACQ_REL); }         \
/* Stores `desired` if *a == *expected; else loads the current value into *expected. */                              \
static inline int cas_acq_rel_##S(T *a, C *expected, C desired) {                                                     \
    return __atomic_compare_exchange_n((C *)&a->word, expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }    \
static inline int cas_relaxed_##S(T *a, C *expected, C desired) {                                                     \
    return __atomic_compare_exchange_n((C *)&a->word, expected, desired, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED); }

PC_ATOMIC_OPS(pc_u32, uint32_t, u32)
PC_ATOMIC_OPS(pc_u64, uint64_t, u64)

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
#define ctz64(v) ((uint32_t)__builtin_ctzll(v))
#define clz64(v) ((uint32_t)__builtin_clzll(v))
#endif
