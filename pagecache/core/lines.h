/* Where a line ends in bytes that may change meanwhile: the caller finds out afterwards. */
#ifndef PC_LINES_H
#define PC_LINES_H
#include <stddef.h>
#include <string.h>
#include "core/atomic.h"

/* Bytes up to the first line feed, with it; 0 if there is none. */
#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))
static size_t line_length(const char *source, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++)
        if (((const volatile char *)source)[i] == '\n') return i + 1;
    return 0;
}
#elif defined(__SANITIZE_THREAD__)
static inline size_t line_length(const char *source, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++)
        if (__atomic_load_n(source + i, __ATOMIC_RELAXED) == '\n') return i + 1;
    return 0;
}
#else
static inline size_t line_length(const char *source, size_t nbytes) {
    const char *end = (const char *)memchr(source, '\n', nbytes);
    PC_RACE
    return end == NULL ? 0 : (size_t)(end - source) + 1;
}
#endif
#endif
