"""Splitting a large folio, so that a truncation or a partial invalidation touches only what it must.

The folio is halved again and again around one page until that page is a folio of its own: 2 MiB fall into at most ten
pieces.  All of it happens with the folio locked, its references frozen (so no other thread holds any part), under xa_lock
and lru_lock.  Lock-free readers meanwhile find an entry whose order does not agree with the descriptor, or a changed
`seq`, and look again under xa_lock.  Marks and dirty flags go to every piece.
"""
from libc.errno cimport EBUSY
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport (load_relaxed_u32, load_relaxed_u64, store_relaxed_u32, store_relaxed_u64,
                                    store_release_u32, xor_acq_rel_u32)
from pagecache.core.buddy cimport FOLIO_ORDER_SHIFT
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport NIL
from pagecache.core.folio cimport (FOLIO_LOCKED, FOLIO_LRU, FOLIO_ORDER_MASK, FOLIO_READAHEAD, folio_index,
                                   folio_mapping, folio_nr_pages, folio_order, folio_ref_freeze, folio_ref_unfreeze,
                                   folio_seq_bump, folio_test)
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport lru_link, lru_unlink
from pagecache.core.mapping cimport folio_entry
from pagecache.core.segment cimport NR_FILE_HUGEPAGES, Folio, Mapping, Segment, count, folio_number
from pagecache.core.workingset cimport workingset_update_node
from pagecache.core.xa_multi cimport xas_split
from pagecache.core.xa_state cimport XaState, xas_init, xas_store

cdef enum:
    SPLIT_DROPPED_FLAGS = 0xF       # the lock's bits stay with the first piece


cdef inline Folio* split_describe(Segment* seg, Folio* folio, uint32_t order) noexcept nogil:
    """Makes a descriptor for the upper half of a frozen folio and shrinks the folio to `order`."""
    cdef uint32_t nr = <uint32_t>1 << order
    cdef Folio* upper = folio + nr
    cdef uint32_t kept = load_relaxed_u32(&folio.state) & ~<uint32_t>(
        FOLIO_ORDER_MASK | SPLIT_DROPPED_FLAGS | FOLIO_LRU | FOLIO_READAHEAD)
    pc_assert(load_relaxed_u32(&upper.refcount) == 0 and load_relaxed_u32(&upper.state) == 0)
    upper.lru_prev = NIL
    upper.lru_next = NIL
    upper.policy_data = folio.policy_data
    store_relaxed_u32(&upper.nr_pins, 0)
    store_relaxed_u64(&upper.dirtied_at_ns, load_relaxed_u64(&folio.dirtied_at_ns))
    store_relaxed_u64(&upper.index, folio_index(folio) + nr)
    store_release_u32(&upper.mapping, folio_mapping(folio))
    store_release_u32(&upper.state, kept | (order << FOLIO_ORDER_SHIFT))
    xor_acq_rel_u32(&folio.state, (order ^ (order + 1)) << FOLIO_ORDER_SHIFT)
    folio_seq_bump(folio)
    return upper


cdef inline int split_half(Segment* seg, Mapping* mapping, Folio* folio, Folio** upper) noexcept nogil:
    """Halves one frozen folio that is on no list. xa_lock is held. Returns 0 or -ENOMEM."""
    cdef uint32_t order = folio_order(folio) - 1
    cdef uint32_t frame = folio_number(seg, folio)
    cdef uint64_t index = folio_index(folio)
    cdef XaState xas
    cdef int error
    xas_init(&xas, &mapping.pages, &seg.pool, index, order)
    xas.update = workingset_update_node
    error = xas_split(&xas, folio_entry(frame, order), order + 1)
    if error != 0:
        return error
    upper[0] = split_describe(seg, folio, order)
    xas_init(&xas, &mapping.pages, &seg.pool, index + (<uint64_t>1 << order), order)
    xas.update = workingset_update_node
    xas_store(&xas, folio_entry(frame + (<uint32_t>1 << order), order))
    return 0


cdef inline int folio_split(Segment* seg, Folio* folio, uint64_t index) noexcept nogil:
    """Splits a locked folio of a mapping until page `index` is a folio of its own. The caller holds one reference,
    which stays with the first piece, as does the lock. Returns 0, -EBUSY when there is another reference,
    -ENOMEM (the folio is then split as far as nodes allowed)."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t nr = folio_nr_pages(folio)
    cdef Folio* pieces[16]
    cdef Folio* piece = folio
    cdef Folio* upper
    cdef uint32_t i, nr_pieces = 0
    cdef int64_t nr_huge = 0
    cdef int error = 0
    pc_assert(folio_test(folio, FOLIO_LOCKED))
    pc_assert(folio_index(folio) <= index < folio_index(folio) + nr)
    if nr == 1:
        return 0
    futex_lock(&mapping.pages.lock)
    if not folio_ref_freeze(folio, nr + 1):
        futex_unlock(&mapping.pages.lock)
        return -EBUSY
    futex_lock(&seg.header.lru_lock)
    if folio_test(folio, FOLIO_LRU):
        lru_unlink(seg, folio)
    while folio_order(piece) > 0:
        error = split_half(seg, mapping, piece, &upper)
        if error != 0:
            break
        pieces[nr_pieces] = upper
        nr_pieces += 1
        if index >= folio_index(upper):
            piece = upper
    for i in range(nr_pieces):
        nr_huge += folio_nr_pages(pieces[i]) if folio_order(pieces[i]) > 0 else 0
        lru_link(seg, pieces[i], False)
        folio_ref_unfreeze(pieces[i], folio_nr_pages(pieces[i]))
    nr_huge += folio_nr_pages(folio) if folio_order(folio) > 0 else 0
    lru_link(seg, folio, False)
    folio_ref_unfreeze(folio, folio_nr_pages(folio) + 1)
    futex_unlock(&seg.header.lru_lock)
    futex_unlock(&mapping.pages.lock)
    count(seg, NR_FILE_HUGEPAGES, nr_huge - nr)
    return error
