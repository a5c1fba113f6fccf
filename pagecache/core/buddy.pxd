"""Page frames: a buddy allocator of orders 0..9 over the folio descriptors.

A free block of 2**k frames is aligned to 2**k and stands in the free list of order k through its head's descriptor
(state FREE | order, links lru_prev and lru_next).  Allocation takes the head of the smallest list that fits and puts
the upper halves back; freeing merges with the buddy (number XOR 2**k) while that is a free head of the same order.
Lists are last in, first out, so that recycled frames, whose memory is there already, are used before untouched ones.
Frames enter the lists when they are first needed, block by block (balloon.pxd).
All of it under buddy_lock, the innermost lock but one (the xarray node pool's is a leaf beside it).
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport (add_acq_rel_u32, load_relaxed_u32, store_relaxed_u32, store_release_u32)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport MAX_ORDER, NIL, NR_ORDERS
from pagecache.core.futex cimport futex_wake
from pagecache.core.lock cimport WAKE_ALL, futex_lock, futex_unlock
from pagecache.core.segment cimport Folio, Segment
from pagecache.core.thread cimport thread_count_event

cdef enum:
    FOLIO_FREE = 1 << 20            # head of a free block; beside the order the only bit set then
    FOLIO_ORDER_SHIFT = 28


cdef inline void buddy_link(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    cdef Folio* head = &seg.folios[frame]
    cdef uint32_t first = seg.header.free_first[order]
    head.lru_prev = NIL
    head.lru_next = first
    if first != NIL:
        seg.folios[first].lru_prev = frame
    seg.header.free_first[order] = frame
    store_release_u32(&head.state, <uint32_t>FOLIO_FREE | (order << FOLIO_ORDER_SHIFT))


cdef inline void buddy_unlink(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    cdef Folio* head = &seg.folios[frame]
    if head.lru_prev == NIL:
        pc_assert(seg.header.free_first[order] == frame)
        seg.header.free_first[order] = head.lru_next
    else:
        seg.folios[head.lru_prev].lru_next = head.lru_next
    if head.lru_next != NIL:
        seg.folios[head.lru_next].lru_prev = head.lru_prev
    store_release_u32(&head.state, 0)


cdef inline bint buddy_is_free_head(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    return load_relaxed_u32(&seg.folios[frame].state) == (<uint32_t>FOLIO_FREE | (order << FOLIO_ORDER_SHIFT))


cdef inline void memory_event(Segment* seg) noexcept nogil:
    """Wakes threads that wait for memory. Costs one load when none waits."""
    if load_relaxed_u32(&seg.header.nr_waiting_for_memory) != 0:
        add_acq_rel_u32(&seg.header.memory_event, 1)
        thread_count_event()
        futex_wake(&seg.header.memory_event, WAKE_ALL)


cdef inline uint32_t buddy_alloc(Segment* seg, uint32_t order) noexcept nogil:
    """Takes 2**order contiguous, aligned frames. Returns the first frame's number, or NIL."""
    cdef uint32_t k, frame
    pc_assert(order <= MAX_ORDER)
    futex_lock(&seg.header.buddy_lock)
    k = order
    while k < NR_ORDERS and seg.header.free_first[k] == NIL:
        k += 1
    if k == NR_ORDERS:
        futex_unlock(&seg.header.buddy_lock)
        return NIL
    frame = seg.header.free_first[k]
    buddy_unlink(seg, frame, k)
    while k > order:
        k -= 1
        buddy_link(seg, frame + (<uint32_t>1 << k), k)
    store_relaxed_u32(&seg.header.nr_free, load_relaxed_u32(&seg.header.nr_free) - (<uint32_t>1 << order))
    futex_unlock(&seg.header.buddy_lock)
    return frame


cdef inline void buddy_merge(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    """Puts a block into the lists, merged with its free buddies. buddy_lock is held."""
    cdef uint32_t k = order
    cdef uint32_t buddy
    pc_assert((frame & ((<uint32_t>1 << order) - 1)) == 0)
    while k < MAX_ORDER:
        buddy = frame ^ (<uint32_t>1 << k)
        if (buddy + (<uint32_t>1 << k) > load_relaxed_u32(&seg.header.nr_opened)
                or not buddy_is_free_head(seg, buddy, k)):
            break
        buddy_unlink(seg, buddy, k)
        frame = frame & ~(<uint32_t>1 << k)
        k += 1
    buddy_link(seg, frame, k)


cdef inline void buddy_free(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    """Gives a block back and merges it with its free buddies."""
    futex_lock(&seg.header.buddy_lock)
    buddy_merge(seg, frame, order)
    store_relaxed_u32(&seg.header.nr_free, load_relaxed_u32(&seg.header.nr_free) + (<uint32_t>1 << order))
    futex_unlock(&seg.header.buddy_lock)
    memory_event(seg)


cdef inline void buddy_open(Segment* seg, uint32_t first, uint32_t end) noexcept nogil:
    """Puts frames [first, end), which were never used, into the lists, in the largest aligned blocks, lowest frames on top.
    buddy_lock is held; that they are free was counted before."""
    cdef uint32_t order
    pc_assert(first == load_relaxed_u32(&seg.header.nr_opened))
    store_relaxed_u32(&seg.header.nr_opened, end)
    while end > first:
        order = 0
        while (order < MAX_ORDER and not (end & ((<uint32_t>2 << order) - 1))
               and end - first >= (<uint32_t>2 << order)):
            order += 1
        end -= <uint32_t>1 << order
        buddy_merge(seg, end, order)
