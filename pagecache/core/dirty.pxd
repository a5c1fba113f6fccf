"""How many pages may be dirty: a strict limit, kept in one word.

A page is charged while it is dirty or under write-back, whichever comes first and goes last.  What dirties a folio
charges it before, and does not dirty it when that would exceed the limit: so the number of charged pages never does.
The one exception keeps a small cache going: a folio larger than the limit may be dirty alone.

    charge      nr_dirty_charged += pages by compare-and-swap, if the sum stays within dirty_limit (acq_rel)
    dirty       DIRTY by fetch-or: if DIRTY or WRITEBACK was set, the folio was charged already, and this charge is
                given back
    end         WRITEBACK by fetch-and: if DIRTY is not set in the state found, the charge is given back
Both flags are in one word, so exactly one of two threads that dirty a folio and end its write-back sees the other.
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport (add_acq_rel_u32, cas_acq_rel_u32, hint_u32, load_acquire_u32,
                                    load_relaxed_u32, sub_acq_rel_u32)
from pagecache.core.buddy cimport memory_event
from pagecache.core.check cimport pc_assert
from pagecache.core.futex cimport futex_wake
from pagecache.core.lock cimport WAKE_ALL
from pagecache.core.segment cimport Segment


cdef inline void flusher_wake(Segment* seg) noexcept nogil:
    """Asks the flusher to look."""
    add_acq_rel_u32(&seg.header.flusher_word, 1)
    futex_wake(&seg.header.flusher_word, WAKE_ALL)


cdef inline uint32_t dirty_charged(Segment* seg) noexcept nogil:
    return load_acquire_u32(&seg.header.nr_dirty_charged)

cdef inline bint dirty_is_plenty(Segment* seg) noexcept nogil:
    """Whether a writer should look at how fast pages are written back: half-way from the background limit to the limit."""
    return dirty_charged(seg) > (hint_u32(&seg.header.dirty_limit) + hint_u32(&seg.header.dirty_background)) // 2


cdef inline bint dirty_try_charge(Segment* seg, uint32_t nr) noexcept nogil:
    """Charges pages that will be dirty. Returns whether the limit allows it. The flusher is asked to look when more
    than a background amount is dirty."""
    cdef uint32_t before = load_relaxed_u32(&seg.header.nr_dirty_charged)
    while before + nr <= hint_u32(&seg.header.dirty_limit) or before == 0:
        if cas_acq_rel_u32(&seg.header.nr_dirty_charged, &before, before + nr):
            if before <= hint_u32(&seg.header.dirty_background) < before + nr:
                flusher_wake(seg)
            return True
    flusher_wake(seg)
    return False


cdef inline void dirty_uncharge(Segment* seg, uint32_t nr) noexcept nogil:
    """Pages are neither dirty nor under write-back any more."""
    cdef uint32_t before = sub_acq_rel_u32(&seg.header.nr_dirty_charged, nr)
    pc_assert(before >= nr)
    memory_event(seg)
