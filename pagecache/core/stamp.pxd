"""Whether a file is still the one whose bytes are cached: the times of its last changes and its size, compared with a
stamp.

any program can set mtime (`cp -p`, `rsync -t`, `touch -r`), none ctime; but ctime changes with mode, owner and names
as well.  So there are three answers: the same, another, and, if it is ctime alone that differs, doubtful: then the layer
above looks at the bytes.  Device and inode number are no part of the stamp: they are the same as long as the file is open,
and part of the key that another open of it has to have.

The cache's own writes change the stamp.  While one is under way it says nothing; the last of them to end takes it anew.
So a foreign change is seen whenever the cache itself is not writing; one that happens during a write of ours, to
the same file, is taken for ours, unless it has changed the size.  Writes to a descriptor come one at a time
(`AddressSpace.store_lock`), each with its own look before it and its own stamp after it.

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

cdef enum:                          # what a look at the file says
    STAMP_SAME = 0
    STAMP_DOUBTFUL = 1              # another ctime, all else the same
    STAMP_OTHER = 2


cdef inline void stamp_set(Mapping* mapping, int64_t mtime_ns, int64_t ctime_ns, int64_t size) noexcept nogil:
    """Takes a file that looks like this for the one that is cached."""
    store_release_u64(&mapping.stamp_mtime_ns, <uint64_t>mtime_ns)
    store_release_u64(&mapping.stamp_ctime_ns, <uint64_t>ctime_ns)
    store_release_u64(&mapping.stamp_size, <uint64_t>size)
    add_acq_rel_u32(&mapping.stamp_seq, 1)


cdef inline int stamp_take(Mapping* mapping, int fd) noexcept nogil:
    """Takes the file as it is now for the one that is cached. Returns 0 or -errno."""
    cdef int64_t mtime_ns = 0, ctime_ns = 0, size = 0
    cdef int r = file_stamp(fd, &mtime_ns, &ctime_ns, &size)
    if r == 0:
        stamp_set(mapping, mtime_ns, ctime_ns, size)
    else:
        add_acq_rel_u32(&mapping.stamp_seq, 1)
    return r


cdef inline bint own_write_active(Mapping* mapping) noexcept nogil:
    return (load_acquire_u32(&mapping.own_writes) & <uint32_t>OWN_WRITES_MASK) != 0


cdef inline int stamp_compare(Mapping* mapping, int64_t mtime_ns, int64_t ctime_ns, int64_t size) noexcept nogil:
    if (<uint64_t>mtime_ns != load_acquire_u64(&mapping.stamp_mtime_ns)
            or <uint64_t>size != load_acquire_u64(&mapping.stamp_size)):
        return STAMP_OTHER
    return STAMP_SAME if <uint64_t>ctime_ns == load_acquire_u64(&mapping.stamp_ctime_ns) else STAMP_DOUBTFUL


cdef inline int stamp_look(Mapping* mapping, int fd, int64_t* size) noexcept nogil:
    """Whether the file is as it was when its stamp was taken, as far as is known, and its size, if no write of the
    cache itself is under way. A file that cannot be looked at is another one."""
    cdef uint32_t seq, own
    cdef int64_t mtime_ns = 0, ctime_ns = 0
    cdef int state
    while True:
        seq = load_acquire_u32(&mapping.stamp_seq)
        own = load_acquire_u32(&mapping.own_writes)
        if own & <uint32_t>OWN_WRITES_MASK:
            return STAMP_SAME
        if file_stamp(fd, &mtime_ns, &ctime_ns, size) != 0:
            return STAMP_OTHER
        state = stamp_compare(mapping, mtime_ns, ctime_ns, size[0])
        if state == STAMP_SAME:
            return STAMP_SAME
        if load_acquire_u32(&mapping.own_writes) == own and load_acquire_u32(&mapping.stamp_seq) == seq:
            return state


cdef inline bint stamp_is_current(Mapping* mapping, int fd) noexcept nogil:
    """Whether the file is as it was when its stamp was taken, without any doubt."""
    cdef int64_t size = 0
    return stamp_look(mapping, fd, &size) == STAMP_SAME


cdef inline void own_write_begin(Mapping* mapping) noexcept nogil:
    add_acq_rel_u32(&mapping.own_writes, OWN_WRITES_BEGIN)


cdef inline bint own_write_end(Mapping* mapping, int fd, int64_t expected_size) noexcept nogil:
    """Ends a write. fd: the file that was written, or -1. expected_size: what it makes of the file's size (bytes), -1 if
    that is not known. Returns whether the size is that; if not, another program has changed the file meanwhile, and the
    stamp stays as it was."""
    cdef uint32_t own = load_acquire_u32(&mapping.own_writes)
    cdef int64_t mtime_ns = 0, ctime_ns = 0, size = 0
    cdef bint is_ours = True
    while True:
        pc_assert(own & <uint32_t>OWN_WRITES_MASK)
        if fd >= 0 and (own & <uint32_t>OWN_WRITES_MASK) == 1:
            is_ours = (file_stamp(fd, &mtime_ns, &ctime_ns, &size) == 0
                       and (expected_size < 0 or size == expected_size))
            if is_ours:
                stamp_set(mapping, mtime_ns, ctime_ns, size)
        if cas_acq_rel_u32(&mapping.own_writes, &own, own - 1):
            return is_ours
