"""The pool of XArray nodes: groups of 64, which are five pages, so that memory comes and goes by groups.

    never touched -> open    its nodes become free nodes; their memory was populated and charged before (charge.pxd), or,
                             in a pool of its own (`opens_groups`), comes when it is touched
    open                     partial (some nodes free), empty (all), or full, which is on no list. Nodes are taken from
                             the first partial group, then from an empty one; a group that gets its first free node
                             becomes the last partial one: so nodes gather in few groups, and others become empty.
    empty -> away            the memory is given back to the system (node_memory.pxd)
    away -> open             as from never touched

A reader without a lock may stand in a node that is away: it reads empty slots, as in one that is used again, and believes
none of them, since the generation of the array that the node was taken out of has changed before (xa_state.pxd).

All of it under the pool's lock, which is innermost; memory is given back, had and charged without it.
"""
from libc.stdint cimport uint8_t, uint32_t
from pagecache.core.atomic cimport fence_release, load_relaxed_u32, set_hint_u32, store_relaxed_u32, store_release_u32
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport NIL
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.xa_entry cimport XA_CHUNK_SIZE, XA_RETRY_ENTRY
from pagecache.core.xa_node cimport XA_MAX_MARKS, XaGroup, XaNode, XaPool, XaPoolHeader

cdef enum:
    GROUP_NODES = 64
    GROUP_PAGES = 5


cdef inline void xa_pool_init(XaPoolHeader* header, uint32_t nr_nodes, bint opens_groups) noexcept nogil:
    header.nr_nodes = nr_nodes
    header.nr_used = 0
    header.nr_spare = 0
    header.nr_groups = 0
    header.nr_away = 0
    header.nr_empty = 0
    header.partial_first = NIL
    header.partial_last = NIL
    header.empty_first = NIL
    header.away_first = NIL
    header.opens_groups = opens_groups
    header.shadow_head = NIL
    header.shadow_tail = NIL
    header.nr_shadow_nodes = 0
    header.fail_countdown = 0


cdef inline uint32_t pool_nr_groups(uint32_t nr_nodes) noexcept nogil:
    """Groups of a pool of so many nodes; the last may be a part of one."""
    return (nr_nodes + GROUP_NODES - 1) // GROUP_NODES


cdef inline uint32_t group_size(XaPool* pool, uint32_t number) noexcept nogil:
    cdef uint32_t left = pool.header.nr_nodes - number * GROUP_NODES
    return left if left < <uint32_t>GROUP_NODES else <uint32_t>GROUP_NODES


# -- groups: the pool's lock is held -----------------------------------------------------------------------------------

cdef inline void group_link(XaPool* pool, uint32_t number) noexcept nogil:
    """Appends a group to the partial ones."""
    cdef XaGroup* group = &pool.groups[number]
    group.next = NIL
    group.prev = pool.header.partial_last
    if group.prev != NIL:
        pool.groups[group.prev].next = number
    else:
        pool.header.partial_first = number
    pool.header.partial_last = number


cdef inline void group_unlink(XaPool* pool, uint32_t number) noexcept nogil:
    cdef XaGroup* group = &pool.groups[number]
    if group.prev != NIL:
        pool.groups[group.prev].next = group.next
    else:
        pool.header.partial_first = group.next
    if group.next != NIL:
        pool.groups[group.next].prev = group.prev
    else:
        pool.header.partial_last = group.prev


cdef inline void group_push_empty(XaPool* pool, uint32_t number) noexcept nogil:
    pool.groups[number].next = pool.header.empty_first
    pool.header.empty_first = number
    set_hint_u32(&pool.header.nr_empty, pool.header.nr_empty + 1)


cdef inline uint32_t group_pop_empty(XaPool* pool) noexcept nogil:
    """Takes an empty group off its list. NIL: there is none."""
    cdef uint32_t number = pool.header.empty_first
    if number != NIL:
        pool.header.empty_first = pool.groups[number].next
        set_hint_u32(&pool.header.nr_empty, pool.header.nr_empty - 1)
    return number


cdef inline void group_open(XaPool* pool, uint32_t number) noexcept nogil:
    """Makes the nodes of a group free nodes."""
    cdef XaGroup* group = &pool.groups[number]
    cdef uint32_t first = number * GROUP_NODES, i = group_size(pool, number)
    group.free_first = NIL
    group.nr_free = i
    while i > 0:
        i -= 1
        pool.nodes[first + i].owner = NIL
        pool.nodes[first + i].list_next = group.free_first
        group.free_first = first + i
    set_hint_u32(&pool.header.nr_spare, pool.header.nr_spare + group.nr_free)
    group_push_empty(pool, number)


cdef inline uint32_t group_take_closed(XaPool* pool, bint* is_new) noexcept nogil:
    """Takes a group that is away or, then is_new, was never touched, for the caller to open. NIL: there is none."""
    cdef XaPoolHeader* header = pool.header
    cdef uint32_t number = header.away_first
    is_new[0] = number == NIL
    if number != NIL:
        header.away_first = pool.groups[number].next
        set_hint_u32(&header.nr_away, header.nr_away - 1)
    elif header.nr_groups < pool_nr_groups(header.nr_nodes):
        number = header.nr_groups
        set_hint_u32(&header.nr_groups, number + 1)
    return number


cdef inline void group_put_away(XaPool* pool, uint32_t number) noexcept nogil:
    pool.groups[number].next = pool.header.away_first
    pool.header.away_first = number
    set_hint_u32(&pool.header.nr_away, pool.header.nr_away + 1)


cdef inline uint32_t node_take(XaPool* pool) noexcept nogil:
    """Takes a free node. NIL: there is none in the open groups."""
    cdef XaPoolHeader* header = pool.header
    cdef uint32_t number = header.partial_first, node
    cdef XaGroup* group
    if number == NIL:
        number = group_pop_empty(pool)
        if number == NIL:
            return NIL
        group_link(pool, number)
    group = &pool.groups[number]
    node = group.free_first
    group.free_first = pool.nodes[node].list_next
    group.nr_free -= 1
    if group.nr_free == 0:
        group_unlink(pool, number)
    set_hint_u32(&header.nr_spare, header.nr_spare - 1)
    set_hint_u32(&header.nr_used, header.nr_used + 1)
    return node


cdef inline void node_give(XaPool* pool, uint32_t node) noexcept nogil:
    cdef XaPoolHeader* header = pool.header
    cdef uint32_t number = node // GROUP_NODES
    cdef XaGroup* group = &pool.groups[number]
    pool.nodes[node].list_next = group.free_first
    group.free_first = node
    group.nr_free += 1
    if group.nr_free == 1:
        group_link(pool, number)
    if group.nr_free == group_size(pool, number):
        group_unlink(pool, number)
        group_push_empty(pool, number)
    set_hint_u32(&header.nr_spare, header.nr_spare + 1)
    set_hint_u32(&header.nr_used, header.nr_used - 1)


# -- nodes -------------------------------------------------------------------------------------------------------------

cdef inline uint32_t xa_node_alloc(XaPool* pool, uint32_t shift, uint32_t owner) noexcept nogil:
    """Takes an empty node. Returns its number, or NIL when there is none."""
    cdef XaPoolHeader* header = pool.header
    cdef XaNode* node
    cdef uint32_t number = NIL, group
    cdef bint is_new
    cdef int i
    futex_lock(&header.lock)
    if header.fail_countdown != 0:
        header.fail_countdown -= 1
        if header.fail_countdown == 0:
            futex_unlock(&header.lock)
            return NIL
    number = node_take(pool)
    if number == NIL and header.opens_groups:
        group = group_take_closed(pool, &is_new)
        if group != NIL:
            group_open(pool, group)
            number = node_take(pool)
    futex_unlock(&header.lock)
    if number == NIL:
        return NIL
    node = &pool.nodes[number]
    fence_release()                 # who reads one of these zeros also sees the generation of the node's former array
    for i in range(XA_CHUNK_SIZE):
        store_relaxed_u32(&node.slots[i], 0)
    for i in range(XA_MAX_MARKS):
        node.marks[i] = 0
    node.shift = <uint8_t>shift
    node.offset = 0
    node.count = 0
    node.nr_values = 0
    node.parent = NIL
    node.owner = owner
    node.on_list = 0
    return number


cdef inline void xa_node_free(XaPool* pool, uint32_t number) noexcept nogil:
    """Gives a node back that is linked from nowhere. A reader that still stands in it finds retry entries."""
    cdef XaNode* node = &pool.nodes[number]
    cdef int i
    pc_assert(not node.on_list)
    for i in range(XA_CHUNK_SIZE):
        if load_relaxed_u32(&node.slots[i]) != 0:
            store_release_u32(&node.slots[i], XA_RETRY_ENTRY)
    node.owner = NIL
    futex_lock(&pool.header.lock)
    node_give(pool, number)
    futex_unlock(&pool.header.lock)


# -- nodes of shadows --------------------------------------------------------------------------------------------------

cdef inline void xa_shadow_list_add(XaPool* pool, uint32_t number) noexcept nogil:
    """Appends a node that holds only values to the list."""
    cdef XaPoolHeader* header = pool.header
    cdef XaNode* node = &pool.nodes[number]
    futex_lock(&header.lock)
    node.on_list = 1
    node.list_next = NIL
    node.list_prev = header.shadow_tail
    if header.shadow_tail != NIL:
        pool.nodes[header.shadow_tail].list_next = number
    else:
        header.shadow_head = number
    header.shadow_tail = number
    set_hint_u32(&header.nr_shadow_nodes, header.nr_shadow_nodes + 1)
    futex_unlock(&header.lock)


cdef inline void xa_shadow_list_del(XaPool* pool, uint32_t number) noexcept nogil:
    cdef XaPoolHeader* header = pool.header
    cdef XaNode* node = &pool.nodes[number]
    futex_lock(&header.lock)
    node.on_list = 0
    if node.list_prev != NIL:
        pool.nodes[node.list_prev].list_next = node.list_next
    else:
        header.shadow_head = node.list_next
    if node.list_next != NIL:
        pool.nodes[node.list_next].list_prev = node.list_prev
    else:
        header.shadow_tail = node.list_prev
    set_hint_u32(&header.nr_shadow_nodes, header.nr_shadow_nodes - 1)
    futex_unlock(&header.lock)
