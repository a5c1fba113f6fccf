"""The contract of eviction policies, and what all but the kernel's share.

A segment has one policy for life (`Header.policy`).  Policies decide where folios stand on the lists and what leaves;
removing, freeing, locks, shadows and counters are not theirs.

    hook    called                                             locks held             may do
    admit   a folio enters the page cache (admit.pxd)          folio lock, lru_lock   set ACTIVE or AHEAD; link it
    pick    reclaim needs one victim (reclaim.pxd)             lru_lock               move folios between the lists,
                                                                                      unlink the victim, referenced
    evicted the victim is gone from the cache (reclaim.pxd)    lru_lock               leave a ghost
    hit     there is none: readers set REFERENCED, then ACCESSED, and write nothing once both are set

A policy owns in a descriptor: `policy_data` and `ghosts` (lru_lock), the flags ACTIVE and AHEAD (lru_lock; they name
the list, so `lru_transfer` changes them with the place), and it may clear REFERENCED and ACCESSED.  Everything else it
only reads.
It holds no reference to what it looks at: the last one may be gone, and its last holder about to wait for lru_lock. So
it moves folios with `lru_transfer`, and takes off a list only what `folio_try_get` gave it (victim_take).
It must not take a lock, wait, or look at more folios in one `pick` than the budget it is given.
It must not offer a folio that `folio_is_kept`: locked, dirty, under write-back, held by others, gone from the cache, or
protected by its priority or its tenant's share.  Folios with FIRST or LAST are not the policy's: it never sees them.
Sizes are pages: a folio of 2**order pages counts as so many and moves as one.

    policy_data = stamp (29 bits, admissions: when it entered or was last moved as used)
                | FRESH: the use that created the folio is still to come or not distinguished | collected uses (2 bits)
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport load_relaxed_u32
from pagecache.core.config cimport NIL
from pagecache.core.folio cimport (FOLIO_ACCESSED, FOLIO_ACTIVE, FOLIO_AHEAD, FOLIO_DIRTY, FOLIO_LOCKED,
                                   FOLIO_READAHEAD, FOLIO_REFERENCED, FOLIO_UNEVICTABLE, FOLIO_WRITEBACK, folio_clear,
                                   folio_mapping, folio_nr_pages, folio_set, folio_state, folio_try_get)
from pagecache.core.lru cimport lru_transfer, lru_unlink
from pagecache.core.priority cimport folio_is_protected
from pagecache.core.segment cimport LRU_ACTIVE, LRU_AHEAD, LRU_INACTIVE, Folio, Segment

cdef enum:
    STAMP_SHIFT = 3
    STAMP_MASK = (1 << 29) - 1
    POLICY_FRESH = 4
    POLICY_USES_MASK = 3
    USES_MAX = 2

ctypedef struct Scan:               # one round of reclaim
    int budget                      # folios this turn under lru_lock may still look at
    uint64_t nr_pages               # looked at
    uint64_t nr_stuck_small         # of those, met in each list, and had to stay
    uint64_t nr_stuck_main
    uint64_t nr_stuck_ahead
    bint protects                   # passes by what is protected (priority.pxd)
    uint32_t nr_protected           # folios passed by for that
    uint32_t nr_kept_main           # folios met in the main queue that had to stay


cdef inline uint32_t folio_stamp(const Folio* folio) noexcept nogil:
    return folio.policy_data >> STAMP_SHIFT


cdef inline bint stamp_before(uint32_t one, uint32_t other) noexcept nogil:
    """Whether stamp `one` is the older; right while they are less than 2**28 admissions apart."""
    return ((other - one) & STAMP_MASK) - 1 < <uint32_t>(STAMP_MASK >> 1)


cdef inline void policy_stamp(Segment* seg, Folio* folio, uint32_t extra) noexcept nogil:
    """Stamps a folio with the present time."""
    folio.policy_data = ((seg.header.policy_clock & STAMP_MASK) << STAMP_SHIFT) | extra


cdef inline uint32_t state_uses(uint32_t state) noexcept nogil:
    return (1 if state & FOLIO_REFERENCED else 0) + (1 if state & FOLIO_ACCESSED else 0)


cdef inline uint32_t folio_uses(const Folio* folio) noexcept nogil:
    """How often the folio was used since it was last moved, the use that created it not counted: 0, 1, or 2 and more."""
    cdef uint32_t uses = (folio.policy_data & POLICY_USES_MASK) + state_uses(folio_state(folio))
    if folio.policy_data & POLICY_FRESH and uses > 0:
        uses -= 1
    return uses if uses < USES_MAX else <uint32_t>USES_MAX


cdef inline void folio_set_uses(Folio* folio, uint32_t uses) noexcept nogil:
    """Forgets the uses of a folio but for so many."""
    folio_clear(folio, FOLIO_REFERENCED | FOLIO_ACCESSED)
    folio.policy_data = (folio.policy_data & ~<uint32_t>7) | uses


cdef inline bint folio_collect(Folio* folio) noexcept nogil:
    """Moves uses from the flags into policy_data. Returns whether there were any since the last time."""
    cdef uint32_t fresh = 1 if folio.policy_data & POLICY_FRESH else 0
    if state_uses(folio_state(folio)) <= fresh:
        return False
    folio_set_uses(folio, folio_uses(folio))
    return True


cdef inline bint folio_must_stay(Folio* folio) noexcept nogil:
    """Whether a folio on a list cannot leave now; one that is dirty comes back to the tail when it is clean."""
    cdef uint32_t state = folio_state(folio)
    if state & (FOLIO_DIRTY | FOLIO_WRITEBACK):
        if not state & FOLIO_LOCKED:
            folio_set(folio, FOLIO_READAHEAD)
        return True
    return (state & (FOLIO_LOCKED | FOLIO_UNEVICTABLE) or folio_mapping(folio) == 0
            or load_relaxed_u32(&folio.refcount) != folio_nr_pages(folio))


cdef inline bint folio_is_kept(Segment* seg, Scan* scan, Folio* folio) noexcept nogil:
    """Whether a folio cannot leave, or shall not in this round."""
    if folio_must_stay(folio):
        return True
    if not scan.protects or not folio_is_protected(seg, folio):
        return False
    scan.nr_protected += 1
    return True


cdef inline Folio* list_tail(Segment* seg, int which) noexcept nogil:
    cdef uint32_t number = seg.header.lru[which].last
    return NULL if number == NIL else &seg.folios[number]


cdef inline void scan_look(Scan* scan, Folio* folio) noexcept nogil:
    """Pays for one folio that is looked at."""
    scan.budget -= 1
    scan.nr_pages += folio_nr_pages(folio)


cdef inline void folio_rotate(Segment* seg, Folio* folio) noexcept nogil:
    """Moves a folio to the head of its list."""
    lru_transfer(seg, folio, folio_state(folio) & <uint32_t>(FOLIO_ACTIVE | FOLIO_AHEAD), False)


cdef inline Folio* victim_take(Segment* seg, Folio* folio) noexcept nogil:
    """Takes a victim off its list, with a reference. NULL if its last one went meanwhile; it is moved out of the way."""
    if not folio_try_get(folio):
        folio_rotate(seg, folio)
        return NULL
    lru_unlink(seg, folio)
    return folio


cdef inline uint64_t listed_pages(Segment* seg) noexcept nogil:
    """Pages that may be evicted one day."""
    return (seg.header.lru[<int>LRU_INACTIVE].nr_pages + seg.header.lru[<int>LRU_ACTIVE].nr_pages
            + seg.header.lru[<int>LRU_AHEAD].nr_pages)
