"""Two queues with a memory: S3-FIFO, LIRS, and what lies between, by three numbers (`QueueRules`).

New folios enter the *small* queue (the inactive list) and leave at its tail unless they were used again, which brings
them into the *main* queue (the active list).  A folio that comes back while its ghost is remembered enters the main
queue at once.  The main queue is a clock: what was used since it last passed the tail goes round once more.

    by_recency = 0   a folio that was used again enters the main queue; one that falls out of it leaves the cache (S3-FIFO).
    by_recency = 1   the main queue has a fixed share.  The first folios fill it; after that a folio enters only
                     if it was used after the tail's last use, whose place it takes: of two folios the one with the
                     shorter time between two uses stays, as in LIRS.  What falls out goes to the small queue.
                     In a loop longer than the cache the main queue keeps what it has.

What is brought in before it is used, by readahead or by a read of many pages, waits on a list of its own until a read
uses it; then it enters as if it was new.  What waited for a
cacheful of admissions, or what is more than nine sixteenths of the cache, leaves before anything else.

Time is counted in admissions, since hits cannot be seen: it orders uses as finely as decisions need.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.adaptive cimport adaptive_admitted
from pagecache.core.atomic cimport set_hint_u32
from pagecache.core.config cimport NIL
from pagecache.core.folio cimport (FOLIO_ACTIVE, FOLIO_AHEAD, FOLIO_REFERENCED, FOLIO_WORKINGSET,
                                   folio_nr_pages, folio_set, folio_test)
from pagecache.core.ghost cimport ghost_take, ghost_word
from pagecache.core.lru cimport lru_link, lru_transfer
from pagecache.core.policy cimport (POLICY_FRESH, STAMP_MASK, Scan, folio_is_kept, folio_rotate, folio_set_uses,
                                    folio_stamp, folio_uses, list_tail, policy_stamp, scan_look, stamp_before, victim_take)
from pagecache.core.segment cimport (LRU_ACTIVE, LRU_AHEAD, LRU_INACTIVE, PGACTIVATE, PGDEACTIVATE, POLICY_ADAPTIVE,
                                     WORKINGSET_ACTIVATE, Folio, Segment, count, segment_budget)

cdef enum:
    TAIL_STEPS = 8                  # used folios at the main tail that one comparison sends round
    TRIM_STEPS = 32
    SWEEP_STEPS = 64
    MAIN_KEPT_MAX = 64              # kept folios at the main tail before the small queue is asked instead


cdef inline uint64_t small_pages(Segment* seg) noexcept nogil:
    cdef uint64_t pages = (<uint64_t>seg.header.policy_pages * seg.header.rules.small_permille + 500) // 1000
    return pages if pages > 0 else 1


cdef inline bint main_has_room(Segment* seg) noexcept nogil:
    return seg.header.lru[<int>LRU_ACTIVE].nr_pages + small_pages(seg) < seg.header.policy_pages


cdef inline bint main_is_over(Segment* seg) noexcept nogil:
    """Whether the main queue has more than its share of a full cache; what a batch has freed already does not count."""
    return seg.header.lru[<int>LRU_ACTIVE].nr_pages + small_pages(seg) > seg.header.policy_pages


cdef inline bint main_rotate_used(Segment* seg) noexcept nogil:
    """Sends the main tail round if it was used. Returns whether it was."""
    cdef Folio* tail = list_tail(seg, <int>LRU_ACTIVE)
    cdef uint32_t uses = folio_uses(tail)
    if uses == 0:
        return False
    policy_stamp(seg, tail, 0)
    folio_set_uses(tail, uses - 1)
    folio_rotate(seg, tail)
    return True


cdef inline bint main_admits(Segment* seg, uint32_t stamp) noexcept nogil:
    """Whether a folio that was used now, and before that at `stamp`, enters the main queue."""
    cdef Folio* tail
    cdef int step
    if not seg.header.rules.by_recency or main_has_room(seg):
        return True
    for step in range(TAIL_STEPS):
        if list_tail(seg, <int>LRU_ACTIVE) == NULL or not main_rotate_used(seg):
            break
    tail = list_tail(seg, <int>LRU_ACTIVE)
    return tail == NULL or (folio_uses(tail) == 0 and stamp_before(folio_stamp(tail), stamp))


cdef inline void main_drop_tail(Segment* seg) noexcept nogil:
    """Moves the main tail to the small queue."""
    cdef Folio* tail = list_tail(seg, <int>LRU_ACTIVE)
    folio_set_uses(tail, 0)
    lru_transfer(seg, tail, 0, False)
    count(seg, PGDEACTIVATE, folio_nr_pages(tail))


cdef inline void main_trim(Segment* seg) noexcept nogil:
    """Brings the main queue back to its share, if it has one."""
    cdef int step
    if not seg.header.rules.by_recency:
        return
    for step in range(TRIM_STEPS):
        if list_tail(seg, <int>LRU_ACTIVE) == NULL or not main_is_over(seg):
            return
        if not main_rotate_used(seg):
            main_drop_tail(seg)


cdef inline uint32_t folio_age(Segment* seg, const Folio* folio) noexcept nogil:
    """Pages admitted since the folio was."""
    return (seg.header.policy_clock - folio_stamp(folio)) & STAMP_MASK


cdef inline bint folio_is_waiting(Segment* seg, const Folio* folio) noexcept nogil:
    """Whether a folio was brought in and has not been used yet. A large one gets a quarter of a capacity of admissions
    for its other pages to be used."""
    if not folio.policy_data & POLICY_FRESH:
        return False
    if not folio_test(folio, FOLIO_REFERENCED):
        return True
    return folio_nr_pages(folio) > 1 and folio_age(seg, folio) < seg.header.policy_pages // 4


cdef inline void queues_admit(Segment* seg, Folio* folio, uint32_t key) noexcept nogil:
    """Links a folio that enters the page cache. lru_lock is held."""
    cdef uint32_t stamp = 0, clock = seg.header.policy_clock + folio_nr_pages(folio)
    cdef uint64_t* word = ghost_word(seg, key)
    cdef bint known
    set_hint_u32(&seg.header.policy_clock, clock)
    if seg.header.policy == POLICY_ADAPTIVE:
        adaptive_admitted(seg, folio, key)
    known = word != NULL and ghost_take(word, key, clock, segment_budget(seg), &stamp)
    if known:
        known = <uint64_t>(clock - stamp) * 100 <= <uint64_t>seg.header.policy_pages * seg.header.rules.memory_percent
        if known:
            folio_set(folio, FOLIO_WORKINGSET)
    policy_stamp(seg, folio, POLICY_FRESH)
    if seg.header.rules.by_recency and main_has_room(seg) and not folio_is_waiting(seg, folio):
        folio_set(folio, FOLIO_ACTIVE)
        lru_link(seg, folio, False)
    elif known and main_admits(seg, stamp):
        count(seg, WORKINGSET_ACTIVATE, folio_nr_pages(folio))
        folio_set(folio, FOLIO_ACTIVE)
        lru_link(seg, folio, False)
        main_trim(seg)
    else:
        if folio_is_waiting(seg, folio):
            folio_set(folio, FOLIO_AHEAD)
        lru_link(seg, folio, False)


cdef inline bint ahead_is_too_much(Segment* seg) noexcept nogil:
    return seg.header.lru[<int>LRU_AHEAD].nr_pages > (<uint64_t>seg.header.policy_pages * 9) // 16


cdef inline bint ahead_is_due(Segment* seg, Scan* scan, Folio* tail) noexcept nogil:
    """Whether what waits at the tail has waited too long, or all of it is too much, even without what was used already."""
    if folio_age(seg, tail) > seg.header.policy_pages:
        return True
    if ahead_is_too_much(seg):
        ahead_sweep(seg, scan, tail)
    return ahead_is_too_much(seg)


cdef inline void ahead_sweep(Segment* seg, Scan* scan, Folio* folio) noexcept nogil:
    """Lets what was used enter the queues though something before it still waits."""
    cdef uint32_t number = folio.lru_prev
    cdef int step
    for step in range(SWEEP_STEPS):
        if number == NIL or scan.budget <= 0:
            return
        folio = &seg.folios[number]
        number = folio.lru_prev
        scan_look(scan, folio)
        if not folio_is_waiting(seg, folio):
            ahead_enter(seg, folio)


cdef inline void ahead_enter(Segment* seg, Folio* folio) noexcept nogil:
    """Readahead that was used enters the queues as if it was new."""
    cdef bint active = seg.header.rules.by_recency and main_has_room(seg)
    lru_transfer(seg, folio, <uint32_t>FOLIO_ACTIVE if active else 0, False)


cdef inline Folio* ahead_pick(Segment* seg, Scan* scan, bint is_last) noexcept nogil:
    """Lets readahead that was asked for enter the queues. Returns a victim if some is due (or there is nothing else:
    is_last), else NULL."""
    cdef Folio* folio = list_tail(seg, <int>LRU_AHEAD)
    while folio != NULL and scan.budget > 0 and scan.nr_stuck_ahead < seg.header.lru[<int>LRU_AHEAD].nr_pages:
        if folio_is_waiting(seg, folio) or is_last:
            if not is_last and not ahead_is_due(seg, scan, folio):
                return NULL
            scan_look(scan, folio)
            if not folio_is_kept(seg, scan, folio):
                return victim_take(seg, folio)
            scan.nr_stuck_ahead += folio_nr_pages(folio)
            folio_rotate(seg, folio)
        else:
            scan_look(scan, folio)
            ahead_enter(seg, folio)
        folio = list_tail(seg, <int>LRU_AHEAD)
    return NULL


cdef inline Folio* small_pick(Segment* seg, Scan* scan, Folio* tail) noexcept nogil:
    """Takes the tail of the small queue as a victim, or moves it on and returns NULL."""
    cdef bint enters
    if folio_uses(tail) == 0:
        if not folio_is_kept(seg, scan, tail):
            return victim_take(seg, tail)
        scan.nr_stuck_small += folio_nr_pages(tail)
        folio_rotate(seg, tail)
        return NULL
    enters = main_admits(seg, folio_stamp(tail))
    policy_stamp(seg, tail, 0)
    folio_set_uses(tail, 0)
    if not enters:
        folio_rotate(seg, tail)
        return NULL
    count(seg, PGACTIVATE, folio_nr_pages(tail))
    lru_transfer(seg, tail, FOLIO_ACTIVE, False)
    main_trim(seg)
    return NULL


cdef inline Folio* main_pick(Segment* seg, Scan* scan, Folio* tail, bint is_last) noexcept nogil:
    """The same for the main queue. is_last: the small queue has nothing that may leave."""
    if main_rotate_used(seg):
        return NULL
    if folio_is_kept(seg, scan, tail):
        scan.nr_kept_main += 1
        scan.nr_stuck_main += folio_nr_pages(tail)
        folio_rotate(seg, tail)
    elif seg.header.rules.by_recency and not is_last:
        main_drop_tail(seg)
    else:
        return victim_take(seg, tail)
    return NULL


cdef inline Folio* queues_pick(Segment* seg, Scan* scan) noexcept nogil:
    """A victim, off its list and referenced, or NULL when the budget is spent or nothing may leave. lru_lock is held."""
    cdef Folio* victim = ahead_pick(seg, scan, False)
    cdef bint in_small, in_main
    while victim == NULL and scan.budget > 0:
        in_small = scan.nr_stuck_small < seg.header.lru[<int>LRU_INACTIVE].nr_pages
        in_main = scan.nr_stuck_main < seg.header.lru[<int>LRU_ACTIVE].nr_pages
        if in_small and scan.nr_kept_main >= MAIN_KEPT_MAX:
            in_main = False
        if in_small and not (in_main and main_is_over(seg)):
            scan_look(scan, list_tail(seg, <int>LRU_INACTIVE))
            victim = small_pick(seg, scan, list_tail(seg, <int>LRU_INACTIVE))
        elif in_main:
            scan_look(scan, list_tail(seg, <int>LRU_ACTIVE))
            victim = main_pick(seg, scan, list_tail(seg, <int>LRU_ACTIVE), not in_small and not main_is_over(seg))
        else:
            return ahead_pick(seg, scan, True)
    return victim
