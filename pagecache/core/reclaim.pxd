"""Reclaim: what leaves when frames are short.

Scans take folios from the tail of the inactive list in chunks of 32.  A folio that was accessed twice moves to the
active list (the move that its readers left to reclaim); one that is dirty or under write-back moves there too and is
sent back to the inactive tail when it is clean; one that is locked or held stays; all others are removed, leaving a
shadow, and freed.  The active list is trimmed, referenced or not, while the inactive one is too short or refaults
show that it is.  Pressure rises from 1/4096 of the lists to all of them.

Reclaim never waits and never writes.  Readers rarely run it themselves: a background thread, which needs no GIL,
starts when fewer than `watermark_low` frames are free and stops at `watermark_high`.
"""
from libc.errno cimport EBUSY
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport (add_acq_rel_u32, cas_acq_rel_u32, hint_u64, load_acquire_u32,
                                    load_relaxed_u32, load_relaxed_u64, store_release_u32)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport DEF_PRIORITY, NIL, SWAP_CLUSTER_MAX
from pagecache.core.folio cimport (FOLIO_ACCESSED, FOLIO_ACTIVE, FOLIO_DIRTY, FOLIO_LOCKED, FOLIO_LRU, FOLIO_READAHEAD,
                                   FOLIO_REFERENCED, FOLIO_UNEVICTABLE, FOLIO_WAITERS, FOLIO_WORKINGSET,
                                   FOLIO_WRITEBACK, folio_alloc_nowait, folio_clear, folio_mapping, folio_nr_pages,
                                   folio_set, folio_test, folio_test_clear, folio_trylock, folio_try_get, folio_unlock)
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.lock cimport WAKE_ALL, spin_lock, spin_unlock
from pagecache.core.lru cimport folio_free_last, folio_put, lru_link, lru_unlink
from pagecache.core.mapping cimport filemap_remove_clean
from pagecache.core.segment cimport (ALLOCSTALL, LRU_ACTIVE, LRU_INACTIVE, PGACTIVATE, PGDEACTIVATE, PGREFILL,
                                     PGSCAN_DIRECT, PGSCAN_KSWAPD, PGSTEAL_DIRECT, PGSTEAL_KSWAPD, Folio, LruHead,
                                     Segment, count)
from pagecache.core.workingset cimport shadow_nodes_trim, workingset_age

cdef enum:
    KSWAPD_ASLEEP = 0
    KSWAPD_AWAKE = 1
    KSWAPD_ENDED = 2
    RECLAIM_ROUNDS = 3              # full rounds of rising pressure before an allocation gives up


cdef inline uint32_t lru_isolate(Segment* seg, int which, uint32_t nr_to_scan, Folio** out,
                                 uint32_t* nr_scanned) noexcept nogil:
    """Takes folios off the tail of a list, with a reference each, until nr_to_scan pages (32 at most) were looked at:
    one large folio is a chunk of its own. Returns the folios taken."""
    cdef uint32_t number, nr = 0
    cdef Folio* folio
    nr_scanned[0] = 0
    if nr_to_scan > SWAP_CLUSTER_MAX:
        nr_to_scan = SWAP_CLUSTER_MAX
    spin_lock(&seg.header.lru_lock)
    number = seg.header.lru[which].last
    while number != NIL and nr < SWAP_CLUSTER_MAX and nr_scanned[0] < nr_to_scan:
        folio = &seg.folios[number]
        number = folio.lru_prev
        nr_scanned[0] += folio_nr_pages(folio)
        if folio_try_get(folio):
            lru_unlink(seg, folio)
            out[nr] = folio
            nr += 1
    spin_unlock(&seg.header.lru_lock)
    return nr


cdef inline void lru_putback(Segment* seg, Folio** folios, uint32_t nr) noexcept nogil:
    """Returns isolated folios to the heads of the lists their flags name, and drops the references."""
    cdef uint32_t i
    if nr == 0:
        return
    spin_lock(&seg.header.lru_lock)
    for i in range(nr):
        lru_link(seg, folios[i], False)
    spin_unlock(&seg.header.lru_lock)
    for i in range(nr):
        folio_put(seg, folios[i])


cdef inline bint folio_should_stay(Segment* seg, Folio* folio) noexcept nogil:
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
    return folio_mapping(folio) == 0


cdef inline uint32_t folio_reclaim(Segment* seg, Folio* folio) noexcept nogil:
    """Frees one isolated folio if it may leave. Returns its pages, or 0: then the reference is kept."""
    cdef uint32_t nr
    if not folio_trylock(folio):
        return 0
    if folio_should_stay(seg, folio) or filemap_remove_clean(seg, folio, 1, True) != 0:
        folio_unlock(seg, folio)
        return 0
    nr = folio_nr_pages(folio)
    folio_clear(folio, FOLIO_LOCKED)
    folio_free_last(seg, folio)
    return nr


cdef inline uint32_t shrink_inactive(Segment* seg, uint32_t nr_to_scan, bint background,
                                     uint32_t* nr_scanned) noexcept nogil:
    """Scans one chunk of the inactive tail. Returns the pages freed."""
    cdef Folio* batch[32]
    cdef Folio* kept[32]
    cdef uint32_t i, got, freed_pages = 0, nr_kept = 0
    cdef uint32_t nr = lru_isolate(seg, <int>LRU_INACTIVE, nr_to_scan, batch, nr_scanned)
    for i in range(nr):
        got = folio_reclaim(seg, batch[i])
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
        folio_clear(batch[i], FOLIO_ACTIVE)
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
    spin_lock(&seg.header.lru_lock)
    changed = activated != seg.header.refault_activated_seen
    seg.header.refault_activated_seen = activated
    spin_unlock(&seg.header.lru_lock)
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


cdef inline uint32_t reclaim_round(Segment* seg, uint32_t nr_wanted, bint background) noexcept nogil:
    """One round of rising pressure. Returns the pages freed."""
    cdef int priority = DEF_PRIORITY
    cdef uint32_t freed = 0, target, nr_scanned
    cdef bint deactivate = may_deactivate(seg)
    while priority >= 0 and freed < nr_wanted:
        if deactivate or inactive_is_low(seg):
            trim_active(seg, priority)
        target = scan_target(seg, <int>LRU_INACTIVE, priority)
        while target > 0 and freed < nr_wanted:
            freed += shrink_inactive(seg, target, background, &nr_scanned)
            if nr_scanned == 0:
                break
            target -= target if target < nr_scanned else nr_scanned
        priority -= 1
    shadow_nodes_trim(seg)
    return freed


cdef inline uint32_t reclaim_pages(Segment* seg, uint32_t nr_wanted) noexcept nogil:
    """Direct reclaim: rounds until something was freed. Returns the pages freed. No lock is held."""
    cdef uint32_t freed = 0
    cdef int i
    count(seg, ALLOCSTALL, 1)
    for i in range(RECLAIM_ROUNDS):
        freed += reclaim_round(seg, nr_wanted, False)
        if freed > 0:
            break
    return freed


# -- allocation ------------------------------------------------------------------------------------------------------

cdef inline void kswapd_wake(Segment* seg) noexcept nogil:
    cdef uint32_t asleep = KSWAPD_ASLEEP
    if load_relaxed_u32(&seg.header.kswapd_word) == asleep:
        if cas_acq_rel_u32(&seg.header.kswapd_word, &asleep, KSWAPD_AWAKE):
            futex_wake(&seg.header.kswapd_word, WAKE_ALL)


cdef inline Folio* folio_alloc(Segment* seg, uint32_t order, bint hard) noexcept nogil:
    """A new folio, reclaiming if it must. Without `hard` (orders that have a smaller one to fall back to, readahead)
    one round is tried at most. NULL when nothing could be freed. No lock is held."""
    cdef uint32_t nr = <uint32_t>1 << order
    cdef Folio* folio = folio_alloc_nowait(seg, order)
    if load_relaxed_u32(&seg.header.nr_free) < seg.header.watermark_low:
        kswapd_wake(seg)
    if folio != NULL:
        return folio
    if not hard:
        reclaim_round(seg, nr if nr > SWAP_CLUSTER_MAX else <uint32_t>SWAP_CLUSTER_MAX, False)
        return folio_alloc_nowait(seg, order)
    while reclaim_pages(seg, nr if nr > SWAP_CLUSTER_MAX else <uint32_t>SWAP_CLUSTER_MAX) > 0:
        folio = folio_alloc_nowait(seg, order)
        if folio != NULL:
            return folio
        if order > 0:
            return NULL
    return folio_alloc_nowait(seg, order)


# -- background ------------------------------------------------------------------------------------------------------

cdef inline void* kswapd_main(void* argument) noexcept nogil:
    """The background reclaimer: sleeps until it is woken, ends when the word says so."""
    cdef Segment* seg = <Segment*>argument
    cdef uint32_t word, awake
    while True:
        word = load_acquire_u32(&seg.header.kswapd_word)
        if word == KSWAPD_ENDED:
            return NULL
        if word == KSWAPD_ASLEEP:
            futex_wait(&seg.header.kswapd_word, KSWAPD_ASLEEP, -1)
            continue
        while (load_relaxed_u32(&seg.header.nr_free) < seg.header.watermark_high
               and load_acquire_u32(&seg.header.kswapd_word) == KSWAPD_AWAKE
               and reclaim_round(seg, SWAP_CLUSTER_MAX, True) > 0):
            pass
        awake = KSWAPD_AWAKE
        cas_acq_rel_u32(&seg.header.kswapd_word, &awake, KSWAPD_ASLEEP)


cdef inline void kswapd_end(Segment* seg) noexcept nogil:
    store_release_u32(&seg.header.kswapd_word, KSWAPD_ENDED)
    futex_wake(&seg.header.kswapd_word, WAKE_ALL)
