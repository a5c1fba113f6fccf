"""The lists of the eviction policy, and the last reference of a folio.

Active and inactive list, one for readahead that was not asked for, one for what must not be evicted, and those of what
leaves first and last (priority.pxd), linked through the descriptors by number, guarded by lru_lock.  New folios enter at
the heads; scans take from the tails.

The flag LRU says "on a list".  The thread that drops the last reference looks at it without the lock, since none can put
the folio on a list then; so what is on a list must say so at every moment:

    lru_link, lru_unlink    set and clear LRU: only by a thread that holds a reference, or froze or dropped the last one
    lru_transfer            moves a folio from place to place with LRU set all the time: lru_lock is enough, so a policy
                            may move a folio that is being freed, and its freer then takes it off where it stands
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport set_hint_u64, sub_acq_rel_u32
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport NIL
from pagecache.core.folio cimport (FOLIO_ACTIVE, FOLIO_AHEAD, FOLIO_EVICT_FIRST, FOLIO_EVICT_LAST, FOLIO_LRU,
                                   FOLIO_UNEVICTABLE, folio_clear, folio_nr_pages, folio_release_frames, folio_set,
                                   folio_test)
from pagecache.core.buddy cimport memory_event
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.segment cimport (LRU_ACTIVE, LRU_AHEAD, LRU_FIRST, LRU_INACTIVE, LRU_LAST, LRU_UNEVICTABLE, Folio,
                                     LruHead, Segment,
                                     folio_number)


cdef inline int folio_lru_list(const Folio* folio) noexcept nogil:
    if folio_test(folio, FOLIO_UNEVICTABLE):
        return <int>LRU_UNEVICTABLE
    if folio_test(folio, FOLIO_EVICT_FIRST | FOLIO_EVICT_LAST):
        return <int>LRU_FIRST if folio_test(folio, FOLIO_EVICT_FIRST) else <int>LRU_LAST
    if folio_test(folio, FOLIO_AHEAD):
        return <int>LRU_AHEAD
    return <int>LRU_ACTIVE if folio_test(folio, FOLIO_ACTIVE) else <int>LRU_INACTIVE


cdef inline uint32_t folio_on_policy_list(const Folio* folio) noexcept nogil:
    return 0 if folio_test(folio, FOLIO_UNEVICTABLE | FOLIO_EVICT_FIRST | FOLIO_EVICT_LAST) else 1


cdef inline void list_add(Segment* seg, Folio* folio, bint at_tail) noexcept nogil:
    cdef LruHead* head = &seg.header.lru[folio_lru_list(folio)]
    cdef uint32_t number = folio_number(seg, folio)
    if at_tail:
        folio.lru_prev = head.last
        folio.lru_next = NIL
        if head.last != NIL:
            seg.folios[head.last].lru_next = number
        else:
            head.first = number
        head.last = number
    else:
        folio.lru_prev = NIL
        folio.lru_next = head.first
        if head.first != NIL:
            seg.folios[head.first].lru_prev = number
        else:
            head.last = number
        head.first = number
    set_hint_u64(&head.nr_pages, head.nr_pages + folio_nr_pages(folio))


cdef inline void list_del(Segment* seg, Folio* folio) noexcept nogil:
    cdef LruHead* head = &seg.header.lru[folio_lru_list(folio)]
    pc_assert(folio_test(folio, FOLIO_LRU))
    if folio.lru_prev != NIL:
        seg.folios[folio.lru_prev].lru_next = folio.lru_next
    else:
        pc_assert(head.first == folio_number(seg, folio))
        head.first = folio.lru_next
    if folio.lru_next != NIL:
        seg.folios[folio.lru_next].lru_prev = folio.lru_prev
    else:
        pc_assert(head.last == folio_number(seg, folio))
        head.last = folio.lru_prev
    if seg.header.sieve_hand == folio_number(seg, folio):
        seg.header.sieve_hand = folio.lru_prev
    set_hint_u64(&head.nr_pages, head.nr_pages - folio_nr_pages(folio))


cdef inline void lru_link(Segment* seg, Folio* folio, bint at_tail) noexcept nogil:
    """Puts a folio that is on no list on the one its flags name. lru_lock is held."""
    pc_assert(not folio_test(folio, FOLIO_LRU))
    list_add(seg, folio, at_tail)
    seg.header.nr_listed += folio_on_policy_list(folio)
    folio_set(folio, FOLIO_LRU)


cdef inline void lru_unlink(Segment* seg, Folio* folio) noexcept nogil:
    """Takes a folio off its list. lru_lock is held, and a reference, unless the last one is gone for good."""
    list_del(seg, folio)
    folio.lru_prev = NIL
    folio.lru_next = NIL
    seg.header.nr_listed -= folio_on_policy_list(folio)
    folio_clear(folio, FOLIO_LRU)


cdef inline void lru_transfer(Segment* seg, Folio* folio, uint32_t flags, bint at_tail) noexcept nogil:
    """Moves a folio to the list that `flags`, ACTIVE or AHEAD or neither, name, or within its list. It stays LRU.
    lru_lock is held; no reference is needed."""
    list_del(seg, folio)
    folio_clear(folio, <uint32_t>(FOLIO_ACTIVE | FOLIO_AHEAD) & ~flags)
    if flags:
        folio_set(folio, flags)
    list_add(seg, folio, at_tail)


cdef inline void lru_move(Segment* seg, Folio* folio, bint active, bint at_tail) noexcept nogil:
    """Moves a folio between the lists; nothing happens when it is on none (an isolator owns it)."""
    futex_lock(&seg.header.lru_lock)
    if folio_test(folio, FOLIO_LRU):
        lru_transfer(seg, folio, <uint32_t>FOLIO_ACTIVE if active else 0, at_tail)
    futex_unlock(&seg.header.lru_lock)


cdef inline void folio_free_last(Segment* seg, Folio* folio) noexcept nogil:
    """Frees a folio whose references are all gone (or frozen) and that is in no mapping. A policy may still move it."""
    if folio_test(folio, FOLIO_LRU):
        futex_lock(&seg.header.lru_lock)
        if folio_test(folio, FOLIO_LRU):
            lru_unlink(seg, folio)
        futex_unlock(&seg.header.lru_lock)
    folio_release_frames(seg, folio)


cdef inline void folio_put_many(Segment* seg, Folio* folio, uint32_t nr) noexcept nogil:
    cdef uint32_t before = sub_acq_rel_u32(&folio.refcount, nr)
    pc_assert(before >= nr)
    if before == nr:
        folio_free_last(seg, folio)
    else:
        memory_event(seg)


cdef inline void folio_put(Segment* seg, Folio* folio) noexcept nogil:
    """Drops a reference; the last one frees the folio."""
    folio_put_many(seg, folio, 1)
