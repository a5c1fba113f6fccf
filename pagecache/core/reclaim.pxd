"""Reclaim: what leaves when frames are short.

What leaves before anything else leaves first (priority.pxd); then the segment's policy chooses (policy.pxd), passing by
what is protected; then, if the caller may, it does so again without that, and what leaves last goes.  Here they are
evicted, in batches, and memory is given to the callers.  Reclaim never waits and never writes.  Readers rarely run it
themselves: a background thread, which needs no GIL, starts when fewer than `watermark_low` frames are free and stops at
`watermark_high`.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.adaptive cimport adaptive_fit
from pagecache.core.atomic cimport (cas_acq_rel_u32, hint_u32, hint_u64, load_acquire_u32, load_relaxed_u32,
                                    store_release_u32)
from pagecache.core.compact cimport folio_alloc_block
from pagecache.core.config cimport SWAP_CLUSTER_MAX
from pagecache.core.evict cimport folio_evict, lru_putback
from pagecache.core.folio cimport (FOLIO_UNUSED, folio_alloc_nowait, folio_index, folio_mapping, folio_nr_pages,
                                   folio_test)
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.ghost cimport folio_hash, ghost_add, ghost_word
from pagecache.core.kernel_lru cimport kernel_round
from pagecache.core.lock cimport WAKE_ALL, futex_lock, futex_unlock
from pagecache.core.node_memory cimport nodes_trim
from pagecache.core.policy cimport (Scan, folio_must_stay, folio_rotate, folio_stamp, list_tail, listed_pages, scan_look,
                                    victim_take)
from pagecache.core.priority cimport reclaim_batch
from pagecache.core.queues cimport queues_pick
from pagecache.core.segment cimport (ALLOCSTALL, LRU_FIRST, LRU_LAST, PGSCAN_DIRECT, PGSCAN_KSWAPD,
                                     PGSTEAL_DIRECT, PGSTEAL_KSWAPD,
                                     POLICY_ADAPTIVE, POLICY_KERNEL, POLICY_SIEVE, Folio, Segment, count,
                                     segment_budget)
from pagecache.core.sieve cimport sieve_pick
from pagecache.core.workingset cimport shadow_nodes_trim

cdef enum:
    KSWAPD_ASLEEP = 0
    KSWAPD_AWAKE = 1
    KSWAPD_ENDED = 2
    RECLAIM_ROUNDS = 3              # full rounds of rising pressure before an allocation gives up
    TURN_FOLIOS = 128               # looked at in one turn under lru_lock
    AHEAD_SIXTEENTHS = 9            # of the frames: more readahead than that leaves, of what leaves first, used or not

cdef enum:                          # of a round
    STAGE_FIRST = 0
    STAGE_POLICY = 1
    STAGE_FIRST_UNUSED = 2
    STAGE_LAST = 3

ctypedef struct Victims:
    uint32_t nr
    Folio* folios[32]
    uint32_t[32] keys
    uint32_t[32] stamps


# -- picking and evicting --------------------------------------------------------------------------------------------

cdef inline uint64_t policy_begin(Segment* seg) noexcept nogil:
    """Notes how large the cache is, now that it is full. Returns how many folios a round may look at."""
    cdef uint64_t nr_pages
    futex_lock(&seg.header.lru_lock)
    nr_pages = listed_pages(seg)
    seg.header.policy_pages = <uint32_t>nr_pages
    if seg.header.policy == POLICY_ADAPTIVE:
        adaptive_fit(seg)
    nr_pages = 4 * <uint64_t>seg.header.nr_listed + 64
    futex_unlock(&seg.header.lru_lock)
    return nr_pages


cdef inline Folio* list_pick(Segment* seg, Scan* scan, int which, bint unused_too) noexcept nogil:
    """A victim from the tail of FIRST or LAST, or NULL. What has not been used yet stays if it may. lru_lock is held."""
    cdef Folio* folio = list_tail(seg, which)
    while folio != NULL and scan.budget > 0 and scan.nr_stuck_small < seg.header.lru[which].nr_pages:
        scan_look(scan, folio)
        if not folio_must_stay(folio) and (unused_too or not folio_test(folio, FOLIO_UNUSED)):
            return victim_take(seg, folio)
        scan.nr_stuck_small += folio_nr_pages(folio)
        folio_rotate(seg, folio)
        folio = list_tail(seg, which)
    return NULL


cdef inline Folio* stage_pick(Segment* seg, Scan* scan, int stage) noexcept nogil:
    if stage == STAGE_POLICY:
        return sieve_pick(seg, scan) if seg.header.policy == POLICY_SIEVE else queues_pick(seg, scan)
    if stage == STAGE_LAST:
        return list_pick(seg, scan, <int>LRU_LAST, True)
    return list_pick(seg, scan, <int>LRU_FIRST, stage == STAGE_FIRST_UNUSED or first_is_too_much(seg))


cdef inline bint first_is_too_much(Segment* seg) noexcept nogil:
    return seg.header.lru[<int>LRU_FIRST].nr_pages > (<uint64_t>segment_budget(seg) * AHEAD_SIXTEENTHS) // 16


cdef inline uint32_t pick_victims(Segment* seg, uint32_t nr_wanted, Scan* scan, int stage, Victims* out) noexcept nogil:
    """One turn under lru_lock: victims of nr_wanted pages, or as far as the budget goes. Returns their pages."""
    cdef uint32_t pages = 0
    cdef Folio* folio
    out.nr = 0
    futex_lock(&seg.header.lru_lock)
    while out.nr < SWAP_CLUSTER_MAX and pages < nr_wanted:
        folio = stage_pick(seg, scan, stage)
        if folio == NULL:
            break
        out.folios[out.nr] = folio
        out.keys[out.nr] = folio_hash(folio_mapping(folio), folio_index(folio))
        out.stamps[out.nr] = folio_stamp(folio)
        out.nr += 1
        pages += folio_nr_pages(folio)
    futex_unlock(&seg.header.lru_lock)
    return pages


cdef inline uint32_t evict_victims(Segment* seg, Victims* victims, bint leaves_ghosts) noexcept nogil:
    """Evicts what may leave, and puts the others back. Returns the pages freed."""
    cdef Folio* kept[32]
    cdef uint32_t i, pages, freed = 0, nr_gone = 0, nr_kept = 0
    cdef uint64_t* word
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
    if nr_gone > 0 and leaves_ghosts:
        futex_lock(&seg.header.lru_lock)
        for i in range(nr_gone):
            word = ghost_word(seg, victims.keys[i])
            if word != NULL:
                ghost_add(word, victims.keys[i], victims.stamps[i], segment_budget(seg))
        futex_unlock(&seg.header.lru_lock)
    lru_putback(seg, kept, nr_kept)
    return freed


cdef inline uint32_t stage_round(Segment* seg, Scan* scan, uint32_t nr_wanted, int stage, uint64_t nr_left) noexcept nogil:
    """Evicts what a stage picks, until nr_wanted pages are free or nr_left folios were looked at. Returns the pages
    freed."""
    cdef Victims victims
    cdef uint32_t freed = 0
    cdef bint leaves_ghosts = stage == STAGE_POLICY and seg.header.policy != POLICY_SIEVE
    scan.nr_stuck_small = 0
    scan.nr_stuck_main = 0
    scan.nr_stuck_ahead = 0
    scan.nr_kept_main = 0
    while freed < nr_wanted and nr_left > 0:
        scan.budget = TURN_FOLIOS if nr_left > TURN_FOLIOS else <int>nr_left
        nr_left -= scan.budget
        pick_victims(seg, nr_wanted - freed, scan, stage, &victims)
        nr_left += scan.budget if scan.budget > 0 else 0
        if victims.nr == 0 and scan.budget > 0:
            break
        freed += evict_victims(seg, &victims, leaves_ghosts)
    return freed


cdef inline uint32_t policy_round(Segment* seg, Scan* scan, uint32_t nr_wanted, bint protects,
                                  bint background) noexcept nogil:
    """The policy's part of a round. Returns the pages freed."""
    scan.protects = protects
    if seg.header.policy == POLICY_KERNEL:
        return kernel_round(seg, scan, nr_wanted, background)
    return stage_round(seg, scan, nr_wanted, STAGE_POLICY, policy_begin(seg))


# -- rounds ----------------------------------------------------------------------------------------------------------

cdef inline uint32_t first_round(Segment* seg, Scan* scan, uint32_t nr_wanted, int stage) noexcept nogil:
    """Evicts from the lists of what leaves first, or last. Returns the pages freed."""
    cdef int which = <int>LRU_LAST if stage == STAGE_LAST else <int>LRU_FIRST
    if hint_u64(&seg.header.lru[which].nr_pages) == 0:
        return 0
    return stage_round(seg, scan, nr_wanted, stage, 2 * <uint64_t>segment_budget(seg))


cdef inline uint32_t reclaim_round(Segment* seg, uint32_t nr_wanted, bint background, bint hard) noexcept nogil:
    """One round. hard: what is protected or kept leaves too if nothing else does. Returns the pages freed."""
    cdef Scan scan
    cdef uint32_t freed
    scan.nr_pages = 0
    scan.nr_protected = 0
    freed = first_round(seg, &scan, nr_wanted, STAGE_FIRST)
    if freed < nr_wanted:
        freed += policy_round(seg, &scan, nr_wanted - freed, True, background)
    if freed == 0:
        freed = first_round(seg, &scan, nr_wanted, STAGE_FIRST_UNUSED)
    if freed == 0 and hard and scan.nr_protected > 0:
        freed = policy_round(seg, &scan, nr_wanted, False, background)
    if freed == 0 and hard:
        freed = first_round(seg, &scan, nr_wanted, STAGE_LAST)
    if seg.header.policy != POLICY_KERNEL:
        count(seg, PGSCAN_KSWAPD if background else PGSCAN_DIRECT, <int64_t>scan.nr_pages)
        count(seg, PGSTEAL_KSWAPD if background else PGSTEAL_DIRECT, freed)
    shadow_nodes_trim(seg)
    nodes_trim(seg)
    return freed


cdef inline uint32_t reclaim_pages(Segment* seg, uint32_t nr_wanted) noexcept nogil:
    """Direct reclaim: rounds until something was freed. Returns the pages freed. No lock is held."""
    cdef uint32_t freed = 0
    cdef int i
    count(seg, ALLOCSTALL, 1)
    for i in range(RECLAIM_ROUNDS):
        freed += reclaim_round(seg, nr_wanted, False, True)
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
    if load_relaxed_u32(&seg.header.nr_free) < hint_u32(&seg.header.watermark_low):
        kswapd_wake(seg)
    if folio != NULL:
        return folio
    if not hard:
        reclaim_round(seg, reclaim_batch(seg, nr), False, False)
        return folio_alloc_nowait(seg, order)
    while reclaim_pages(seg, reclaim_batch(seg, nr)) > 0:
        folio = folio_alloc_nowait(seg, order)
        if folio != NULL:
            return folio
        if order > 0:
            break
    return folio_alloc_block(seg, order) if order > 0 else folio_alloc_nowait(seg, order)


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
        while (load_relaxed_u32(&seg.header.nr_free) < hint_u32(&seg.header.watermark_high)
               and load_acquire_u32(&seg.header.kswapd_word) == KSWAPD_AWAKE
               and reclaim_round(seg, SWAP_CLUSTER_MAX, True, False) > 0):
            pass
        awake = KSWAPD_AWAKE
        cas_acq_rel_u32(&seg.header.kswapd_word, &awake, KSWAPD_ASLEEP)


cdef inline void kswapd_end(Segment* seg) noexcept nogil:
    store_release_u32(&seg.header.kswapd_word, KSWAPD_ENDED)
    futex_wake(&seg.header.kswapd_word, WAKE_ALL)
