/* Requests of /dev/fuse that the engine answers itself: the structures of <linux/fuse.h> that they need, which the kernel
 * keeps as they are, and the system calls. */
#ifndef PC_FUSE_H
#define PC_FUSE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/ioctl.h>
#define PC_HAS_FUSE 1
#else
#define PC_HAS_FUSE 0
#endif

enum { PC_FUSE_GETATTR = 3, PC_FUSE_READ = 15, PC_FUSE_WRITE = 16 };
enum { PC_FUSE_GETATTR_FH = 1, PC_FUSE_WRITE_CACHE = 1, PC_FUSE_WRITE_KILL_SUIDGID = 4 };

typedef struct {
    uint32_t len, opcode;
    uint64_t unique, nodeid;
    uint32_t uid, gid, pid;
    uint16_t total_extlen, padding;
} pc_fuse_in_header;

typedef struct { uint32_t len; int32_t error; uint64_t unique; } pc_fuse_out_header;

typedef struct {                /* of READ and WRITE */
    uint64_t fh, offset;
    uint32_t size, io_flags;
    uint64_t lock_owner;
    uint32_t flags, padding;
} pc_fuse_io_in;

typedef struct { uint32_t size, padding; } pc_fuse_write_out;
typedef struct { uint32_t getattr_flags, dummy; uint64_t fh; } pc_fuse_getattr_in;

typedef struct {
    uint64_t ino, size, blocks, atime, mtime, ctime;
    uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags;
} pc_fuse_attr;

typedef struct { uint64_t attr_valid; uint32_t attr_valid_nsec, dummy; pc_fuse_attr attr; } pc_fuse_attr_out;

/* The next request, or 0 or -errno. */
static inline int64_t fuse_receive(int fd, char *buffer, size_t room) {
    ssize_t got = read(fd, buffer, room);
    return got < 0 ? -errno : got;
}
/* Answers a request with the pieces behind the first, which is for the header.  An error says that the program was killed,
 * or the mount is gone: then no program waits for an answer. */
static inline void fuse_answer(int fd, uint64_t unique, struct iovec *pieces, int nr) {
    pc_fuse_out_header header = {sizeof header, 0, unique};
    ssize_t wrote;
    for (int i = 1; i < nr; i++) header.len += (uint32_t)pieces[i].iov_len;
    pieces[0].iov_base = &header;
    pieces[0].iov_len = sizeof header;
    do wrote = writev(fd, pieces, nr);
    while (wrote < 0 && errno == EINTR);
}
/* The attributes of an open file as the kernel wants them; number: the one that is shown. Returns 0 or -errno. */
static inline int fuse_attributes(int fd, uint64_t number, pc_fuse_attr *out) {
    struct stat status;
    if (fstat(fd, &status) < 0) return -errno;
    memset(out, 0, sizeof *out);
    out->ino = number;
    out->size = (uint64_t)status.st_size;
    out->blocks = (uint64_t)status.st_blocks;
#if defined(__APPLE__)
#define PC_TIME(name) status.st_##name##timespec
#else
#define PC_TIME(name) status.st_##name##tim
#endif
    out->atime = (uint64_t)PC_TIME(a).tv_sec; out->atimensec = (uint32_t)PC_TIME(a).tv_nsec;
    out->mtime = (uint64_t)PC_TIME(m).tv_sec; out->mtimensec = (uint32_t)PC_TIME(m).tv_nsec;
    out->ctime = (uint64_t)PC_TIME(c).tv_sec; out->ctimensec = (uint32_t)PC_TIME(c).tv_nsec;
#undef PC_TIME
    out->mode = (uint32_t)status.st_mode;
    out->nlink = (uint32_t)status.st_nlink;
    out->uid = (uint32_t)status.st_uid;
    out->gid = (uint32_t)status.st_gid;
    out->blksize = (uint32_t)status.st_blksize;
    return 0;
}
/* Another descriptor of the mount of one, or -errno: what it receives it answers, and it waits for no other's lock. */
static inline int fuse_clone(int fd) {
#if PC_HAS_FUSE
    uint32_t from = (uint32_t)fd;
    int own = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (own < 0) return -errno;
    if (ioctl(own, _IOR(229, 0, uint32_t), &from) == 0) return own;
    int number = errno;
    close(own);
    return -number;
#else
    (void)fd;
    return -ENOSYS;
#endif
}
static inline int64_t realtime_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
#endif
