"""io_uring by its system calls: one ring, owned by one thread."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from pagecache.core.io cimport iovec

cdef extern from "core/ring.h" nogil:
    const uint64_t RING_WAKE_DATA
    ctypedef struct pc_ring:
        uint32_t entries
        uint32_t to_submit
        bint registered
    int ring_setup(pc_ring* ring, uint32_t entries) noexcept
    void ring_close(pc_ring* ring) noexcept
    int ring_register(pc_ring* ring, char* base, size_t bytes) noexcept
    void ring_read(pc_ring* ring, int fd, const iovec* vector, unsigned nr, int64_t offset, uint64_t data,
                   const char* frames) noexcept
    void ring_arm_wake(pc_ring* ring) noexcept
    void ring_wake(pc_ring* ring) noexcept
    int ring_submit_and_wait(pc_ring* ring) noexcept
    bint ring_take(pc_ring* ring, uint64_t* data, int32_t* result) noexcept
