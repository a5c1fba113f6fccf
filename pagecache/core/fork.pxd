"""What a child of fork() gets of a segment: what is pinned when it is made, and nothing else.

A child may not use the cache, but views that it inherits go on showing the same bytes.  If it had all frames, each page
that the parent evicts or fills would be copied first, and an idle child would keep the whole budget in memory.

    made        the frames of a private region are MADV_DONTFORK
    before      in the thread that forks: 2 MiB blocks of frames that hold a pinned folio are MADV_DOFORK
    parent      all frames are MADV_DONTFORK again
    child       the segment is dead; of its frames it has a copy of these blocks, the rest is not mapped
Blocks, so that no huge page is split and few areas of the process's map are made; where there are too many areas for that,
the child gets all frames.  What may be looked at in the child is what has `nr_pins`: views, buffers, pages of private maps.

Benefits: fork() copies no page tables of the frames.
Costs: with pins, a look at every descriptor in use (64 bytes for 4 KiB); frames are out of the reach of a child that
the C library made with vfork().
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport load_relaxed_u32
from pagecache.core.config cimport BLOCK_FRAMES, PAGE_SHIFT
from pagecache.core.memory cimport memory_advise_fork
from pagecache.core.segment cimport NR_PINNED, Segment, counted, frame_address

ctypedef void (*fork_step)(void* segment) noexcept nogil

cdef extern from "core/fork.h" nogil:
    void fork_setup(fork_step before, fork_step parent, fork_step child) noexcept
    int fork_register(void* segment) noexcept
    void fork_unregister(void* segment) noexcept


cdef inline bint has_private_frames(Segment* seg) noexcept nogil:
    return not seg.dead and not seg.is_shared and seg.header.has_data


cdef inline void segment_keep_from_children(Segment* seg) noexcept nogil:
    if has_private_frames(seg):
        memory_advise_fork(seg.frames, <size_t>seg.nr_frames << PAGE_SHIFT, False)


cdef inline bint block_is_pinned(Segment* seg, uint32_t first) noexcept nogil:
    """Whether a folio that begins in a block of frames is pinned."""
    cdef uint32_t frame
    for frame in range(first, first + BLOCK_FRAMES if first + BLOCK_FRAMES < seg.nr_frames else seg.nr_frames):
        if load_relaxed_u32(&seg.folios[frame].nr_pins) != 0:
            return True
    return False


cdef inline void fork_before(void* argument) noexcept nogil:
    cdef Segment* seg = <Segment*>argument
    cdef uint32_t first = 0, end, nr_opened
    if not has_private_frames(seg) or counted(seg, NR_PINNED) <= 0:
        return
    nr_opened = load_relaxed_u32(&seg.header.nr_opened)
    while first < nr_opened:
        end = first + BLOCK_FRAMES if first + BLOCK_FRAMES < seg.nr_frames else seg.nr_frames
        if block_is_pinned(seg, first):
            if memory_advise_fork(frame_address(seg, first), <size_t>(end - first) << PAGE_SHIFT, True) < 0:
                memory_advise_fork(seg.frames, <size_t>seg.nr_frames << PAGE_SHIFT, True)
                return
        first = end


cdef inline void fork_parent(void* argument) noexcept nogil:
    segment_keep_from_children(<Segment*>argument)


cdef inline void fork_child(void* argument) noexcept nogil:
    (<Segment*>argument).dead = True
