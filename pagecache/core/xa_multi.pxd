"""Multi-index entries: their order, and splitting them into smaller ones."""
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagecache.core.atomic cimport ctz32, store_release_u32
from pagecache.core.config cimport NIL
from pagecache.core.xa_entry cimport XA_CHUNK_SHIFT, XA_CHUNK_SIZE, xa_entry, xa_is_value, xa_mk_node, xa_mk_sibling
from pagecache.core.xa_node cimport XA_MAX_MARKS, XaNode
from pagecache.core.xa_pool cimport xa_node_alloc, xa_node_free
from pagecache.core.xa_state cimport (XaState, slot_run, xas_init, xas_is_node, xas_load, xas_shrink, xas_update)


cdef inline uint32_t xas_get_order(XaState* xas) noexcept nogil:
    """Order of the entry the cursor is at."""
    cdef XaNode* node
    if not xas_is_node(xas):
        return 0
    node = &xas.pool.nodes[xas.node]
    return node.shift + ctz32(slot_run(node, xas.offset))


cdef inline void split_fill(XaNode* node, uint32_t offset, uint32_t nr_slots, uint32_t piece, xa_entry entry,
                            uint32_t marks) noexcept nogil:
    """Writes entries of `piece` slots each, with these marks, over nr_slots slots."""
    cdef uint32_t i, mark
    for i in range(nr_slots):
        if i % piece == 0:
            for mark in range(XA_MAX_MARKS):
                if marks & (1 << mark):
                    node.marks[mark] |= <uint64_t>1 << (offset + i)
            store_release_u32(&node.slots[offset + i], entry)
        else:
            store_release_u32(&node.slots[offset + i], xa_mk_sibling(offset + i - i % piece))


cdef inline int split_into_children(XaState* xas, uint32_t number, uint32_t offset, uint32_t nr_slots, xa_entry entry,
                                    uint32_t marks) noexcept nogil:
    """Hangs a node of pieces below each of nr_slots slots. All nodes are taken first."""
    cdef XaNode* node = &xas.pool.nodes[number]
    cdef XaNode* child
    cdef uint32_t[64] children
    cdef uint32_t i, mark
    for i in range(nr_slots):
        children[i] = xa_node_alloc(xas.pool, node.shift - XA_CHUNK_SHIFT, xas.xa.owner)
        if children[i] == NIL:
            while i > 0:
                i -= 1
                xa_node_free(xas.pool, children[i])
            return -ENOMEM
    for i in range(nr_slots):
        child = &xas.pool.nodes[children[i]]
        child.parent = number
        child.offset = <uint8_t>(offset + i)
        child.count = XA_CHUNK_SIZE
        child.nr_values = XA_CHUNK_SIZE if xa_is_value(entry) else 0
        split_fill(child, 0, XA_CHUNK_SIZE, xas.sibs + 1, entry, marks)
        for mark in range(XA_MAX_MARKS):
            if marks & (1 << mark):
                node.marks[mark] |= <uint64_t>1 << (offset + i)
        store_release_u32(&node.slots[offset + i], xa_mk_node(children[i]))
        xas_update(xas, children[i])
    if xa_is_value(entry):
        node.nr_values = <uint8_t>(node.nr_values - nr_slots)
    xas_update(xas, number)
    return 0


cdef inline int xas_split(XaState* xas, xa_entry entry, uint32_t old_order) noexcept nogil:
    """Splits the entry of old_order at the cursor into pieces of the cursor's order, which all become `entry` (of the
    same class as the old one) and keep its marks. The lock is held.
    Returns 0, -ENOMEM (nothing changed), -EINVAL (no such entry, or two levels and more to go down)."""
    cdef uint32_t number, offset, nr_slots, marks = 0, mark
    cdef int error
    cdef XaNode* node
    cdef XaState where
    xas_init(&where, xas.xa, xas.pool, xas.index, 0)
    where.update = xas.update
    if xas_load(&where) == 0 or xas_get_order(&where) != old_order or old_order < xas.order:
        return -EINVAL
    if old_order == xas.order:
        return 0
    number = where.node
    offset = where.offset
    node = &xas.pool.nodes[number]
    if xas.shift + XA_CHUNK_SHIFT < node.shift:
        return -EINVAL
    nr_slots = slot_run(node, offset)
    for mark in range(XA_MAX_MARKS):
        marks |= <uint32_t>((node.marks[mark] >> offset) & 1) << mark
    if xas.shift < node.shift:
        error = split_into_children(xas, number, offset, nr_slots, entry, marks)
        if error == 0:
            xas_shrink(&where)
        return error
    split_fill(node, offset, nr_slots, xas.sibs + 1, entry, marks)
    return 0


cdef inline uint32_t try_split_minimum(uint32_t old_order) noexcept nogil:
    """Smallest order an entry can be split to with one new node at most."""
    if old_order == 0:
        return 0
    return old_order - 1 if old_order % XA_CHUNK_SHIFT == 0 else old_order - old_order % XA_CHUNK_SHIFT


cdef inline int xas_try_split(XaState* xas, xa_entry entry, uint32_t old_order) noexcept nogil:
    """As `xas_split`, but -EINVAL when more than one new node would be needed."""
    if xas.order < try_split_minimum(old_order):
        return -EINVAL
    return xas_split(xas, entry, old_order)
