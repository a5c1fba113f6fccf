/* io_uring by its system calls: one ring, owned by one thread. Where the kernel or its headers lack it, ring_setup says
 * -ENOSYS and nothing else is called. */
#ifndef PC_RING_H
#define PC_RING_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#if defined(__NR_io_uring_setup)
#define PC_HAVE_RING 1
#endif
#endif
#endif
#ifndef PC_HAVE_RING
#define PC_HAVE_RING 0
#endif

typedef struct {
    int fd;
    int event_fd;                   /* written by others to wake the owner */
    uint64_t event_count;
    uint32_t entries;
    uint32_t to_submit;
    void *sq_base, *cq_base, *sqe_base;
    size_t sq_bytes, cq_bytes, sqe_bytes;
    uint32_t *sq_tail, *sq_mask, *sq_array;
    uint32_t *cq_head, *cq_tail, *cq_mask;
    void *cqes;
    int registered;                 /* frames are registered as fixed buffers of RING_FIXED_BYTES each */
} pc_ring;

#define RING_WAKE_DATA 0
#define RING_FIXED_BYTES ((size_t)1 << 30)

#if PC_HAVE_RING
static inline void ring_close(pc_ring *ring) {
    if (ring->sq_base) munmap(ring->sq_base, ring->sq_bytes);
    if (ring->cq_base && ring->cq_base != ring->sq_base) munmap(ring->cq_base, ring->cq_bytes);
    if (ring->sqe_base) munmap(ring->sqe_base, ring->sqe_bytes);
    if (ring->event_fd >= 0) close(ring->event_fd);
    if (ring->fd >= 0) close(ring->fd);
    memset(ring, 0, sizeof *ring);
    ring->fd = ring->event_fd = -1;
}

static inline void *ring_map(int fd, size_t bytes, off_t what) {
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    return base == MAP_FAILED ? NULL : base;
}

static inline int ring_map_all(pc_ring *ring, const struct io_uring_params *p) {
    ring->sq_bytes = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    ring->cq_bytes = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    ring->sqe_bytes = p->sq_entries * sizeof(struct io_uring_sqe);
    if (p->features & IORING_FEAT_SINGLE_MMAP) {
        if (ring->cq_bytes > ring->sq_bytes) ring->sq_bytes = ring->cq_bytes;
        ring->cq_bytes = ring->sq_bytes;
    }
    ring->sq_base = ring_map(ring->fd, ring->sq_bytes, IORING_OFF_SQ_RING);
    ring->cq_base = p->features & IORING_FEAT_SINGLE_MMAP ? ring->sq_base
                                                          : ring_map(ring->fd, ring->cq_bytes, IORING_OFF_CQ_RING);
    ring->sqe_base = ring_map(ring->fd, ring->sqe_bytes, IORING_OFF_SQES);
    if (!ring->sq_base || !ring->cq_base || !ring->sqe_base) return -ENOMEM;
    char *sq = ring->sq_base, *cq = ring->cq_base;
    ring->sq_tail = (uint32_t *)(sq + p->sq_off.tail);
    ring->sq_mask = (uint32_t *)(sq + p->sq_off.ring_mask);
    ring->sq_array = (uint32_t *)(sq + p->sq_off.array);
    ring->cq_head = (uint32_t *)(cq + p->cq_off.head);
    ring->cq_tail = (uint32_t *)(cq + p->cq_off.tail);
    ring->cq_mask = (uint32_t *)(cq + p->cq_off.ring_mask);
    ring->cqes = cq + p->cq_off.cqes;
    ring->entries = p->sq_entries;
    return 0;
}

/* Makes a ring for `entries` requests in flight. Returns 0 or -errno (also -EPERM where it is forbidden). */
static inline int ring_setup(pc_ring *ring, uint32_t entries) {
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    memset(ring, 0, sizeof *ring);
    ring->event_fd = -1;
    ring->fd = (int)syscall(__NR_io_uring_setup, entries, &p);
    if (ring->fd < 0) return -errno;
    int r = ring_map_all(ring, &p);
    if (r == 0) {
        ring->event_fd = eventfd(0, EFD_CLOEXEC);
        if (ring->event_fd < 0) r = -errno;
    }
    if (r < 0) ring_close(ring);
    return r;
}

/* Registers the frames, so that the kernel pins them once and not for each request. Returns 0 or -errno. */
static inline int ring_register(pc_ring *ring, char *base, size_t bytes) {
    struct iovec pieces[64];
    unsigned nr = 0;
    for (size_t at = 0; at < bytes && nr < 64; at += RING_FIXED_BYTES, nr++) {
        pieces[nr].iov_base = base + at;
        pieces[nr].iov_len = bytes - at < RING_FIXED_BYTES ? bytes - at : RING_FIXED_BYTES;
    }
    if ((size_t)nr * RING_FIXED_BYTES < bytes) return -EINVAL;
    if (syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, pieces, nr) < 0) return -errno;
    ring->registered = 1;
    return 0;
}

static inline struct io_uring_sqe *ring_next_sqe(pc_ring *ring) {
    uint32_t tail = *ring->sq_tail;
    struct io_uring_sqe *sqe = (struct io_uring_sqe *)ring->sqe_base + (tail & *ring->sq_mask);
    memset(sqe, 0, sizeof *sqe);
    ring->sq_array[tail & *ring->sq_mask] = tail & *ring->sq_mask;
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    ring->to_submit++;
    return sqe;
}

/* Queues a vectored read. The vector must live until the completion. */
static inline void ring_read(pc_ring *ring, int fd, const struct iovec *vector, unsigned nr, int64_t offset,
                             uint64_t data, const char *frames) {
    struct io_uring_sqe *sqe = ring_next_sqe(ring);
    sqe->fd = fd;
    sqe->off = (uint64_t)offset;
    sqe->user_data = data;
    size_t at = nr == 1 && ring->registered ? (size_t)((const char *)vector->iov_base - frames) : 0;
    if (nr == 1 && ring->registered && at / RING_FIXED_BYTES == (at + vector->iov_len - 1) / RING_FIXED_BYTES) {
        sqe->opcode = IORING_OP_READ_FIXED;
        sqe->addr = (uint64_t)(uintptr_t)vector->iov_base;
        sqe->len = (uint32_t)vector->iov_len;
        sqe->buf_index = (uint16_t)(at / RING_FIXED_BYTES);
    } else {
        sqe->opcode = IORING_OP_READV;
        sqe->addr = (uint64_t)(uintptr_t)vector;
        sqe->len = nr;
    }
}

/* Queues the read of the wake-up counter: its completion has RING_WAKE_DATA. */
static inline void ring_arm_wake(pc_ring *ring) {
    struct io_uring_sqe *sqe = ring_next_sqe(ring);
    sqe->opcode = IORING_OP_READ;
    sqe->fd = ring->event_fd;
    sqe->addr = (uint64_t)(uintptr_t)&ring->event_count;
    sqe->len = sizeof ring->event_count;
    sqe->user_data = RING_WAKE_DATA;
}

/* Any thread: makes the owner look for work. */
static inline void ring_wake(pc_ring *ring) {
    uint64_t one = 1;
    ssize_t r;
    do r = write(ring->event_fd, &one, sizeof one); while (r < 0 && errno == EINTR);
}

/* Submits what is queued and waits for at least one completion. */
static inline int ring_submit_and_wait(pc_ring *ring) {
    long r = syscall(__NR_io_uring_enter, ring->fd, ring->to_submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    if (r < 0) return errno == EINTR ? 0 : -errno;
    ring->to_submit -= (uint32_t)r;
    return 0;
}

/* Takes the next completion: 1 and its data and result, or 0. */
static inline int ring_take(pc_ring *ring, uint64_t *data, int32_t *result) {
    uint32_t head = *ring->cq_head;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) return 0;
    struct io_uring_cqe *cqe = (struct io_uring_cqe *)ring->cqes + (head & *ring->cq_mask);
    *data = cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}
#else
static inline int ring_setup(pc_ring *ring, uint32_t entries) { (void)ring; (void)entries; return -ENOSYS; }
static inline void ring_close(pc_ring *ring) { (void)ring; }
static inline int ring_register(pc_ring *ring, char *base, size_t bytes) {
    (void)ring; (void)base; (void)bytes; return -ENOSYS; }
static inline void ring_read(pc_ring *ring, int fd, const struct iovec *vector, unsigned nr, int64_t offset,
                             uint64_t data, const char *frames) {
    (void)ring; (void)fd; (void)vector; (void)nr; (void)offset; (void)data; (void)frames; }
static inline void ring_arm_wake(pc_ring *ring) { (void)ring; }
static inline void ring_wake(pc_ring *ring) { (void)ring; }
static inline int ring_submit_and_wait(pc_ring *ring) { (void)ring; return -ENOSYS; }
static inline int ring_take(pc_ring *ring, uint64_t *data, int32_t *result) {
    (void)ring; (void)data; (void)result; return 0; }
#endif
#endif
