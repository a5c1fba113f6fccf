"""Charging: what is not a frame is paid for with frames, before it is touched; and how the balloon is filled.

What is about to touch new pages of an array (index nodes, records of objects) adds them to `nr_metadata` first. As far as
they are more than their allowance the balloon has to grow by so many frames: free ones, else some are evicted as for any
allocation. If none can be had the pages are not touched, and the caller fails as it does without a frame.

    charge    nr_metadata += pages (acq_rel); then frames are taken until the balloon is what is wanted, or has grown by
              what this charge needs: a shrink under way, or another thread's charge, is not this thread's to pay
    touch     after that only, and in batches, populated without a lock
    uncharge  after the memory was given back; frames that are not wanted any more are freed
Two threads that charge at once may both fill in for the other: what is too much is freed again.
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport add_acq_rel_u32, store_release_u32, sub_acq_rel_u32
from pagecache.core.balloon cimport (balloon_add, balloon_chunk, balloon_give_excess, balloon_missing, balloon_take_free,
                                     balloon_take_unopened)
from pagecache.core.compact cimport folio_alloc_emptied
from pagecache.core.config cimport MAX_ORDER
from pagecache.core.folio cimport folio_ref_freeze
from pagecache.core.lru cimport folio_put
from pagecache.core.priority cimport reclaim_batch
from pagecache.core.reclaim cimport reclaim_pages
from pagecache.core.segment cimport Folio, Segment, folio_number

cdef enum:
    CHARGE_TRIES = 16               # evictions whose frames others took, before a charge gives up
    FILL_PAGES = 512                # evicted in one step of a shrink, at most


cdef inline uint32_t balloon_take_block(Segment* seg, uint32_t nr, bint spares, bint must_return,
                                        bint* refused) noexcept nogil:
    """Evicts what lies in a block of the largest order that is not more than nr frames, and takes it. Returns its
    frames."""
    cdef uint32_t order = MAX_ORDER, frame
    cdef Folio* folio
    while order > 0 and nr < <uint32_t>1 << order:
        order -= 1
    if order == 0:
        return 0
    folio = folio_alloc_emptied(seg, order, spares)
    if folio == NULL:
        return 0
    if not folio_ref_freeze(folio, 1):      # a lookup that came late holds it for a moment
        folio_put(seg, folio)
        return 0
    frame = folio_number(seg, folio)
    store_release_u32(&folio.state, 0)
    if balloon_add(seg, frame, order, must_return):
        return <uint32_t>1 << order
    refused[0] = True
    return 0


cdef inline uint32_t balloon_fill(Segment* seg, uint32_t nr, bint must_return, bint* refused) noexcept nogil:
    """One step: takes up to nr frames: such as were never used, free ones, whole blocks of what is not in use, at last
    what leaves first by the policy. Returns how many; 0 also when others took what was evicted. No lock is held.

    must_return: takes only what the system takes the memory of; refused is set where it does not."""
    cdef uint32_t taken = balloon_take_unopened(seg, nr), batch
    if taken < nr:
        taken += balloon_take_free(seg, nr - taken, must_return, refused)
    if taken > 0 or refused[0]:
        return taken
    taken = balloon_take_block(seg, nr, True, must_return, refused)
    if taken > 0 or refused[0]:
        return taken
    batch = reclaim_batch(seg, nr if nr < FILL_PAGES else FILL_PAGES)
    if reclaim_pages(seg, batch) > 0:
        return balloon_take_free(seg, nr, must_return, refused)
    return balloon_take_block(seg, nr, False, must_return, refused)


cdef inline void metadata_uncharge(Segment* seg, uint32_t nr_pages) noexcept nogil:
    """Pages are not touched any more: their memory is the system's again."""
    sub_acq_rel_u32(&seg.header.nr_metadata, nr_pages)
    balloon_give_excess(seg)


cdef inline bint metadata_charge(Segment* seg, uint32_t nr_pages) noexcept nogil:
    """Pays for pages that will be touched. Returns whether they may be. No lock is held."""
    cdef uint32_t missing, needed, taken, tries = 0
    cdef uint32_t chunk = <uint32_t>1 << balloon_chunk(seg)
    cdef bint refused = False
    add_acq_rel_u32(&seg.header.nr_metadata, nr_pages)
    needed = balloon_missing(seg)
    needed = needed if needed < nr_pages else nr_pages
    missing = needed
    while needed > 0 and missing > 0:
        taken = balloon_fill(seg, chunk if tries == 0 and chunk > needed else needed, False, &refused)
        if taken == 0:
            tries += 1
            if tries == CHARGE_TRIES:
                metadata_uncharge(seg, nr_pages)
                return False
        needed = needed - taken if needed > taken else 0
        missing = balloon_missing(seg)
    return True
