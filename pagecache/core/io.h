/* Vectored reads and writes at an offset. */
#ifndef PC_IO_H
#define PC_IO_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes transferred, or -errno; interrupted calls are repeated. */
static inline int64_t read_vector(int fd, struct iovec *vector, int nr, int64_t offset) {
    for (;;) {
        ssize_t r = preadv(fd, vector, nr, (off_t)offset);
        if (r >= 0) return r;
        if (errno != EINTR) return -errno;
    }
}
/* Bytes may change while they are written (they are then dirty again), so ThreadSanitizer sees atomic loads of them
 * instead of the reads of a system call. */
#if defined(__SANITIZE_THREAD__)
#include <sys/syscall.h>
static inline ssize_t write_shared(int fd, const struct iovec *vector, int nr, int64_t offset) {
    for (int i = 0; i < nr; i++)
        for (size_t at = 0; at < vector[i].iov_len; at += 8)
            (void)__atomic_load_n((const char *)vector[i].iov_base + at, __ATOMIC_RELAXED);
    return syscall(SYS_pwritev, fd, vector, nr, (long)offset, 0L);
}
#else
#define write_shared pwritev
#endif

static inline int64_t write_vector(int fd, struct iovec *vector, int nr, int64_t offset) {
    for (;;) {
        ssize_t r = write_shared(fd, vector, nr, (off_t)offset);
        if (r >= 0) return r;
        if (errno != EINTR) return -errno;
    }
}
/* As `write_vector`, of what is no whole page, for a descriptor that was opened past the kernel's page cache: for this one
 * request it is not.  Reads on it that run meanwhile may go through that cache, which is coherent. */
static inline int64_t write_vector_buffered(int fd, struct iovec *vector, int nr, int64_t offset) {
#if defined(O_DIRECT)
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0) return -errno;
    int64_t r = write_vector(fd, vector, nr, offset);
    return fcntl(fd, F_SETFL, flags) < 0 && r >= 0 ? -errno : r;
#else
    return write_vector(fd, vector, nr, offset);
#endif
}
/* Gives up the blocks of a range, which reads as zeros then. Returns 0 or -errno. */
static inline int punch_hole_fd(int fd, int64_t offset, int64_t nbytes) {
#if defined(FALLOC_FL_PUNCH_HOLE)
    for (;;) {
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)nbytes) == 0) return 0;
        if (errno != EINTR) return -errno;
    }
#else
    (void)fd; (void)offset; (void)nbytes;
    return -EOPNOTSUPP;
#endif
}
/* Makes durable all that was written to the file system of an open file; where only all of them can be, all. */
static inline int sync_file_system_of(int fd) {
#if defined(__linux__)
    return syncfs(fd) == 0 ? 0 : -errno;
#else
    (void)fd;
    sync();
    return 0;
#endif
}
/* Times of the last changes (ns; of bytes, and of bytes or attributes) and size (bytes) of an open file. Returns 0 or
 * -errno. */
static inline int file_stamp(int fd, int64_t *mtime_ns, int64_t *ctime_ns, int64_t *size) {
    struct stat status;
    if (fstat(fd, &status) < 0) return -errno;
#if defined(__APPLE__)
    *mtime_ns = (int64_t)status.st_mtimespec.tv_sec * 1000000000 + status.st_mtimespec.tv_nsec;
    *ctime_ns = (int64_t)status.st_ctimespec.tv_sec * 1000000000 + status.st_ctimespec.tv_nsec;
#else
    *mtime_ns = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
    *ctime_ns = (int64_t)status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec;
#endif
    *size = (int64_t)status.st_size;
    return 0;
}
/* Whether a file has these bytes at an offset: 1, 0, or -errno. Direct descriptors are asked for whole pages. */
static inline int file_has_bytes(int fd, int direct, const char *data, int64_t offset, int64_t nbytes) {
    enum { PIECE = 256 * 1024, BLOCK = 4096 };
    char *piece;
    int same = 1;
    if (posix_memalign((void **)&piece, BLOCK, PIECE) != 0) return -ENOMEM;
    while (same == 1 && nbytes > 0) {
        int64_t wanted = nbytes < PIECE ? nbytes : PIECE;
        struct iovec vector = {piece, (size_t)(direct ? (wanted + BLOCK - 1) / BLOCK * BLOCK : wanted)};
        int64_t got = read_vector(fd, &vector, 1, offset);
        if (got < 0) same = (int)got;
        else if (got == 0) same = 0;
        else {
            if (got > wanted) got = wanted;
            if (direct && got < wanted && got % BLOCK) same = 0;        /* the end of the file */
            if (memcmp(piece, data, (size_t)got) != 0) same = 0;
            data += got;
            offset += got;
            nbytes -= got;
        }
    }
    free(piece);
    return same;
}
#endif
