"""Memory of frames and of their descriptors: given back to the system, and had again, by huge pages where that is possible.

A block is 512 frames: a huge page of data, and 32 KiB of descriptors, which are whole pages of their own. When all of a
block is in the balloon it is *out*: both are given back, and `Block` keeps what must not be forgotten.

    out   seq = 2 more than the largest `seq` of its descriptors (marked under lru_lock: ghosts lie in descriptors too);
          then the memory goes. From here on its descriptors read as zeros.
    in    the descriptors are populated, and each begins with that seq; then the mark goes.
A living descriptor's seq is never 0, as the first opening sets it to 2: so a reader without a reference that took a seq
before the block went out finds another one afterwards, whether it is out or in again, and throws its copy away.

Benefits: shrinking to a tenth leaves a tenth of the descriptors.
Costs: 8 bytes for 512 frames; a late reader that tries for a reference in a block that is out brings in a page that is
counted nowhere, until the block is used again.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport cas_acq_rel_u32, load_acquire_u32, load_relaxed_u32, store_relaxed_u32, store_release_u32
from pagecache.core.config cimport BLOCK_FRAMES, FRAME_ALIGNMENT, MAX_ORDER, PAGE_SHIFT, PAGE_SIZE
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.memory cimport memory_advise_small, memory_give_back, memory_populate
from pagecache.core.segment cimport Folio, Segment, frame_address

cdef enum:
    BLOCK_PAGES = 8                 # of descriptors
    BLOCK_DESCRIBED = 1             # Block.seq: the system did not take the descriptors
    FIRST_SEQ = 2
    SPLIT_BLOCKS_MAX = 8192         # huge pages of a segment whose holes are kept holes, each an area of the process's map


cdef inline bint advice_fails(Segment* seg) noexcept nogil:
    """Fault injection."""
    cdef uint32_t nr = load_relaxed_u32(&seg.header.fail_advice)
    while nr != 0:
        if cas_acq_rel_u32(&seg.header.fail_advice, &nr, nr - 1):
            return True
    return False


cdef inline bint pages_give_back(Segment* seg, void* address, size_t nbytes) noexcept nogil:
    """Gives whole pages of the region to the system. Returns whether it took them: not those that are locked in memory."""
    return not advice_fails(seg) and memory_give_back(address, nbytes, seg.is_shared) == 0


cdef inline void block_advise_small(Segment* seg, uint32_t frame) noexcept nogil:
    """Has the huge page that a frame lies in made of small ones."""
    cdef uint32_t first = frame & ~<uint32_t>(BLOCK_FRAMES - 1)
    if seg.header.has_data and first + BLOCK_FRAMES <= seg.nr_frames:
        memory_advise_small(frame_address(seg, first), FRAME_ALIGNMENT)


cdef inline bint frames_give_back(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    """Gives the memory of a block of frames to the system. Returns whether it took it."""
    if not seg.header.has_data:
        return True
    if seg.is_pinned:
        return False
    if order < MAX_ORDER and seg.nr_frames // BLOCK_FRAMES <= SPLIT_BLOCKS_MAX:
        block_advise_small(seg, frame)
    return pages_give_back(seg, frame_address(seg, frame), <size_t>PAGE_SIZE << order)


cdef inline bint block_is_out(Segment* seg, uint32_t frame) noexcept nogil:
    return load_acquire_u32(&seg.blocks[frame // BLOCK_FRAMES].seq) != 0


cdef inline void descriptors_populate(Segment* seg, uint32_t first, uint32_t end) noexcept nogil:
    """Has the descriptors of frames [first, end) in memory."""
    cdef uint64_t start = <uint64_t>first * sizeof(Folio) & ~<uint64_t>(PAGE_SIZE - 1)
    cdef uint64_t nbytes = <uint64_t>end * sizeof(Folio) - start
    memory_populate(<char*>seg.folios + start, (nbytes + PAGE_SIZE - 1) >> PAGE_SHIFT << PAGE_SHIFT)


cdef inline void descriptors_begin(Segment* seg, uint32_t first, uint32_t end, uint32_t seq) noexcept nogil:
    """Sets where the sequence counters of descriptors that are not in use begin."""
    cdef uint32_t i
    for i in range(first, end):
        store_relaxed_u32(&seg.folios[i].seq, seq)


cdef inline bint block_leave(Segment* seg, uint32_t frame) noexcept nogil:
    """Marks a block as out, whose frames are the caller's, and gives the memory of its descriptors back. Returns whether
    the system took it."""
    cdef uint32_t seq = 0, i, before
    for i in range(frame, frame + BLOCK_FRAMES):
        before = load_relaxed_u32(&seg.folios[i].seq)
        seq = before if before > seq else seq
    seq = (seq + 2) & ~<uint32_t>1
    seq = seq if seq != 0 else <uint32_t>FIRST_SEQ
    futex_lock(&seg.header.lru_lock)
    store_release_u32(&seg.blocks[frame // BLOCK_FRAMES].seq, seq)
    futex_unlock(&seg.header.lru_lock)
    if pages_give_back(seg, &seg.folios[frame], <size_t>BLOCK_PAGES << PAGE_SHIFT):
        return True
    store_release_u32(&seg.blocks[frame // BLOCK_FRAMES].seq, seq | BLOCK_DESCRIBED)
    return False


cdef inline void block_enter(Segment* seg, uint32_t frame) noexcept nogil:
    """Makes descriptors for a block that was out; its frames are the caller's. What its descriptors cost is charged by
    the caller, before, unless they were BLOCK_DESCRIBED."""
    cdef uint32_t seq = load_relaxed_u32(&seg.blocks[frame // BLOCK_FRAMES].seq) & ~<uint32_t>BLOCK_DESCRIBED
    descriptors_populate(seg, frame, frame + BLOCK_FRAMES)
    descriptors_begin(seg, frame, frame + BLOCK_FRAMES, seq)
    store_release_u32(&seg.blocks[frame // BLOCK_FRAMES].seq, 0)
