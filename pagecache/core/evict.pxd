"""Eviction of one folio that a policy has taken off its list: what every policy shares."""
from libc.stdint cimport uint32_t
from pagecache.core.folio cimport (FOLIO_DIRTY, FOLIO_LOCKED, FOLIO_UNEVICTABLE, FOLIO_WRITEBACK, folio_clear,
                                   folio_mapping, folio_nr_pages, folio_test, folio_trylock, folio_unlock)
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport folio_free_last, folio_put, lru_link
from pagecache.core.mapping cimport filemap_remove_clean
from pagecache.core.segment cimport Folio, Segment


cdef inline void lru_putback(Segment* seg, Folio** folios, uint32_t nr) noexcept nogil:
    """Returns isolated folios to the heads of the lists their flags name, and drops the references."""
    cdef uint32_t i
    if nr == 0:
        return
    futex_lock(&seg.header.lru_lock)
    for i in range(nr):
        lru_link(seg, folios[i], False)
    futex_unlock(&seg.header.lru_lock)
    for i in range(nr):
        folio_put(seg, folios[i])


cdef inline uint32_t folio_remove_free(Segment* seg, Folio* folio) noexcept nogil:
    """Removes a locked, isolated folio from the cache, leaving a shadow, and frees it. Returns its pages, or 0 when it is
    dirty or held by others: then lock and reference are kept."""
    cdef uint32_t nr
    if filemap_remove_clean(seg, folio, 1, True) != 0:
        return 0
    nr = folio_nr_pages(folio)
    folio_clear(folio, FOLIO_LOCKED)
    folio_free_last(seg, folio)
    return nr


cdef inline uint32_t folio_evict(Segment* seg, Folio* folio) noexcept nogil:
    """Evicts an isolated folio if it may leave. Returns its pages, or 0: then the reference is kept."""
    cdef uint32_t nr = 0
    if not folio_trylock(folio):
        return 0
    if not folio_test(folio, FOLIO_UNEVICTABLE | FOLIO_DIRTY | FOLIO_WRITEBACK) and folio_mapping(folio) != 0:
        nr = folio_remove_free(seg, folio)
    if nr == 0:
        folio_unlock(seg, folio)
    return nr
