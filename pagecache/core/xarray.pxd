"""The XArray's normal interface: one-call operations under the array's lock. Loads without it: xa_walk.pxd.

Operations that store take a cursor, which names the place and carries the update callback; the others take an index.
Reserved slots count as occupied for them and are skipped by searches.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport ctz64, hint_u32, load_acquire_u64
from pagecache.core.xa_entry cimport XA_CHUNK_MASK, XA_CHUNK_SIZE, xa_entry, xa_is_internal
from pagecache.core.xa_find cimport xas_continue, xas_entry_last, xas_search
from pagecache.core.xa_multi cimport xas_get_order
from pagecache.core.xa_node cimport XaNode, XaPool, XArray, head_entry
from pagecache.core.xa_state cimport (XaState, xa_update_fn, xas_clear_mark, xas_create, xas_delete_empty,
                                      xas_get_mark, xas_init, xas_is_node, xas_load, xas_set, xas_set_err,
                                      xas_set_mark, xas_set_order, xas_store)


cdef inline bint xa_empty(XArray* xa) noexcept nogil:
    """Whether nothing is stored; a hint without the lock."""
    return head_entry(load_acquire_u64(&xa.head)) == 0


# -- under the lock --------------------------------------------------------------------------------------------------

cdef inline bint xa_marked(XArray* xa, uint32_t mark) noexcept nogil:
    """Whether any entry of the array carries the mark; a hint without the lock."""
    return (hint_u32(&xa.flags) >> mark) & 1


cdef inline uint32_t xa_get_order(XArray* xa, XaPool* pool, uint64_t index) noexcept nogil:
    """Order of the entry that covers an index; 0 if there is none."""
    cdef XaState xas
    xas_init(&xas, xa, pool, index, 0)
    return xas_get_order(&xas) if xas_load(&xas) != 0 else 0


cdef inline bint xa_get_mark(XArray* xa, XaPool* pool, uint64_t index, uint32_t mark) noexcept nogil:
    cdef XaState xas
    xas_init(&xas, xa, pool, index, 0)
    return xas_load(&xas) != 0 and xas_get_mark(&xas, mark)


cdef inline void xa_set_mark(XArray* xa, XaPool* pool, uint64_t index, uint32_t mark) noexcept nogil:
    """Marks the entry that covers an index; nothing to mark is no error."""
    cdef XaState xas
    xas_init(&xas, xa, pool, index, 0)
    if xas_load(&xas) != 0:
        xas_set_mark(&xas, mark)


cdef inline void xa_clear_mark(XArray* xa, XaPool* pool, uint64_t index, uint32_t mark) noexcept nogil:
    cdef XaState xas
    xas_init(&xas, xa, pool, index, 0)
    if xas_load(&xas) != 0:
        xas_clear_mark(&xas, mark)


cdef inline xa_entry xa_find(XArray* xa, XaPool* pool, uint64_t* index, uint64_t max, uint32_t mark) noexcept nogil:
    """The first entry at or after `index`, up to max, that is present (ANY_MARK) or marked. `index` then becomes the
    first one of its range that is not smaller. Returns the entry, or 0 and leaves `index`."""
    cdef XaState xas
    cdef xa_entry entry
    if index[0] > max:
        return 0
    xas_init(&xas, xa, pool, index[0], 0)
    entry = xas_search(&xas, index[0], max, mark)
    while xa_is_internal(entry):
        entry = xas_continue(&xas, max, mark)
    if entry != 0:
        index[0] = xas.index
    return entry


cdef inline xa_entry xa_find_after(XArray* xa, XaPool* pool, uint64_t* index, uint64_t max,
                                   uint32_t mark) noexcept nogil:
    """As `xa_find`, behind the entry that covers `index`."""
    cdef XaState xas
    cdef uint64_t after
    cdef xa_entry entry
    xas_init(&xas, xa, pool, index[0], 0)
    xas_load(&xas)
    after = xas_entry_last(&xas) + 1
    if after == 0:
        return 0
    entry = xa_find(xa, pool, &after, max, mark)
    if entry != 0:
        index[0] = after
    return entry


cdef inline bint xa_find_free(XArray* xa, XaPool* pool, uint64_t* index, uint64_t max) noexcept nogil:
    """Moves `index` to the lowest empty one from there up to max. Returns False, and leaves it, if there is none.
    Full leaves are passed in one step, so the time is linear in the leaves before the gap."""
    cdef XaState xas
    cdef XaNode* node
    cdef uint64_t last
    xas_init(&xas, xa, pool, index[0], 0)
    while xas.index <= max:
        if xas_load(&xas) == 0:
            index[0] = xas.index
            return True
        last = xas_entry_last(&xas)
        if xas_is_node(&xas):
            node = &pool.nodes[xas.node]
            if node.shift == 0 and node.count == XA_CHUNK_SIZE:
                last = xas.index | XA_CHUNK_MASK
        if last + 1 == 0:
            return False
        xas_set(&xas, last + 1)
    return False


cdef inline xa_entry xas_cmpxchg(XaState* xas, xa_entry old, xa_entry entry) noexcept nogil:
    """Stores `entry` if the cursor's index holds exactly `old` (0: is not even reserved). Returns what it held."""
    cdef xa_entry current = xas_load(xas)
    if current == old:
        xas_store(xas, entry)
    return current


cdef inline uint32_t range_order(uint64_t first, uint64_t last) noexcept nogil:
    """Largest order of an aligned entry that begins at `first` and ends at or before `last`."""
    cdef uint32_t order = ctz64(first) if first != 0 else 63
    while ((<uint64_t>1 << order) - 1) > last - first:
        order -= 1
    return order


cdef inline uint32_t range_end_order(uint64_t first, uint64_t last) noexcept nogil:
    """Largest order of an aligned entry that ends at `last` and begins at or after `first`."""
    cdef uint32_t order = ctz64(last + 1) if last + 1 != 0 else 63
    while ((<uint64_t>1 << order) - 1) > last - first:
        order -= 1
    return order


cdef inline void xas_store_range(XaState* xas, uint64_t first, uint64_t last, xa_entry entry) noexcept nogil:
    """Stores aligned pieces of the largest orders over [first, last], or erases all there (0). An entry that is only
    touched is replaced as a whole.  Nodes are needed only on the ways to the first piece and to the last, so those are
    made first and a lack of memory changes nothing. Look at `xas_error`."""
    cdef int error
    if xas.error != 0:
        return
    if entry != 0:
        xas_set_order(xas, last, range_end_order(first, last))
        if not xas_create(xas):
            return
    xas_set_order(xas, first, range_order(first, last))
    xas_store(xas, entry)
    error = xas.error
    if error != 0:
        xas_set(xas, last)
        xas_load(xas)
        if xas_is_node(xas):
            xas_delete_empty(xas, xas.node)
        xas_set_err(xas, error)
        return
    while xas.last < last:
        first = xas.last + 1
        xas_set_order(xas, first, range_order(first, last))
        xas_store(xas, entry)


cdef inline void xa_destroy(XArray* xa, XaPool* pool, xa_update_fn update) noexcept nogil:
    """Erases everything."""
    cdef XaState xas
    xas_init(&xas, xa, pool, 0, 64)
    xas.update = update
    xas_store(&xas, 0)
