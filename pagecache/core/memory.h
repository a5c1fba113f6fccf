/* Mapped memory: aligned anonymous or memfd-backed regions, huge-page advice, and the copy loop of the hit path. */
#ifndef PC_MEMORY_H
#define PC_MEMORY_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "core/atomic.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* Maps `bytes` at an address that is a multiple of `alignment`, from fd (shared) or, with fd < 0, anonymous (private).
 * Returns NULL with errno set. */
static inline void *memory_map(size_t bytes, size_t alignment, int fd) {
    char *raw = mmap(NULL, bytes + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    char *base = (char *)(((uintptr_t)raw + alignment - 1) & ~(uintptr_t)(alignment - 1));
    int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE);
    char *got = mmap(base, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (got == MAP_FAILED) {
        int reason = errno;
        munmap(raw, bytes + alignment);
        errno = reason;
        return NULL;
    }
    if (base > raw) munmap(raw, base - raw);
    if (raw + alignment > base) munmap(base + bytes, raw + alignment - base);
    return base;
}

/* Free frames, so that AddressSanitizer sees whoever uses one. Optimistic readers may: what they copy they throw away. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define memory_poison(address, bytes) __asan_poison_memory_region((address), (bytes))
#define memory_unpoison(address, bytes) __asan_unpoison_memory_region((address), (bytes))
#else
#define memory_poison(address, bytes) ((void)(address), (void)(bytes))
#define memory_unpoison(address, bytes) ((void)(address), (void)(bytes))
#endif

static inline int memory_unmap(void *base, size_t bytes) { return munmap(base, bytes); }

/* A nameless shared memory file of `bytes`, sealed against shrinking. Returns the descriptor or -errno. */
static inline int memory_file(size_t bytes) {
#if defined(__linux__) && defined(MFD_CLOEXEC)
    int fd = memfd_create("pagecache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -errno;
    if (ftruncate(fd, (off_t)bytes) < 0) { int reason = errno; close(fd); return -reason; }
#if defined(F_ADD_SEALS)
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
#endif
    return fd;
#else
    (void)bytes;
    return -ENOSYS;
#endif
}

/* Advises huge pages; advice only, so a refusal is not an error. */
static inline void memory_advise_huge(void *base, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    (void)madvise(base, bytes, MADV_HUGEPAGE);
#else
    (void)base; (void)bytes;
#endif
}

/* Keeps frames out of core dumps. */
static inline void memory_advise_nodump(void *base, size_t bytes) {
#if defined(MADV_DONTDUMP)
    (void)madvise(base, bytes, MADV_DONTDUMP);
#else
    (void)base; (void)bytes;
#endif
}

#if defined(PAGECACHE_RACE_POINTS)
/* In pieces, so that a thread may be held up in the middle of a copy (see atomic.h). */
static inline void copy_held_up(char *target, const char *source, size_t nbytes) {
    for (size_t at = 0; at < nbytes; at += 512) {
        memcpy(target + at, source + at, nbytes - at < 512 ? nbytes - at : 512);
        pc_race_point();
    }
}
#endif

/* Copies up to two pages out of a frame. glibc's memcpy turns to `rep movsb` here, which is slow when the destination
 * is not 64-byte aligned (the payload of a bytes object rarely is) and when both addresses agree in their low twelve
 * bits; vectors in descending order have neither problem. */
#if defined(__x86_64__)
#if !defined(__SANITIZE_ADDRESS__)
static int pc_have_avx2 = -1;      /* unknown; several threads may find out at the same time */

__attribute__((target("avx2")))
static void copy_page_avx2(char *target, const char *source, size_t nbytes) {
    size_t at = nbytes;
    while (at >= 64) {
        at -= 64;
        __m256i low = _mm256_loadu_si256((const __m256i *)(source + at));
        __m256i high = _mm256_loadu_si256((const __m256i *)(source + at + 32));
        _mm256_storeu_si256((__m256i *)(target + at + 32), high);
        _mm256_storeu_si256((__m256i *)(target + at), low);
    }
    if (at) {   /* the first `at` bytes, by a block that overlaps what was copied */
        __m256i low = _mm256_loadu_si256((const __m256i *)source);
        __m256i high = _mm256_loadu_si256((const __m256i *)(source + 32));
        _mm256_storeu_si256((__m256i *)target, low);
        _mm256_storeu_si256((__m256i *)(target + 32), high);
    }
}
#endif
#endif

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
#if defined(__x86_64__)
    int have_avx2 = __atomic_load_n(&pc_have_avx2, __ATOMIC_RELAXED);
    if (__builtin_expect(have_avx2 < 0, 0)) {
        have_avx2 = __builtin_cpu_supports("avx2") != 0;
        __atomic_store_n(&pc_have_avx2, have_avx2, __ATOMIC_RELAXED);
    }
    if (nbytes >= 64 && have_avx2) { copy_page_avx2(target, source, nbytes); return; }
#endif
    memcpy(target, source, nbytes);
}
#endif

/* Copies between a frame and private memory while, by design, somebody may be changing the frame's bytes or reading them:
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

/* As copy_page, while the lines of `next`, where the following piece of a long copy lies, are asked for: the processor's
 * own prefetching ends with each page. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target("avx2")))
static void copy_page_ahead_avx2(char *target, const char *source, size_t nbytes, const char *next) {
    size_t at = nbytes;
    while (at >= 64) {
        at -= 64;
        __builtin_prefetch(next + at, 0, 3);
        __m256i low = _mm256_loadu_si256((const __m256i *)(source + at));
        __m256i high = _mm256_loadu_si256((const __m256i *)(source + at + 32));
        _mm256_storeu_si256((__m256i *)(target + at + 32), high);
        _mm256_storeu_si256((__m256i *)(target + at), low);
    }
    if (at) memcpy(target, source, at);
}
#endif

static inline void copy_page_ahead(char *target, const char *source, size_t nbytes, const char *next) {
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
    if (__atomic_load_n(&pc_have_avx2, __ATOMIC_RELAXED) > 0) {
        copy_page_ahead_avx2(target, source, nbytes, next);
        return;
    }
#endif
    __builtin_prefetch(next, 0, 3);
    copy_page(target, source, nbytes);
}

/* Asks for every cache line of [address, address + nbytes), in the order in which copy_page wants them. */
static inline void prefetch_range(const char *address, size_t nbytes) {
    const char *line = (const char *)(((uintptr_t)address + nbytes - 1) & ~(uintptr_t)63);
    for (; line > address; line -= 64) __builtin_prefetch(line, 0, 3);
    __builtin_prefetch(address, 0, 3);
}
#endif
