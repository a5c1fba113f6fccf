"""Frames side by side: a block of them is emptied by evicting what it holds, wherever that is on the policy's lists.

Reclaim frees single folios from the tails of lists, and those lie anywhere: a full cache of small folios would have to be
emptied before a large block came together by chance.  Here a block is looked for whose folios may all leave (clean,
unlocked, referenced only by the page cache), without a lock and so as a guess; then each of them is locked and
removed as by eviction.  A frame of it that is taken meanwhile spoils the block, and the next one is tried.

Benefits: what has no smaller order to fall back to gets its frames as long as one block is free of what must stay.
Costs: pages leave that the policy would have kept.  So those that are in use are spared in a first pass.
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport hint_u32, load_acquire_u32, load_relaxed_u32
from pagecache.core.block cimport block_is_out
from pagecache.core.buddy cimport FOLIO_FREE
from pagecache.core.folio cimport (FOLIO_ACTIVE, FOLIO_ALLOCATED, FOLIO_DIRTY, FOLIO_EVICT_LAST, FOLIO_LOCKED, FOLIO_MAPPED,
                                   FOLIO_UNEVICTABLE, FOLIO_WRITEBACK, folio_alloc_nowait, folio_clear, folio_mapping,
                                   folio_test, folio_try_get, folio_trylock, folio_unlock, state_order)
from pagecache.core.lru cimport folio_free_last, folio_put
from pagecache.core.mapping cimport filemap_remove_clean
from pagecache.core.segment cimport Folio, Segment

cdef enum:
    MUST_STAY = (FOLIO_LOCKED | FOLIO_DIRTY | FOLIO_WRITEBACK | FOLIO_UNEVICTABLE | FOLIO_MAPPED)
    IN_USE = (FOLIO_ACTIVE | FOLIO_EVICT_LAST)


cdef inline bint block_may_leave(Segment* seg, uint32_t first, uint32_t order, bint spares) noexcept nogil:
    """Whether all that lies in a block seems to be free or fit to be evicted. spares: what is in use is not."""
    cdef uint32_t frame = first, end = first + (<uint32_t>1 << order), state, nr
    cdef Folio* folio
    if block_is_out(seg, first):
        return False
    while frame < end:
        folio = &seg.folios[frame]
        state = load_acquire_u32(&folio.state)
        nr = <uint32_t>1 << state_order(state)
        if not state & FOLIO_FREE:
            if not state & FOLIO_ALLOCATED or state & MUST_STAY or spares and state & IN_USE:
                return False            # also: inside something larger, or just being taken
            if folio_mapping(folio) == 0 or load_relaxed_u32(&folio.refcount) != nr:
                return False
        frame += nr
    return True


cdef inline void block_empty(Segment* seg, uint32_t first, uint32_t order) noexcept nogil:
    """Evicts what lies in a block and may leave."""
    cdef uint32_t frame = first, end = first + (<uint32_t>1 << order), state
    cdef Folio* folio
    cdef bint removed
    while frame < end:
        folio = &seg.folios[frame]
        state = load_acquire_u32(&folio.state)
        frame += <uint32_t>1 << state_order(state)
        if not state & FOLIO_ALLOCATED or not folio_try_get(folio):
            continue
        removed = False
        if folio_trylock(folio):
            if not folio_test(folio, FOLIO_UNEVICTABLE | FOLIO_DIRTY | FOLIO_WRITEBACK) and folio_mapping(folio) != 0:
                removed = filemap_remove_clean(seg, folio, 1, True) == 0
            if removed:
                folio_clear(folio, FOLIO_LOCKED)
                folio_free_last(seg, folio)
            else:
                folio_unlock(seg, folio)
        if not removed:
            folio_put(seg, folio)


cdef inline Folio* folio_alloc_emptied(Segment* seg, uint32_t order, bint spares) noexcept nogil:
    """A new folio whose frames are had by emptying a block. spares: none that holds what is in use. NULL if there is no
    such block. No lock is held."""
    cdef uint32_t nr_blocks = load_relaxed_u32(&seg.header.nr_opened) >> order, start, i, first
    cdef Folio* folio
    start = hint_u32(&seg.header.policy_clock)      # anywhere
    for i in range(nr_blocks):
        first = ((start + i) % nr_blocks) << order
        if block_may_leave(seg, first, order, spares):
            block_empty(seg, first, order)
            folio = folio_alloc_nowait(seg, order)
            if folio != NULL:
                return folio
    return NULL


cdef inline Folio* folio_alloc_block(Segment* seg, uint32_t order) noexcept nogil:
    """The same, sparing what is in use if it can."""
    cdef Folio* folio = folio_alloc_emptied(seg, order, True)
    return folio if folio != NULL else folio_alloc_emptied(seg, order, False)
