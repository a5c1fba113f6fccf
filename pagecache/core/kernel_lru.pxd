"""The kernel's policy: active and inactive list, refault distance.

The rules: docs/kernel.md, recency and reclaim.

Scans take folios from the tail of the inactive list in chunks of 32.  A folio that was accessed twice moves to the
active list (the move that its readers left to reclaim); one that is dirty or under write-back moves there too and is
sent back to the inactive tail when it is clean; one that is locked or held stays; all others are removed, leaving a
shadow, and freed.  The active list is trimmed, referenced or not, while the inactive one is too short or refaults
show that it is.  Pressure rises from 1/4096 of the lists to all of them.
"""
from libc.math cimport sqrt
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport hint_u64, load_relaxed_u64
from pagecache.core.config cimport DEF_PRIORITY, NIL, SWAP_CLUSTER_MAX
from pagecache.core.evict cimport folio_remove_free, lru_putback
from pagecache.core.folio cimport (FOLIO_ACCESSED, FOLIO_ACTIVE, FOLIO_DIRTY, FOLIO_READAHEAD, FOLIO_REFERENCED,
                                   FOLIO_UNEVICTABLE, FOLIO_WORKINGSET, FOLIO_WRITEBACK, folio_clear, folio_mapping,
                                   folio_nr_pages, folio_set, folio_test, folio_test_clear, folio_trylock, folio_try_get,
                                   folio_unlock)
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport lru_unlink
from pagecache.core.policy cimport Scan
from pagecache.core.priority cimport folio_is_protected
from pagecache.core.segment cimport (LRU_ACTIVE, LRU_INACTIVE, PGACTIVATE, PGDEACTIVATE, PGREFILL, PGSCAN_DIRECT,
                                     PGSCAN_KSWAPD, PGSTEAL_DIRECT, PGSTEAL_KSWAPD, Folio, Segment, count)
from pagecache.core.workingset cimport workingset_age


cdef inline uint32_t lru_isolate(Segment* seg, int which, uint32_t nr_to_scan, Folio** out,
                                 uint32_t* nr_scanned) noexcept nogil:
    """Takes folios off the tail of a list, with a reference each, until nr_to_scan pages (32 at most) were looked at:
    one large folio is a chunk of its own. Returns the folios taken."""
    cdef uint32_t number, nr = 0
    cdef Folio* folio
    nr_scanned[0] = 0
    if nr_to_scan > SWAP_CLUSTER_MAX:
        nr_to_scan = SWAP_CLUSTER_MAX
    futex_lock(&seg.header.lru_lock)
    number = seg.header.lru[which].last
    while number != NIL and nr < SWAP_CLUSTER_MAX and nr_scanned[0] < nr_to_scan:
        folio = &seg.folios[number]
        number = folio.lru_prev
        nr_scanned[0] += folio_nr_pages(folio)
        if folio_try_get(folio):
            lru_unlink(seg, folio)
            out[nr] = folio
            nr += 1
    futex_unlock(&seg.header.lru_lock)
    return nr


cdef inline bint folio_should_stay(Segment* seg, Scan* scan, Folio* folio) noexcept nogil:
    """Whether a locked, isolated folio is in use; moves it to the active list if it deserves that."""
    cdef bint accessed, referenced
    if folio_test(folio, FOLIO_UNEVICTABLE):
        return True
    if folio_test(folio, FOLIO_DIRTY | FOLIO_WRITEBACK):
        folio_set(folio, FOLIO_READAHEAD | FOLIO_ACTIVE)
        return True
    accessed = folio_test_clear(folio, FOLIO_ACCESSED)
    referenced = folio_test_clear(folio, FOLIO_REFERENCED)
    if accessed and referenced:
        folio_set(folio, FOLIO_ACTIVE)
        count(seg, PGACTIVATE, folio_nr_pages(folio))
        return True
    if scan.protects and folio_is_protected(seg, folio):
        scan.nr_protected += 1
        return True
    return folio_mapping(folio) == 0


cdef inline uint32_t folio_reclaim(Segment* seg, Scan* scan, Folio* folio) noexcept nogil:
    """Frees one isolated folio if it may leave. Returns its pages, or 0: then the reference is kept."""
    cdef uint32_t nr = 0
    if not folio_trylock(folio):
        return 0
    if not folio_should_stay(seg, scan, folio):
        nr = folio_remove_free(seg, folio)
    if nr == 0:
        folio_unlock(seg, folio)
    return nr


cdef inline uint32_t shrink_inactive(Segment* seg, Scan* scan, uint32_t nr_to_scan, bint background,
                                     uint32_t* nr_scanned) noexcept nogil:
    """Scans one chunk of the inactive tail. Returns the pages freed."""
    cdef Folio* batch[32]
    cdef Folio* kept[32]
    cdef uint32_t i, got, freed_pages = 0, nr_kept = 0
    cdef uint32_t nr = lru_isolate(seg, <int>LRU_INACTIVE, nr_to_scan, batch, nr_scanned)
    for i in range(nr):
        got = folio_reclaim(seg, scan, batch[i])
        freed_pages += got
        if got == 0:
            kept[nr_kept] = batch[i]
            nr_kept += 1
    for i in range(nr_kept):
        if folio_test(kept[i], FOLIO_ACTIVE):
            workingset_age(seg, folio_nr_pages(kept[i]))
    lru_putback(seg, kept, nr_kept)
    count(seg, PGSCAN_KSWAPD if background else PGSCAN_DIRECT, nr_scanned[0])
    count(seg, PGSTEAL_KSWAPD if background else PGSTEAL_DIRECT, freed_pages)
    return freed_pages


cdef inline uint32_t shrink_active(Segment* seg, uint32_t nr_to_scan) noexcept nogil:
    """Demotes one chunk of folios from the active tail, referenced or not; they are marked as having been in the
    working set. Returns the pages looked at."""
    cdef Folio* batch[32]
    cdef uint32_t i, nr, nr_scanned, pages = 0
    nr = lru_isolate(seg, <int>LRU_ACTIVE, nr_to_scan, batch, &nr_scanned)
    for i in range(nr):
        folio_clear(batch[i], FOLIO_ACTIVE | FOLIO_ACCESSED)
        folio_set(batch[i], FOLIO_WORKINGSET)
        pages += folio_nr_pages(batch[i])
    lru_putback(seg, batch, nr)
    count(seg, PGREFILL, nr_scanned)
    count(seg, PGDEACTIVATE, pages)
    return nr_scanned


cdef inline bint inactive_is_low(Segment* seg) noexcept nogil:
    cdef uint64_t inactive = hint_u64(&seg.header.lru[<int>LRU_INACTIVE].nr_pages)
    cdef uint64_t active = hint_u64(&seg.header.lru[<int>LRU_ACTIVE].nr_pages)
    cdef uint64_t gib = (inactive + active) >> 18
    cdef uint64_t ratio = <uint64_t>sqrt(10.0 * <double>gib) if gib else 1
    return inactive * ratio < active


cdef inline bint may_deactivate(Segment* seg) noexcept nogil:
    """The inactive list is too short, or pages that were activated on refault since the last round say so."""
    cdef uint64_t activated = load_relaxed_u64(&seg.header.nr_refault_activated)
    cdef bint changed
    futex_lock(&seg.header.lru_lock)
    changed = activated != seg.header.refault_activated_seen
    seg.header.refault_activated_seen = activated
    futex_unlock(&seg.header.lru_lock)
    return changed or inactive_is_low(seg)


cdef inline uint32_t scan_target(Segment* seg, int which, int priority) noexcept nogil:
    cdef uint64_t pages = hint_u64(&seg.header.lru[which].nr_pages) >> priority
    return <uint32_t>pages if pages < 0x7FFFFFFF else 0x7FFFFFFF


cdef inline void trim_active(Segment* seg, int priority) noexcept nogil:
    """Scans the active list while the inactive one is too short, and at least a chunk of it when refaults ask for it."""
    cdef uint32_t target = scan_target(seg, <int>LRU_ACTIVE, priority)
    cdef uint32_t nr_scanned
    while target > 0:
        nr_scanned = shrink_active(seg, target)
        if nr_scanned == 0 or nr_scanned >= target or not inactive_is_low(seg):
            return
        target -= nr_scanned


cdef inline uint32_t kernel_round(Segment* seg, Scan* scan, uint32_t nr_wanted, bint background) noexcept nogil:
    """One round of rising pressure. Returns the pages freed."""
    cdef int priority = DEF_PRIORITY
    cdef uint32_t freed = 0, target, nr_scanned
    cdef bint deactivate = may_deactivate(seg)
    while priority >= 0 and freed < nr_wanted:
        if deactivate or inactive_is_low(seg):
            trim_active(seg, priority)
        target = scan_target(seg, <int>LRU_INACTIVE, priority)
        while target > 0 and freed < nr_wanted:
            freed += shrink_inactive(seg, scan, target, background, &nr_scanned)
            if nr_scanned == 0:
                break
            target -= target if target < nr_scanned else nr_scanned
        priority -= 1
    return freed
