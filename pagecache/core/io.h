/* Vectored reads and writes at an offset. */
#ifndef PC_IO_H
#define PC_IO_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sys/uio.h>
#include <stdint.h>
#include <unistd.h>

/* Bytes transferred, or -errno; interrupted calls are repeated. */
static inline int64_t read_vector(int fd, struct iovec *vector, int nr, int64_t offset) {
    for (;;) {
        ssize_t r = preadv(fd, vector, nr, (off_t)offset);
        if (r >= 0) return r;
        if (errno != EINTR) return -errno;
    }
}
static inline int64_t write_vector(int fd, struct iovec *vector, int nr, int64_t offset) {
    for (;;) {
        ssize_t r = pwritev(fd, vector, nr, (off_t)offset);
        if (r >= 0) return r;
        if (errno != EINTR) return -errno;
    }
}
#endif
