"""Whether a file is still the one whose bytes are cached: time of its last change and size, compared with a stamp.

The cache's own writes change both.  While one is under way the stamp says nothing; the last of them to end takes it
anew.  So a change by somebody else is seen whenever the cache itself is not writing; one that happens during a write of
ours, to the same file, is taken for ours.

`own_writes` holds how many are under way (bits 0..15) and how many ever began (bits 16..31, wrapping).
    check     own_writes, stamp_seq; one is under way: no answer; compare; if different: both words unchanged, else again
    begin     both parts + 1
    end       not the last one: count - 1 by compare-and-swap. The last one: takes the stamp, then the same; that fails if
              another has begun meanwhile, and then it starts over, as what it took may be old.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport (add_acq_rel_u32, cas_acq_rel_u32, load_acquire_u32, load_acquire_u64,
                                    store_release_u64)
from pagecache.core.check cimport pc_assert
from pagecache.core.io cimport file_stamp
from pagecache.core.segment cimport Mapping

cdef enum:
    OWN_WRITES_MASK = 0xFFFF
    OWN_WRITES_BEGIN = 0x10001


cdef inline int stamp_take(Mapping* mapping, int fd) noexcept nogil:
    """Takes the file as it is now for the one that is cached. Returns 0 or -errno."""
    cdef int64_t mtime_ns = 0, size = 0
    cdef int r = file_stamp(fd, &mtime_ns, &size)
    if r == 0:
        store_release_u64(&mapping.stamp_mtime_ns, <uint64_t>mtime_ns)
        store_release_u64(&mapping.stamp_size, <uint64_t>size)
    add_acq_rel_u32(&mapping.stamp_seq, 1)
    return r


cdef inline bint own_write_active(Mapping* mapping) noexcept nogil:
    return (load_acquire_u32(&mapping.own_writes) & <uint32_t>OWN_WRITES_MASK) != 0


cdef inline bint stamp_is_current(Mapping* mapping, int fd) noexcept nogil:
    """Whether the file is as it was when its stamp was taken, as far as can be told."""
    cdef uint32_t seq, own
    cdef int64_t mtime_ns = 0, size = 0
    while True:
        seq = load_acquire_u32(&mapping.stamp_seq)
        own = load_acquire_u32(&mapping.own_writes)
        if own & <uint32_t>OWN_WRITES_MASK:
            return True
        if file_stamp(fd, &mtime_ns, &size) != 0:
            return False
        if (<uint64_t>mtime_ns == load_acquire_u64(&mapping.stamp_mtime_ns)
                and <uint64_t>size == load_acquire_u64(&mapping.stamp_size)):
            return True
        if load_acquire_u32(&mapping.own_writes) == own and load_acquire_u32(&mapping.stamp_seq) == seq:
            return False


cdef inline void own_write_begin(Mapping* mapping) noexcept nogil:
    add_acq_rel_u32(&mapping.own_writes, OWN_WRITES_BEGIN)


cdef inline void own_write_end(Mapping* mapping, int fd) noexcept nogil:
    """fd: the file that was written, or -1."""
    cdef uint32_t own = load_acquire_u32(&mapping.own_writes)
    while True:
        pc_assert(own & <uint32_t>OWN_WRITES_MASK)
        if fd >= 0 and (own & <uint32_t>OWN_WRITES_MASK) == 1:
            stamp_take(mapping, fd)
        if cas_acq_rel_u32(&mapping.own_writes, &own, own - 1):
            return
