/* Mapped memory: aligned anonymous or memfd-backed regions, and advice about them. */
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

/* Free frames, so that AddressSanitizer sees each use of one. Optimistic readers may: what they copy they throw away. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define memory_poison(address, bytes) __asan_poison_memory_region((address), (bytes))
#define memory_unpoison(address, bytes) __asan_unpoison_memory_region((address), (bytes))
#else
#define memory_poison(address, bytes) ((void)(address), (void)(bytes))
#define memory_unpoison(address, bytes) ((void)(address), (void)(bytes))
#endif

static inline int memory_unmap(void *base, size_t bytes) {
    memory_unpoison(base, bytes);       /* the address may be mapped again */
    return munmap(base, bytes);
}

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

/* Advises small pages: a hole in a huge page stays one, and what lies behind the last page that is used is not touched. */
static inline void memory_advise_small(void *base, size_t bytes) {
#if defined(MADV_NOHUGEPAGE)
    (void)madvise(base, bytes, MADV_NOHUGEPAGE);
#else
    (void)base; (void)bytes;
#endif
}

/* Gives whole pages back to the system; they read as zeros afterwards. shared: they are a memory file's. Returns 0 or
 * -errno: then they are as they were. */
static inline int memory_give_back(void *base, size_t bytes, int shared) {
#if defined(__linux__)
    return madvise(base, bytes, shared ? MADV_REMOVE : MADV_DONTNEED) == 0 ? 0 : -errno;
#else
    if (shared) return -ENOSYS;
    void *got = mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return got == MAP_FAILED ? -errno : 0;
#endif
}

/* Has whole pages in memory before they are used; what they hold stays. */
static inline void memory_populate(void *base, size_t bytes) {
#if defined(__linux__)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
    if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
    for (size_t at = 0; at < bytes; at += 4096)     /* others may be using them: nothing changes */
        __atomic_fetch_or((char *)base + at, 0, __ATOMIC_RELAXED);
}

/* Whether children of fork() get a copy of some pages, or nothing there. Returns 0 or -errno. */
static inline int memory_advise_fork(void *base, size_t bytes, int inherited) {
#if defined(MADV_DONTFORK) && defined(MADV_DOFORK)
    return madvise(base, bytes, inherited ? MADV_DOFORK : MADV_DONTFORK) == 0 ? 0 : -errno;
#else
    (void)base; (void)bytes; (void)inherited;
    return 0;
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
#endif
