"""What of a mapping is cached: counts over a range, one byte a page, the next cached page, lists of folios.

These are walks under xa_lock over as much as a whole index, which others want meanwhile: after WALK_BATCH entries the
lock is given up for a moment (`walk_step`), and the walk goes on behind the entry it was at.  So what they tell is not
one moment's, as with cachestat(2) and mincore(2), and no thread waits for longer than a batch takes (0.2 ms).  The time of
all of them is bounded by the entries in the range, cached folios and shadows, and not by its length.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from pagecache.core.check cimport pc_assert
from pagecache.core.folio cimport FOLIO_UNUSED, FOLIO_UPTODATE, folio_index, folio_state, folio_test, folio_try_get
from pagecache.core.lock cimport futex_lock, futex_lock_pass, futex_unlock
from pagecache.core.mapping cimport MARK_DIRTY, MARK_WRITEBACK, entry_frame, entry_order
from pagecache.core.segment cimport Folio, Mapping, Segment
from pagecache.core.workingset cimport shadow_is_recent
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer, xa_is_value
from pagecache.core.xa_find cimport xas_find, xas_pause
from pagecache.core.xa_multi cimport xas_get_order
from pagecache.core.xa_state cimport XaState, xas_get_mark, xas_init
from pagecache.core.xa_walk cimport xa_load

cdef enum:
    WALK_BATCH = 2048               # entries
    GAP_PAGES_MIN = 64              # shorter rests of a range are looked at page by page

ctypedef struct Residency:          # pages
    uint64_t cached
    uint64_t dirty
    uint64_t writeback
    uint64_t evicted                # that left a shadow
    uint64_t recent                 # of those: would be activated if they came back


cdef inline void walk_begin(XaState* xas, Segment* seg, Mapping* mapping, uint64_t first) noexcept nogil:
    """Takes xa_lock; `futex_unlock` at the end."""
    futex_lock(&mapping.pages.lock)
    xas_init(xas, &mapping.pages, &seg.pool, first, 0)


cdef inline void walk_step(XaState* xas, Mapping* mapping, uint32_t* nr_seen) noexcept nogil:
    """After each entry: gives xa_lock up now and then."""
    nr_seen[0] += 1
    if nr_seen[0] % WALK_BATCH == 0:
        xas_pause(xas)
        futex_lock_pass(&mapping.pages.lock)


cdef inline void mapping_residency(Segment* seg, Mapping* mapping, uint64_t first, uint64_t last,
                                   Residency* out) noexcept nogil:
    """Counts over pages first..last."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint64_t begin, end, nr
    cdef uint32_t nr_seen = 0
    memset(out, 0, sizeof(Residency))
    walk_begin(&xas, seg, mapping, first)
    entry = xas_find(&xas, last)
    while entry != 0:
        nr = <uint64_t>1 << xas_get_order(&xas)
        begin = xas.index & ~(nr - 1)
        end = begin + nr - 1
        nr = (end if end < last else last) - (begin if begin > first else first) + 1
        if xa_is_pointer(entry):
            out.cached += nr
            out.dirty += nr if xas_get_mark(&xas, MARK_DIRTY) else 0
            out.writeback += nr if xas_get_mark(&xas, MARK_WRITEBACK) else 0
        elif xa_is_value(entry):
            out.evicted += nr
            out.recent += nr if shadow_is_recent(seg, entry) else 0
        walk_step(&xas, mapping, &nr_seen)
        entry = xas_find(&xas, last)
    futex_unlock(&mapping.pages.lock)


cdef inline uint64_t mapping_nr_unused(Segment* seg, Mapping* mapping) noexcept nogil:
    """Cached pages that were read ahead and that have not been asked for yet."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint64_t nr = 0
    cdef uint32_t nr_seen = 0
    walk_begin(&xas, seg, mapping, 0)
    entry = xas_find(&xas, <uint64_t>-1)
    while entry != 0:
        if xa_is_pointer(entry) and folio_test(&seg.folios[entry_frame(entry)], FOLIO_UNUSED):
            nr += <uint64_t>1 << entry_order(entry)
        walk_step(&xas, mapping, &nr_seen)
        entry = xas_find(&xas, <uint64_t>-1)
    futex_unlock(&mapping.pages.lock)
    return nr


cdef inline uint64_t mapping_next_present(Segment* seg, Mapping* mapping, uint64_t index, uint64_t last) noexcept nogil:
    """First cached page in index..last, last + 1 if none is."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint32_t nr_seen = 0
    walk_begin(&xas, seg, mapping, index)
    entry = xas_find(&xas, last)
    while entry != 0 and not xa_is_pointer(entry):
        walk_step(&xas, mapping, &nr_seen)
        entry = xas_find(&xas, last)
    futex_unlock(&mapping.pages.lock)
    return xas.index if entry != 0 else last + 1


cdef inline Folio* mapping_next_folio(Segment* seg, Mapping* mapping, uint64_t* index) noexcept nogil:
    """The first folio at or behind page `index`, referenced; `index` is where it was met then. NULL if there is none."""
    cdef XaState xas
    cdef xa_entry entry
    cdef Folio* folio = NULL
    cdef uint32_t nr_seen = 0
    walk_begin(&xas, seg, mapping, index[0])
    entry = xas_find(&xas, <uint64_t>-1)
    while entry != 0 and not xa_is_pointer(entry):
        walk_step(&xas, mapping, &nr_seen)
        entry = xas_find(&xas, <uint64_t>-1)
    if entry != 0:
        folio = &seg.folios[entry_frame(entry)]
        if not folio_try_get(folio):
            pc_assert(False)
        index[0] = xas.index
    futex_unlock(&mapping.pages.lock)
    return folio


cdef inline void mapping_mincore(Segment* seg, Mapping* mapping, uint64_t first, uint64_t nr_pages,
                                 char* out) noexcept nogil:
    """Sets out[i], which is zero, to 1 where page first + i is cached and uptodate. No lock is held for what is cached."""
    cdef uint64_t at = 0
    cdef xa_entry entry
    while at < nr_pages:
        entry = xa_load(&mapping.pages, &seg.pool, first + at)
        if xa_is_pointer(entry):
            out[at] = folio_test(&seg.folios[entry_frame(entry)], FOLIO_UPTODATE)
            at += 1
        elif nr_pages - at < GAP_PAGES_MIN:
            at += 1
        else:
            at = mapping_next_present(seg, mapping, first + at + 1, first + nr_pages - 1) - first


cdef inline uint32_t mapping_list_folios(Segment* seg, Mapping* mapping, uint64_t first, uint32_t nr_max,
                                         uint64_t* indexes, uint32_t* states) noexcept nogil:
    """Up to nr_max folios from page `first` on: first pages and state words. Returns how many."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint32_t nr = 0, nr_seen = 0
    walk_begin(&xas, seg, mapping, first)
    entry = xas_find(&xas, <uint64_t>-1)
    while entry != 0 and nr < nr_max:
        if xa_is_pointer(entry):
            indexes[nr] = folio_index(&seg.folios[entry_frame(entry)])
            states[nr] = folio_state(&seg.folios[entry_frame(entry)])
            nr += 1
        walk_step(&xas, mapping, &nr_seen)
        entry = xas_find(&xas, <uint64_t>-1)
    futex_unlock(&mapping.pages.lock)
    return nr
