/* Copies out of page frames, where the processor waits for memory: what matters is how many cache lines are on their way at
 * once.
 *
 * Up to two pages   copy_page: a plain loop of vectors. The processor's own prefetching follows it; glibc's memcpy turns to
 *                   `rep movsb`, which is slow when the destination is not 64-byte aligned (the payload of a bytes object
 *                   rarely is) and when both addresses agree in their low twelve bits.
 * Longer            copy_pages: eight pages in turns, a line of each. The processor prefetches within a page and begins
 *                   anew with each; eight at once hide that, whether they lie side by side or in random frames. Where the
 *                   target begins decides in which order.
 * Very long         copy_long: one loop again. The destination leaves the nearer caches then, and eight more streams of
 *                   it would cost more than they hide. */
#ifndef PC_COPY_H
#define PC_COPY_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "core/atomic.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { COPY_PAGE_BYTES = 4096, COPY_STREAMS = 8 };

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) \
    && !defined(PAGECACHE_RACE_POINTS)
#define PC_COPY_VECTORS 1
#else
#define PC_COPY_VECTORS 0
#endif

/* Asks for a line up to the second level of caches, which waits for more of them at once than the first. */
#define prefetch_near(address) __builtin_prefetch((address), 0, 2)

#if PC_COPY_VECTORS
static int pc_have_avx2 = -1;      /* unknown; several threads may find out at the same time */

static inline int copy_has_avx2(void) {
    int have_avx2 = __atomic_load_n(&pc_have_avx2, __ATOMIC_RELAXED);
    if (__builtin_expect(have_avx2 < 0, 0)) {
        have_avx2 = __builtin_cpu_supports("avx2") != 0;
        __atomic_store_n(&pc_have_avx2, have_avx2, __ATOMIC_RELAXED);
    }
    return have_avx2;
}

#define COPY_LINE(target, source) do {                                                                                \
    __m256i low = _mm256_loadu_si256((const __m256i *)(source));                                                      \
    __m256i high = _mm256_loadu_si256((const __m256i *)((source) + 32));                                              \
    _mm256_storeu_si256((__m256i *)(target), low);                                                                    \
    _mm256_storeu_si256((__m256i *)((target) + 32), high);                                                            \
} while (0)

/* At least 64 bytes. */
__attribute__((target("avx2"), noinline))
static void copy_lines_avx2(char *target, const char *source, size_t nbytes) {
    size_t at = 0, last = nbytes - 64;
    for (; at < last; at += 64) COPY_LINE(target + at, source + at);
    COPY_LINE(target + last, source + last);        /* overlaps what was copied */
}

__attribute__((target("avx2"), noinline))
static void copy_long_avx2(char *target, const char *source, size_t nbytes) {
    enum { AHEAD_BYTES = 32 * 64 };
    const char *end = source + nbytes - AHEAD_BYTES;
    for (; source < end; source += 64, target += 64) {
        prefetch_near(source + AHEAD_BYTES);
        COPY_LINE(target, source);
    }
    copy_lines_avx2(target, source, (size_t)(end - source) + AHEAD_BYTES);
}

__attribute__((target("avx2"), noinline))
static void copy_turns_avx2(char *target, const char *const *sources, unsigned nr) {
    for (size_t at = 0; at < COPY_PAGE_BYTES; at += 64)
        for (unsigned k = 0; k < nr; k++) COPY_LINE(target + k * COPY_PAGE_BYTES + at, sources[k] + at);
}

/* Two lines of each page in turns, each page two lines away from the one before, where no store is under way. */
__attribute__((target("avx2"), noinline))
static void copy_rotated_avx2(char *target, const char *const *sources, unsigned shift) {
    for (unsigned turn = 0; turn < COPY_PAGE_BYTES; turn += 128) {
        for (unsigned k = 0; k < COPY_STREAMS; k++) {
            size_t at = (turn + k * shift) & (COPY_PAGE_BYTES - 1);
            const char *source = sources[k] + at;
            char *to = target + k * COPY_PAGE_BYTES + at;
            __m256i first = _mm256_loadu_si256((const __m256i *)source);
            __m256i second = _mm256_loadu_si256((const __m256i *)(source + 32));
            __m256i third = _mm256_loadu_si256((const __m256i *)(source + 64));
            __m256i fourth = _mm256_loadu_si256((const __m256i *)(source + 96));
            _mm256_storeu_si256((__m256i *)to, first);
            _mm256_storeu_si256((__m256i *)(to + 32), second);
            _mm256_storeu_si256((__m256i *)(to + 64), third);
            _mm256_storeu_si256((__m256i *)(to + 96), fourth);
        }
    }
}

/* A load waits for a store that is under way if their addresses agree in the low twelve bits, as if it brought what is
 * being stored. Pages begin at multiples of those, so the target's place decides: where its stores would lie shortly ahead
 * of the loads, or just behind, the pages are read at different places. */
static inline void copy_streams_avx2(char *target, const char *const *sources, unsigned nr) {
    enum { UNDER_WAY = 512 };       /* bytes of each stream, of stores at a time */
    const unsigned place = (uintptr_t)target & (COPY_PAGE_BYTES - 1);
    if (nr == COPY_STREAMS && place < UNDER_WAY) copy_rotated_avx2(target, sources, -128u);
    else if (nr == COPY_STREAMS && place >= COPY_PAGE_BYTES - UNDER_WAY) copy_rotated_avx2(target, sources, 128u);
    else copy_turns_avx2(target, sources, nr);
}
#endif

#if defined(PAGECACHE_RACE_POINTS)
/* In pieces, so that a thread may be held up in the middle of a copy (see atomic.h). */
static inline void copy_held_up(char *target, const char *source, size_t nbytes) {
    for (size_t at = 0; at < nbytes; at += 512) {
        memcpy(target + at, source + at, nbytes - at < 512 ? nbytes - at : 512);
        pc_race_point();
    }
}
#endif

/* Copies a few cached bytes that may change or be reused meanwhile: the caller finds out afterwards. */
#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))
static void copy_page(char *target, const char *source, size_t nbytes) {
    volatile char *to = target;     /* volatile: no call of memcpy, which is watched as well */
    for (size_t i = 0; i < nbytes; i++) to[i] = ((const volatile char *)source)[i];
}
#elif defined(PAGECACHE_RACE_POINTS)
static inline void copy_page(char *target, const char *source, size_t nbytes) { copy_held_up(target, source, nbytes); }
#else
static inline void copy_page(char *target, const char *source, size_t nbytes) {
#if PC_COPY_VECTORS
    if (nbytes >= 64 && copy_has_avx2()) { copy_lines_avx2(target, source, nbytes); return; }
#endif
    memcpy(target, source, nbytes);
}
#endif

/* The same for up to COPY_STREAMS whole pages, which follow each other in the target. */
static inline void copy_pages(char *target, const char *const *sources, unsigned nr) {
#if PC_COPY_VECTORS
    if (copy_has_avx2()) { copy_streams_avx2(target, sources, nr); return; }
#endif
    for (unsigned k = 0; k < nr; k++) copy_page(target + (size_t)k * COPY_PAGE_BYTES, sources[k], COPY_PAGE_BYTES);
}

/* Copies between a frame and private memory while, by design, another thread may change the frame's bytes or read them:
 * a reader with a reference sees old bytes, new ones, or some of each, as with read(2). Where ThreadSanitizer looks, the
 * frame is accessed by relaxed atomic operations, which is what this means in C; elsewhere it is memmove. Everything else
 * that touches a frame does so by plain accesses, so a use of a frame that is filled or reused is still reported. */
static inline void copy_shared(char *target, const char *source, size_t nbytes) {
#if defined(__SANITIZE_THREAD__)
    size_t at = 0;
    if ((((uintptr_t)target | (uintptr_t)source) & 7) == 0)
        for (; at + 8 <= nbytes; at += 8)
            __atomic_store_n((uint64_t *)(target + at),
                             __atomic_load_n((const uint64_t *)(source + at), __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    for (; at < nbytes; at++)
        __atomic_store_n(target + at, __atomic_load_n(source + at, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
#elif defined(PAGECACHE_RACE_POINTS)
    copy_held_up(target, source, nbytes);
#else
    memmove(target, source, nbytes);
#endif
}

/* As copy_shared, out of a frame into memory that is none. */
static inline void copy_long(char *target, const char *source, size_t nbytes) {
#if PC_COPY_VECTORS
    if (nbytes >= COPY_PAGE_BYTES && copy_has_avx2()) {
        size_t head = -(uintptr_t)target & 63;      /* stores are aligned from there on */
        copy_lines_avx2(target, source, 64);
        copy_long_avx2(target + head, source + head, nbytes - head);
        return;
    }
#endif
    copy_shared(target, source, nbytes);
}

/* Asks for the cache lines of [address, address + nbytes), a page of them at most. */
static inline void prefetch_range(const char *address, size_t nbytes) {
    const char *end = address + (nbytes < COPY_PAGE_BYTES ? nbytes : COPY_PAGE_BYTES);
    for (; address < end; address += 64) prefetch_near(address);
}
#endif
