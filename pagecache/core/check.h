/* Assertions that survive -DNDEBUG: `pc_assert` checks in builds with PAGECACHE_CHECKS, and is nothing elsewhere. */
#ifndef PC_CHECK_H
#define PC_CHECK_H
#include <stdio.h>
#include <stdlib.h>

#ifndef PAGECACHE_CHECKS
#define PAGECACHE_CHECKS 0
#endif

static inline void pc_fail(const char *condition, const char *file, int line) {
    fprintf(stderr, "pagecache: assertion failed: %s (%s:%d)\n", condition, file, line);
    fflush(stderr);
    abort();
}

/* ThreadSanitizer does not see that a copy raced by a writer is thrown away, so its builds read with references only. */
#if defined(__SANITIZE_THREAD__)
#define PC_OPTIMISTIC 0
#else
#define PC_OPTIMISTIC 1
#endif

#if PAGECACHE_CHECKS
#define pc_assert(condition) ((condition) ? (void)0 : pc_fail(#condition, __FILE__, __LINE__))
#else
#define pc_assert(condition) ((void)0)
#endif
#endif
