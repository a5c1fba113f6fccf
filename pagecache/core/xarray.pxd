"""The XArray's normal interface: load, store, erase, compare-and-exchange, marks, whole arrays."""
from libc.errno cimport EBUSY
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport load_acquire_u32, load_acquire_u64, load_relaxed_u32, load_relaxed_u64
from pagecache.core.xa_node cimport (XA_CHUNK_MASK, XA_CHUNK_SHIFT, XA_CHUNK_SIZE, XA_NODE_BASE, XA_RETRY_ENTRY,
                                     XaNode, XaPool, XArray, head_entry, head_shift, xa_entry, xa_is_node,
                                     xa_is_sibling, xa_to_node, xa_to_sibling)
from pagecache.core.xa_state cimport XaState, node_max, xas_error, xas_init, xas_load, xas_set_mark, xas_store


cdef inline xa_entry xa_load(XArray* xa, XaPool* pool, uint64_t index) noexcept nogil:
    """What is stored at an index, without a lock and without reading a node's header: NULL, a value, a pointer, or
    XA_RETRY_ENTRY when the walk met something in motion."""
    cdef uint64_t head = load_acquire_u64(&xa.head)
    cdef xa_entry entry = <xa_entry>head
    cdef uint32_t shift
    cdef XaNode* node
    if (entry & 3) != 2:
        return entry if index == 0 else 0
    shift = head_shift(head)
    if shift < 58 and (index >> shift) >= XA_CHUNK_SIZE:
        return 0
    while True:
        node = &pool.nodes[(entry >> 2) - XA_NODE_BASE]
        entry = load_acquire_u32(&node.slots[(index >> shift) & XA_CHUNK_MASK])
        if (entry & 3) != 2:
            return entry
        if xa_is_sibling(entry):
            entry = load_acquire_u32(&node.slots[xa_to_sibling(entry)])
            return XA_RETRY_ENTRY if (entry & 3) == 2 else entry
        if not xa_is_node(entry):
            return entry
        if shift == 0:
            return XA_RETRY_ENTRY
        shift -= XA_CHUNK_SHIFT


cdef inline bint xa_empty(XArray* xa) noexcept nogil:
    return head_entry(load_acquire_u64(&xa.head)) == 0


cdef inline bint xa_marked(XArray* xa, uint32_t mark) noexcept nogil:
    """Whether any entry of the array carries the mark."""
    return (xa.flags >> mark) & 1


cdef inline void xa_destroy(XArray* xa, XaPool* pool) noexcept nogil:
    """Erases everything. The lock is held."""
    cdef XaState xas
    xas_init(&xas, xa, pool, 0, 64)
    xas_store(&xas, 0)
