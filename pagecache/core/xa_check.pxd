"""The XArray's invariants, checked by a walk over everything.

    head      empty, a value, a pointer, or a node without a parent; its shift is the node's, else 0
    node      right parent, offset, shift and owner; between 1 and 64 entries; as many levels as the entries need
    slots     values, pointers, reserved slots; nodes above shift 0; siblings right behind their canonical slot, in runs
              that are powers of two and aligned
    counts    `count` slots are not NULL, `nr_values` of them are values or siblings of values
    marks     on canonical slots only; set for a node below exactly if something in it is marked; the array's flags
              sum up the head
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport load_relaxed_u32, load_relaxed_u64
from pagecache.core.config cimport NIL
from pagecache.core.xa_entry cimport (XA_CHUNK_SHIFT, XA_CHUNK_SIZE, XA_ZERO_ENTRY, xa_entry, xa_is_internal,
                                      xa_is_node, xa_is_sibling, xa_is_value, xa_to_node, xa_to_sibling)
from pagecache.core.xa_node cimport XA_MAX_MARKS, XaNode, XaPool, XArray, head_entry, head_shift
from pagecache.core.xa_pool cimport GROUP_NODES
from pagecache.core.xa_state cimport slot_run

cdef enum XaBroken:
    XA_BAD_HEAD = -1                # an entry the head may not hold, or a shift that is not the node's
    XA_BAD_NODE = -2                # a node that is not in use, or below a leaf
    XA_BAD_SHIFT = -3
    XA_BAD_PARENT = -4
    XA_BAD_OFFSET = -5
    XA_BAD_OWNER = -6
    XA_EMPTY_NODE = -7
    XA_BAD_COUNT = -8
    XA_BAD_NR_VALUES = -9
    XA_BAD_ENTRY = -10              # an internal entry that may not be stored
    XA_BAD_SIBLING = -11            # a run of the wrong length or alignment, or without its canonical slot
    XA_BAD_MARK = -12               # a mark on an empty slot or on a sibling
    XA_BAD_SUMMARY = -13            # a mark that is not the sum of those below
    XA_NOT_SHRUNK = -14             # a level more than needed
    XA_BAD_LIST = -15               # on the shadow list with something else than values


cdef inline int check_slot(XaNode* node, uint32_t offset) noexcept nogil:
    """Checks one slot that is neither NULL nor a node."""
    cdef xa_entry entry = load_relaxed_u32(&node.slots[offset])
    cdef uint32_t run, canonical, mark
    if xa_is_sibling(entry):
        canonical = xa_to_sibling(entry)
        if canonical >= offset:
            return XA_BAD_SIBLING
        run = slot_run(node, canonical)
        if offset >= canonical + run or run & (run - 1) or canonical & (run - 1):
            return XA_BAD_SIBLING
        entry = load_relaxed_u32(&node.slots[canonical])
        if entry == 0 or xa_is_node(entry) or xa_is_sibling(entry):
            return XA_BAD_SIBLING
        for mark in range(XA_MAX_MARKS):
            if (node.marks[mark] >> offset) & 1:
                return XA_BAD_MARK
        return 0
    if xa_is_internal(entry) and entry != XA_ZERO_ENTRY:
        return XA_BAD_ENTRY
    return 0


cdef inline int check_slots(XArray* xa, XaPool* pool, uint32_t number, uint64_t* nr_nodes) noexcept nogil:
    """Checks the slots of a node, its counts and marks, and all below."""
    cdef XaNode* node = &pool.nodes[number]
    cdef XaNode* child
    cdef xa_entry entry, canonical
    cdef uint32_t i, mark, count = 0, nr_values = 0
    cdef int error
    for i in range(XA_CHUNK_SIZE):
        entry = load_relaxed_u32(&node.slots[i])
        if entry == 0:
            if (node.marks[0] | node.marks[1] | node.marks[2]) >> i & 1:
                return XA_BAD_MARK
            continue
        count += 1
        if not xa_is_node(entry):
            error = check_slot(node, i)
            if error != 0:
                return error
            canonical = load_relaxed_u32(&node.slots[xa_to_sibling(entry)]) if xa_is_sibling(entry) else entry
            nr_values += xa_is_value(canonical)
            continue
        if node.shift == 0:
            return XA_BAD_NODE
        error = check_node(xa, pool, xa_to_node(entry), node.shift - XA_CHUNK_SHIFT, number, i, nr_nodes)
        if error != 0:
            return error
        child = &pool.nodes[xa_to_node(entry)]
        for mark in range(XA_MAX_MARKS):
            if (child.marks[mark] != 0) != ((node.marks[mark] >> i) & 1):
                return XA_BAD_SUMMARY
    if count == 0:
        return XA_EMPTY_NODE
    if count != node.count:
        return XA_BAD_COUNT
    if nr_values != node.nr_values:
        return XA_BAD_NR_VALUES
    return XA_BAD_LIST if node.on_list and count != nr_values else 0


cdef inline int check_node(XArray* xa, XaPool* pool, uint32_t number, uint32_t shift, uint32_t parent, uint32_t offset,
                           uint64_t* nr_nodes) noexcept nogil:
    cdef XaNode* node
    if number // GROUP_NODES >= pool.header.nr_groups or pool.nodes[number].owner == <uint32_t>NIL:
        return XA_BAD_NODE
    node = &pool.nodes[number]
    nr_nodes[0] += 1
    if node.shift != shift:
        return XA_BAD_SHIFT
    if node.parent != parent:
        return XA_BAD_PARENT
    if node.offset != offset:
        return XA_BAD_OFFSET
    if node.owner != xa.owner:
        return XA_BAD_OWNER
    return check_slots(xa, pool, number, nr_nodes)


cdef inline int64_t xa_check(XArray* xa, XaPool* pool, uint64_t* nr_nodes) noexcept nogil:
    """Walks the whole array; the lock is held. `nr_nodes` gets the number of nodes met.
    Returns 0, or the XaBroken code of the first broken invariant."""
    cdef uint64_t head = load_relaxed_u64(&xa.head)
    cdef xa_entry entry = head_entry(head)
    cdef XaNode* node
    cdef uint32_t mark
    cdef int error
    nr_nodes[0] = 0
    if not xa_is_node(entry):
        if xa_is_internal(entry) or head_shift(head) != 0:
            return XA_BAD_HEAD
        return XA_BAD_SUMMARY if entry == 0 and xa.flags & ((1 << XA_MAX_MARKS) - 1) else 0
    if head_shift(head) % XA_CHUNK_SHIFT != 0 or head_shift(head) > 60:
        return XA_BAD_HEAD
    error = check_node(xa, pool, xa_to_node(entry), head_shift(head), NIL, 0, nr_nodes)
    if error != 0:
        return error
    node = &pool.nodes[xa_to_node(entry)]
    for mark in range(XA_MAX_MARKS):
        if (node.marks[mark] != 0) != ((xa.flags >> mark) & 1):
            return XA_BAD_SUMMARY
    entry = load_relaxed_u32(&node.slots[0])
    if node.count == 1 and entry != 0 and (xa_is_node(entry) or (node.shift == 0 and entry != XA_ZERO_ENTRY)):
        return XA_NOT_SHRUNK
    return 0
