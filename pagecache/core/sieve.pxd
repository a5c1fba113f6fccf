"""SIEVE: one queue and a hand.

New folios enter at the head and never move.  The hand walks from the tail to the head; it passes by what was used since
it last came by, and evicts the first that was not.
"""
from pagecache.core.atomic cimport set_hint_u32
from pagecache.core.config cimport NIL
from pagecache.core.folio cimport folio_nr_pages
from pagecache.core.lru cimport lru_link
from pagecache.core.policy cimport (POLICY_FRESH, Scan, folio_is_kept, folio_set_uses, folio_uses, list_tail,
                                    policy_stamp, scan_look, victim_take)
from pagecache.core.segment cimport LRU_INACTIVE, Folio, Segment


cdef inline void sieve_admit(Segment* seg, Folio* folio) noexcept nogil:
    """Links a folio that enters the page cache. lru_lock is held."""
    set_hint_u32(&seg.header.policy_clock, seg.header.policy_clock + folio_nr_pages(folio))
    policy_stamp(seg, folio, POLICY_FRESH)
    lru_link(seg, folio, False)


cdef inline Folio* sieve_pick(Segment* seg, Scan* scan) noexcept nogil:
    """A victim, off its list and referenced, or NULL when the budget is spent or the list is empty. lru_lock is held."""
    cdef Folio* folio
    while scan.budget > 0:
        if seg.header.sieve_hand == NIL:
            folio = list_tail(seg, <int>LRU_INACTIVE)
        else:
            folio = &seg.folios[seg.header.sieve_hand]
        if folio == NULL:
            return NULL
        scan_look(scan, folio)
        seg.header.sieve_hand = folio.lru_prev
        if folio_uses(folio) > 0:
            folio_set_uses(folio, 0)
        elif not folio_is_kept(seg, scan, folio):
            return victim_take(seg, folio)
    return NULL
