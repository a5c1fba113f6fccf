"""Refault detection: which evicted pages would have stayed in a slightly larger cache.

Every eviction leaves a shadow in the page's slot: the value of `nonresident_age`, a clock that ticks once for each
page that is evicted or activated.  When the page comes back, the ticks since then are its *refault distance*: how many
pages the inactive list was too short by.  If the active list is at least that long, the page deserves to compete with
the pages on it and is activated at once; pages that were in the working set when they left are marked by one bit.

    shadow = value entry (age mod 2**30) << 1 | workingset

Shadows cost index nodes.  Nodes that hold nothing else are kept on a list, oldest first, and given up when the pool
holds more nodes than `max_nodes` allows (so index and descriptors together stay within 1.8 % of the cached bytes).
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport add_relaxed_u64, hint_u32, hint_u64, load_relaxed_u64
from pagecache.core.config cimport NIL
from pagecache.core.folio cimport FOLIO_ACTIVE, FOLIO_WORKINGSET, folio_nr_pages, folio_set, folio_test
from pagecache.core.lock cimport futex_lock, futex_trylock, futex_unlock
from pagecache.core.segment cimport (LRU_ACTIVE, POLICY_KERNEL, WORKINGSET_ACTIVATE, WORKINGSET_NODERECLAIM,
                                     WORKINGSET_REFAULT, WORKINGSET_RESTORE, Folio, Mapping, Segment, count)
from pagecache.core.xa_entry cimport xa_entry, xa_mk_value, xa_to_value
from pagecache.core.xa_node cimport XaNode, XaPool, XArray
from pagecache.core.xa_pool cimport xa_shadow_list_add, xa_shadow_list_del
from pagecache.core.xa_state cimport XaState, xas_init, xas_store

cdef enum:
    AGE_MASK = (1 << 30) - 1


cdef inline uint32_t shadow_distance(Segment* seg, xa_entry shadow) noexcept nogil:
    """Pages evicted or activated since the shadow was left."""
    cdef uint32_t age = <uint32_t>(load_relaxed_u64(&seg.header.nonresident_age) & AGE_MASK)
    return (age - (<uint32_t>xa_to_value(shadow) >> 1)) & AGE_MASK


cdef inline bint shadow_is_recent(Segment* seg, xa_entry shadow) noexcept nogil:
    return shadow_distance(seg, shadow) <= hint_u64(&seg.header.lru[<int>LRU_ACTIVE].nr_pages)


cdef inline void workingset_age(Segment* seg, uint32_t nr_pages) noexcept nogil:
    add_relaxed_u64(&seg.header.nonresident_age, nr_pages)


cdef inline xa_entry workingset_eviction(Segment* seg, Folio* folio) noexcept nogil:
    """The shadow to leave for an evicted folio; ticks the clock."""
    cdef uint64_t age = load_relaxed_u64(&seg.header.nonresident_age) & AGE_MASK
    workingset_age(seg, folio_nr_pages(folio))
    return xa_mk_value(<uint32_t>((age << 1) | folio_test(folio, FOLIO_WORKINGSET)))


cdef inline void workingset_refault(Segment* seg, Folio* folio, xa_entry shadow) noexcept nogil:
    """Decides what a folio that comes back deserves. The folio is not on a list yet. Policies other than the kernel's
    have a memory of their own (ghost.pxd); shadows then only tell `cachestat` what was evicted."""
    cdef uint32_t nr = folio_nr_pages(folio)
    count(seg, WORKINGSET_REFAULT, nr)
    if seg.header.policy != POLICY_KERNEL or not shadow_is_recent(seg, shadow):
        return
    folio_set(folio, FOLIO_ACTIVE)
    workingset_age(seg, nr)
    count(seg, WORKINGSET_ACTIVATE, nr)
    add_relaxed_u64(&seg.header.nr_refault_activated, nr)
    if xa_to_value(shadow) & 1:
        folio_set(folio, FOLIO_WORKINGSET)
        count(seg, WORKINGSET_RESTORE, nr)


cdef inline void workingset_update_node(XaPool* pool, XArray* xa, uint32_t number) noexcept nogil:
    """Keeps the list of nodes that hold only shadows. xa_lock is held."""
    cdef XaNode* node = &pool.nodes[number]
    if node.count != 0 and node.count == node.nr_values:
        if not node.on_list:
            xa_shadow_list_add(pool, number)
    elif node.on_list:
        xa_shadow_list_del(pool, number)


cdef inline uint64_t shadow_node_index(XaPool* pool, uint32_t number) noexcept nogil:
    """First index a node covers."""
    cdef uint64_t index = 0
    cdef XaNode* node = &pool.nodes[number]
    while node.parent != NIL:
        index |= <uint64_t>node.offset << (node.shift + 6)
        node = &pool.nodes[node.parent]
    return index


cdef inline bint shadow_node_reclaim(Segment* seg) noexcept nogil:
    """Gives up the oldest node of shadows. The list's lock nests inside xa_lock, so here xa_lock is only tried."""
    cdef XaPool* pool = &seg.pool
    cdef uint32_t number, owner
    cdef Mapping* mapping
    cdef XaNode* node
    cdef XaState xas
    futex_lock(&pool.header.lock)
    number = pool.header.shadow_head
    owner = pool.nodes[number].owner if number != NIL else 0
    if number == NIL or owner == 0 or owner >= seg.header.nr_mappings:
        futex_unlock(&pool.header.lock)
        return False
    mapping = &seg.mappings[owner]
    if not futex_trylock(&mapping.pages.lock):
        futex_unlock(&pool.header.lock)
        return False
    futex_unlock(&pool.header.lock)
    node = &pool.nodes[number]
    count(seg, WORKINGSET_NODERECLAIM, 1)
    xas_init(&xas, &mapping.pages, pool, shadow_node_index(pool, number), node.shift + 6)
    xas.update = workingset_update_node
    xas_store(&xas, 0)
    futex_unlock(&mapping.pages.lock)
    return True


cdef inline void shadow_nodes_trim(Segment* seg) noexcept nogil:
    """Brings the number of nodes under the limit, as far as shadows allow. No lock is held."""
    while hint_u32(&seg.pool.header.nr_used) > hint_u32(&seg.header.max_nodes):
        if not shadow_node_reclaim(seg):
            return
