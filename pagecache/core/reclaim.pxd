"""Reclaim: what leaves when frames are short.

The segment's policy says which folios (policy.pxd); here they are evicted, in batches, and memory is given to those who
ask.  Reclaim never waits and never writes.  Readers rarely run it themselves: a background thread, which needs no GIL,
starts when fewer than `watermark_low` frames are free and stops at `watermark_high`.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.adaptive cimport adaptive_fit
from pagecache.core.atomic cimport cas_acq_rel_u32, load_acquire_u32, load_relaxed_u32, store_release_u32
from pagecache.core.config cimport SWAP_CLUSTER_MAX
from pagecache.core.evict cimport folio_evict, lru_putback
from pagecache.core.folio cimport folio_alloc_nowait, folio_index, folio_mapping, folio_nr_pages
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.ghost cimport folio_hash, ghost_add, ghost_slot
from pagecache.core.kernel_lru cimport kernel_round
from pagecache.core.lock cimport WAKE_ALL, spin_lock, spin_unlock
from pagecache.core.policy cimport Scan, folio_stamp, listed_pages
from pagecache.core.queues cimport queues_pick
from pagecache.core.segment cimport (ALLOCSTALL, PGSCAN_DIRECT, PGSCAN_KSWAPD, PGSTEAL_DIRECT, PGSTEAL_KSWAPD,
                                     POLICY_ADAPTIVE, POLICY_KERNEL, POLICY_SIEVE, Folio, Segment, count)
from pagecache.core.sieve cimport sieve_pick
from pagecache.core.workingset cimport shadow_nodes_trim

cdef enum:
    KSWAPD_ASLEEP = 0
    KSWAPD_AWAKE = 1
    KSWAPD_ENDED = 2
    RECLAIM_ROUNDS = 3              # full rounds of rising pressure before an allocation gives up
    TURN_FOLIOS = 128               # looked at in one turn under lru_lock
    BATCH_PART = 128                # of the frames: what is reclaimed at once, 32 pages at most

ctypedef struct Victims:
    uint32_t nr
    Folio* folios[32]
    uint32_t[32] keys
    uint32_t[32] stamps


# -- policies with `pick` --------------------------------------------------------------------------------------------

cdef inline uint64_t policy_begin(Segment* seg) noexcept nogil:
    """Notes how large the cache is, now that it is full. Returns how many folios a round may look at."""
    cdef uint64_t nr_pages
    spin_lock(&seg.header.lru_lock)
    nr_pages = listed_pages(seg)
    seg.header.policy_pages = <uint32_t>nr_pages
    if seg.header.policy == POLICY_ADAPTIVE:
        adaptive_fit(seg)
    nr_pages = 4 * <uint64_t>seg.header.nr_listed + 64
    spin_unlock(&seg.header.lru_lock)
    return nr_pages


cdef inline uint32_t pick_victims(Segment* seg, uint32_t nr_wanted, Scan* scan, Victims* out) noexcept nogil:
    """One turn under lru_lock: victims of nr_wanted pages, or as far as the budget goes. Returns their pages."""
    cdef uint32_t pages = 0
    cdef Folio* folio
    out.nr = 0
    spin_lock(&seg.header.lru_lock)
    while out.nr < SWAP_CLUSTER_MAX and pages < nr_wanted:
        folio = sieve_pick(seg, scan) if seg.header.policy == POLICY_SIEVE else queues_pick(seg, scan)
        if folio == NULL:
            break
        out.folios[out.nr] = folio
        out.keys[out.nr] = folio_hash(folio_mapping(folio), folio_index(folio))
        out.stamps[out.nr] = folio_stamp(folio)
        out.nr += 1
        pages += folio_nr_pages(folio)
    spin_unlock(&seg.header.lru_lock)
    return pages


cdef inline uint32_t evict_victims(Segment* seg, Victims* victims) noexcept nogil:
    """Evicts what may leave, leaving ghosts, and puts the others back. Returns the pages freed."""
    cdef Folio* kept[32]
    cdef uint32_t i, pages, freed = 0, nr_gone = 0, nr_kept = 0
    for i in range(victims.nr):
        pages = folio_evict(seg, victims.folios[i])
        freed += pages
        if pages == 0:
            kept[nr_kept] = victims.folios[i]
            nr_kept += 1
        else:
            victims.keys[nr_gone] = victims.keys[i]
            victims.stamps[nr_gone] = victims.stamps[i]
            nr_gone += 1
    if nr_gone > 0 and seg.header.policy != POLICY_SIEVE:
        spin_lock(&seg.header.lru_lock)
        for i in range(nr_gone):
            ghost_add(&seg.folios[ghost_slot(victims.keys[i], seg.nr_frames)].ghosts, victims.keys[i],
                      victims.stamps[i], seg.nr_frames)
        spin_unlock(&seg.header.lru_lock)
    lru_putback(seg, kept, nr_kept)
    return freed


cdef inline uint32_t policy_round(Segment* seg, uint32_t nr_wanted, bint background) noexcept nogil:
    """Evicts what the policy picks, until nr_wanted pages are free or all has been looked at four times. Returns the
    pages freed."""
    cdef Victims victims
    cdef Scan scan
    cdef uint64_t nr_left = policy_begin(seg)
    cdef uint32_t freed = 0
    scan.nr_pages = 0
    scan.nr_stuck_small = 0
    scan.nr_stuck_main = 0
    scan.nr_stuck_ahead = 0
    while freed < nr_wanted and nr_left > 0:
        scan.budget = TURN_FOLIOS if nr_left > TURN_FOLIOS else <int>nr_left
        nr_left -= scan.budget
        pick_victims(seg, nr_wanted - freed, &scan, &victims)
        nr_left += scan.budget if scan.budget > 0 else 0
        if victims.nr == 0 and scan.budget > 0:
            break
        freed += evict_victims(seg, &victims)
    count(seg, PGSCAN_KSWAPD if background else PGSCAN_DIRECT, <int64_t>scan.nr_pages)
    count(seg, PGSTEAL_KSWAPD if background else PGSTEAL_DIRECT, freed)
    return freed


# -- rounds ----------------------------------------------------------------------------------------------------------

cdef inline uint32_t reclaim_round(Segment* seg, uint32_t nr_wanted, bint background) noexcept nogil:
    """One round. Returns the pages freed."""
    cdef uint32_t freed
    if seg.header.policy == POLICY_KERNEL:
        freed = kernel_round(seg, nr_wanted, background)
    else:
        freed = policy_round(seg, nr_wanted, background)
    shadow_nodes_trim(seg)
    return freed


cdef inline uint32_t reclaim_batch(Segment* seg, uint32_t nr) noexcept nogil:
    """Pages to reclaim for who needs nr: more, so that not everybody has to; of a small cache only a small part."""
    cdef uint32_t batch = SWAP_CLUSTER_MAX
    if seg.header.policy != POLICY_KERNEL and seg.nr_frames // BATCH_PART < SWAP_CLUSTER_MAX:
        batch = seg.nr_frames // BATCH_PART
    return nr if nr > batch else batch


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
        reclaim_round(seg, reclaim_batch(seg, nr), False)
        return folio_alloc_nowait(seg, order)
    while reclaim_pages(seg, reclaim_batch(seg, nr)) > 0:
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
