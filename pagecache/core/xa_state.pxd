"""The XArray cursor: walking, storing, growing and shrinking the tree, marks.

A cursor (`XaState`) names a position: an index and an order.  Loading, storing and searching walk from the head, so
that they are right whatever others changed; `node` and `offset` remember where the last operation ended, for the marks
and for what comes next.  Writers hold the array's lock; `xas_load` may also be used without it, and then sees each
slot at some moment.

How a reader without the lock stays right (all slots and the head: stores release, loads acquire)
    grow      a new head node gets the old head in slot 0 before the head word is replaced: an old head word still
              leads to every entry it led to before.
    shrink    the head word is replaced first, then the old head is freed, which makes retry of its slot 0.
    delete    a slot is cleared before its node is freed; a freed node keeps retry entries until it is reused.
    reuse     a reader may meet entries of another array or place: the owner of the entries validates them.  It may
              meet an empty slot: every node that is unlinked first counts up the head's generation, so an empty slot
              is believed only if the generation is the one the walk began with.

Multi-index entries: an entry of order k stands in a node of shift k - k % 6, in the canonical slot, followed by
2**(k % 6) - 1 siblings; nothing lies below.  Marks are kept on the canonical slot and summed up in the parents.

Costs: a store walks the levels once more than one that starts where the last ended; a store without memory undoes
what it created, so a full pool is met with work for nothing; a node freed is one more write to the array's head line,
which the lock holder has anyway.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagecache.core.atomic cimport (load_acquire_u32, load_acquire_u64, load_relaxed_u32, load_relaxed_u64,
                                    set_hint_u32, store_release_u32, store_release_u64)
from pagecache.core.config cimport NIL
from pagecache.core.xa_entry cimport (XA_CHUNK_MASK, XA_CHUNK_SHIFT, XA_CHUNK_SIZE, XA_RETRY_ENTRY, XA_ZERO_ENTRY,
                                      xa_entry, xa_is_internal, xa_is_node, xa_is_sibling, xa_is_value, xa_mk_node,
                                      xa_mk_sibling, xa_to_node, xa_to_sibling)
from pagecache.core.xa_node cimport (XA_MAX_MARKS, XaNode, XaPool, XArray, head_entry, head_generation, head_shift,
                                     mk_head)
from pagecache.core.xa_pool cimport xa_node_alloc, xa_node_free

ctypedef void (*xa_update_fn)(XaPool* pool, XArray* xa, uint32_t node) noexcept nogil

cdef enum:                          # values of XaState.node that are no node
    XAS_HEAD = 0xFFFFFFFF           # at the head: a single entry, or an empty array
    XAS_RESTART = 0xFFFFFFFE        # not walked yet
    XAS_BOUNDS = 0xFFFFFFFD         # outside the tree
    XAS_ERROR = 0xFFFFFFFC          # `error` says what

ctypedef struct XaState:
    XArray* xa
    XaPool* pool
    uint64_t index
    uint64_t first                  # the range it was set to, for conflicts
    uint64_t last
    uint32_t node
    uint32_t order
    uint8_t shift                   # of the level the order lives on
    uint8_t sibs                    # slots it takes there, beside the canonical one
    uint8_t offset
    int error
    xa_update_fn update


# -- setting up ------------------------------------------------------------------------------------------------------

cdef inline void xas_set_order(XaState* xas, uint64_t index, uint32_t order) noexcept nogil:
    xas.first = (index >> order) << order if order < 64 else 0
    xas.last = xas.first | ((<uint64_t>1 << order) - 1 if order < 64 else <uint64_t>-1)
    xas.index = xas.first
    xas.order = order
    xas.shift = <uint8_t>(order - order % XA_CHUNK_SHIFT)
    xas.sibs = <uint8_t>((1 << (order % XA_CHUNK_SHIFT)) - 1)
    xas.offset = 0
    xas.node = XAS_RESTART
    xas.error = 0


cdef inline void xas_init(XaState* xas, XArray* xa, XaPool* pool, uint64_t index, uint32_t order) noexcept nogil:
    xas.xa = xa
    xas.pool = pool
    xas.update = NULL
    xas_set_order(xas, index, order)


cdef inline void xas_set(XaState* xas, uint64_t index) noexcept nogil:
    xas_set_order(xas, index, 0)


cdef inline void xas_reset(XaState* xas) noexcept nogil:
    xas.node = XAS_RESTART
    xas.error = 0


cdef inline int xas_error(XaState* xas) noexcept nogil:
    """0 or a negative errno. An error makes every operation do nothing until the cursor is set or reset."""
    return xas.error


cdef inline void xas_set_err(XaState* xas, int error) noexcept nogil:
    xas.node = XAS_ERROR
    xas.error = error


cdef inline bint xas_is_node(XaState* xas) noexcept nogil:
    return xas.node < <uint32_t>XAS_ERROR


cdef inline bint xas_retry(XaState* xas, xa_entry entry) noexcept nogil:
    """Whether to look again: a reserved slot is skipped, a retry entry restarts the walk."""
    if entry == XA_ZERO_ENTRY:
        return True
    if entry != XA_RETRY_ENTRY:
        return False
    xas_reset(xas)
    return True


# -- walking ---------------------------------------------------------------------------------------------------------

cdef inline xa_entry node_slot(XaNode* node, uint32_t offset) noexcept nogil:
    return load_acquire_u32(&node.slots[offset])


cdef inline uint64_t node_max(uint32_t shift) noexcept nogil:
    """Largest index offset a node of this shift can hold."""
    return (<uint64_t>XA_CHUNK_SIZE << shift) - 1 if shift < 58 else <uint64_t>-1


cdef inline uint64_t xas_max(XaState* xas) noexcept nogil:
    """Last index a store at the cursor's index covers."""
    return xas.index | ((<uint64_t>1 << xas.order) - 1 if xas.order < 64 else <uint64_t>-1)


cdef inline xa_entry xas_load(XaState* xas) noexcept nogil:
    """Walks to the cursor's position and returns what is there; `index` keeps its value."""
    cdef uint64_t head
    cdef uint32_t shift
    cdef xa_entry entry
    cdef XaNode* node
    if xas.error != 0:
        return 0
    head = load_acquire_u64(&xas.xa.head)
    entry = head_entry(head)
    xas.offset = 0
    if not xa_is_node(entry):
        xas.node = XAS_HEAD if xas.index == 0 else <uint32_t>XAS_BOUNDS
        return entry if xas.index == 0 else 0
    shift = head_shift(head)
    if xas.index > node_max(shift):
        xas.node = XAS_BOUNDS
        return 0
    xas.node = XAS_HEAD
    while xas.shift <= shift:
        xas.node = xa_to_node(entry)
        node = &xas.pool.nodes[xas.node]
        xas.offset = (xas.index >> shift) & XA_CHUNK_MASK
        entry = node_slot(node, xas.offset)
        if xa_is_sibling(entry):
            xas.offset = <uint8_t>xa_to_sibling(entry)
            entry = node_slot(node, xas.offset)
            if xa_is_node(entry):
                return XA_RETRY_ENTRY
        if not xa_is_node(entry):
            return entry
        if shift == 0:
            return XA_RETRY_ENTRY
        shift -= XA_CHUNK_SHIFT
    return entry


cdef inline xa_entry xas_reload(XaState* xas) noexcept nogil:
    """Reads the current slot again, without a walk."""
    cdef xa_entry entry
    cdef XaNode* node
    if xas.error != 0 or xas.node == XAS_BOUNDS:
        return 0
    if not xas_is_node(xas):
        return xas_load(xas)
    node = &xas.pool.nodes[xas.node]
    entry = node_slot(node, xas.offset)
    if xa_is_sibling(entry):
        xas.offset = <uint8_t>xa_to_sibling(entry)
        entry = node_slot(node, xas.offset)
    return entry


cdef inline uint32_t slot_run(XaNode* node, uint32_t offset) noexcept nogil:
    """Slots an entry takes: the canonical one and the siblings behind it."""
    cdef uint32_t n = 1
    while offset + n < XA_CHUNK_SIZE and load_relaxed_u32(&node.slots[offset + n]) == xa_mk_sibling(offset):
        n += 1
    return n


# -- nodes -----------------------------------------------------------------------------------------------------------

cdef inline void xas_update(XaState* xas, uint32_t node) noexcept nogil:
    if xas.update != NULL:
        xas.update(xas.pool, xas.xa, node)


cdef inline uint32_t xas_alloc(XaState* xas, uint32_t shift) noexcept nogil:
    cdef uint32_t number = xa_node_alloc(xas.pool, shift, xas.xa.owner)
    if number == NIL:
        xas_set_err(xas, -ENOMEM)
    return number


cdef inline void xas_set_head(XaState* xas, xa_entry entry, uint32_t shift) noexcept nogil:
    store_release_u64(&xas.xa.head, mk_head(entry, shift, head_generation(load_relaxed_u64(&xas.xa.head))))


cdef inline void xas_free_node(XaState* xas, uint32_t number) noexcept nogil:
    """Gives back a node that was unlinked."""
    cdef uint64_t head = load_relaxed_u64(&xas.xa.head)
    xas.pool.nodes[number].count = 0
    xas.pool.nodes[number].nr_values = 0
    xas_update(xas, number)
    store_release_u64(&xas.xa.head, mk_head(head_entry(head), head_shift(head), head_generation(head) + 1))
    xa_node_free(xas.pool, number)


cdef inline void xas_free_subtree(XaState* xas, uint32_t number) noexcept nogil:
    """Frees a node that was unlinked, and all below it."""
    cdef XaNode* node = &xas.pool.nodes[number]
    cdef xa_entry entry
    cdef int i
    if node.shift != 0:
        for i in range(XA_CHUNK_SIZE):
            entry = load_relaxed_u32(&node.slots[i])
            if xa_is_node(entry):
                store_release_u32(&node.slots[i], XA_RETRY_ENTRY)
                xas_free_subtree(xas, xa_to_node(entry))
    xas_free_node(xas, number)


cdef inline void xas_shrink(XaState* xas) noexcept nogil:
    """Hoists the only entry of the head node while it is in slot 0 and the head can hold it."""
    cdef uint64_t head
    cdef xa_entry entry
    cdef uint32_t number
    cdef XaNode* node
    while True:
        head = load_relaxed_u64(&xas.xa.head)
        if not xa_is_node(head_entry(head)):
            return
        number = xa_to_node(head_entry(head))
        node = &xas.pool.nodes[number]
        entry = load_relaxed_u32(&node.slots[0])
        if node.count != 1 or entry == 0:
            return
        if not xa_is_node(entry) and (node.shift != 0 or xa_is_internal(entry)):
            return
        if xa_is_node(entry):
            xas.pool.nodes[xa_to_node(entry)].parent = NIL
            xas.pool.nodes[xa_to_node(entry)].offset = 0
            xas_set_head(xas, entry, node.shift - XA_CHUNK_SHIFT)
        else:
            xas_set_head(xas, entry, 0)
        xas_free_node(xas, number)
        xas.node = XAS_BOUNDS
        if not xa_is_node(entry):
            return


cdef inline void xas_delete_empty(XaState* xas, uint32_t number) noexcept nogil:
    """Frees a node that became empty, then its parents while they do; then shrinks."""
    cdef XaNode* node
    cdef uint32_t parent
    while number != NIL and xas.pool.nodes[number].count == 0:
        node = &xas.pool.nodes[number]
        parent = node.parent
        if parent == NIL:
            xas_set_head(xas, 0, 0)
            xas.node = XAS_BOUNDS
        else:
            store_release_u32(&xas.pool.nodes[parent].slots[node.offset], 0)
            xas.pool.nodes[parent].count -= 1
            xas.node = parent
            xas.offset = node.offset
        xas_free_node(xas, number)
        number = parent
        if parent != NIL:
            xas_update(xas, parent)
    xas_shrink(xas)


cdef inline bint xas_expand(XaState* xas) noexcept nogil:
    """Grows the tree until it covers the cursor's range. False (error set) when nodes run out."""
    cdef uint64_t head = load_relaxed_u64(&xas.xa.head)
    cdef xa_entry entry = head_entry(head)
    cdef uint64_t max = xas_max(xas)
    cdef uint32_t shift = head_shift(head)
    cdef uint32_t number, mark
    cdef XaNode* node
    if entry == 0:
        while shift < xas.shift or max > node_max(shift):
            shift += XA_CHUNK_SHIFT
        number = xas_alloc(xas, shift)
        if number == NIL:
            return False
        xas_set_head(xas, xa_mk_node(number), shift)
        return True
    while not xa_is_node(entry) or shift < xas.shift or max > node_max(shift):
        if xa_is_node(entry):
            shift += XA_CHUNK_SHIFT
        number = xas_alloc(xas, shift)
        if number == NIL:
            return False
        node = &xas.pool.nodes[number]
        node.count = 1
        node.nr_values = xa_is_value(entry)
        store_release_u32(&node.slots[0], entry)
        for mark in range(XA_MAX_MARKS):
            if xas.xa.flags & (1 << mark):
                node.marks[mark] = 1
        if xa_is_node(entry):
            xas.pool.nodes[xa_to_node(entry)].parent = number
            xas.pool.nodes[xa_to_node(entry)].offset = 0
        else:
            xas_update(xas, number)
        entry = xa_mk_node(number)
        xas_set_head(xas, entry, shift)
    return True


cdef inline void xas_create_failed(XaState* xas, uint32_t number) noexcept nogil:
    """Takes back the empty nodes that a failed creation left."""
    cdef int error = xas.error
    if number != NIL:
        xas_delete_empty(xas, number)
    else:
        xas_shrink(xas)
    xas_set_err(xas, error)


cdef inline bint xas_create(XaState* xas) noexcept nogil:
    """Makes the path to the cursor's slot: `node` and `offset` then name it, or a larger entry that covers it."""
    cdef xa_entry entry
    cdef uint64_t head = load_relaxed_u64(&xas.xa.head)
    cdef uint32_t shift, number, child
    cdef XaNode* node
    if xas_max(xas) == 0 and not xa_is_node(head_entry(head)):
        xas.node = XAS_HEAD
        return True
    if not xas_expand(xas):
        xas_create_failed(xas, NIL)
        return False
    head = load_relaxed_u64(&xas.xa.head)
    shift = head_shift(head)
    number = xa_to_node(head_entry(head))
    while True:
        node = &xas.pool.nodes[number]
        xas.node = number
        xas.offset = (xas.index >> shift) & XA_CHUNK_MASK
        entry = load_relaxed_u32(&node.slots[xas.offset])
        if xa_is_sibling(entry):
            xas.offset = <uint8_t>xa_to_sibling(entry)
            return True
        if shift == xas.shift:
            xas.offset &= ~xas.sibs
            return True
        if entry != 0 and not xa_is_node(entry):
            return True
        shift -= XA_CHUNK_SHIFT
        if entry == 0:
            child = xas_alloc(xas, shift)
            if child == NIL:
                xas_create_failed(xas, number)
                return False
            xas.pool.nodes[child].parent = number
            xas.pool.nodes[child].offset = xas.offset
            store_release_u32(&node.slots[xas.offset], xa_mk_node(child))
            node.count += 1
            xas_update(xas, number)
            number = child
        else:
            number = xa_to_node(entry)


# -- marks -----------------------------------------------------------------------------------------------------------

cdef inline bint xas_at_entry(XaState* xas) noexcept nogil:
    """Whether the cursor is at an entry, which can carry marks, and not at nothing or above several entries. Goes from
    a sibling to the canonical slot."""
    cdef xa_entry entry = 0
    if xas.node == XAS_HEAD:
        entry = head_entry(load_relaxed_u64(&xas.xa.head))
    elif xas_is_node(xas):
        entry = xas_reload(xas)
    return entry != 0 and not xa_is_node(entry)


cdef inline bint xas_get_mark(XaState* xas, uint32_t mark) noexcept nogil:
    """Whether the current entry is marked (walk first)."""
    if not xas_at_entry(xas):
        return False
    if xas.node == XAS_HEAD:
        return (xas.xa.flags >> mark) & 1
    return (xas.pool.nodes[xas.node].marks[mark] >> xas.offset) & 1


cdef inline void xas_set_mark(XaState* xas, uint32_t mark) noexcept nogil:
    """Marks the current entry (walk first), and its parents up to the first that is marked already."""
    cdef uint32_t number, offset
    cdef XaNode* node
    if not xas_at_entry(xas):
        return
    number = xas.node
    offset = xas.offset
    while number != NIL:
        node = &xas.pool.nodes[number]
        if (node.marks[mark] >> offset) & 1:
            return
        node.marks[mark] |= <uint64_t>1 << offset
        offset = node.offset
        number = node.parent
    set_hint_u32(&xas.xa.flags, xas.xa.flags | <uint32_t>1 << mark)


cdef inline void xas_clear_mark_at(XaState* xas, uint32_t number, uint32_t offset, uint32_t mark) noexcept nogil:
    """Clears a mark, and in the parents while nothing below them is marked any more."""
    cdef XaNode* node
    while number != NIL:
        node = &xas.pool.nodes[number]
        if not (node.marks[mark] >> offset) & 1:
            return
        node.marks[mark] &= ~(<uint64_t>1 << offset)
        if node.marks[mark] != 0:
            return
        offset = node.offset
        number = node.parent
    set_hint_u32(&xas.xa.flags, xas.xa.flags & ~(<uint32_t>1 << mark))


cdef inline void xas_clear_mark(XaState* xas, uint32_t mark) noexcept nogil:
    """Unmarks the current entry (walk first), and its parents while nothing below them is marked any more."""
    if xas_at_entry(xas):
        xas_clear_mark_at(xas, xas.node, xas.offset, mark)


cdef inline void xas_init_marks(XaState* xas) noexcept nogil:
    """Clears all marks of the current entry (walk first)."""
    cdef uint32_t mark
    for mark in range(XA_MAX_MARKS):
        xas_clear_mark(xas, mark)


# -- storing ---------------------------------------------------------------------------------------------------------

cdef inline void xas_gather_marks(XaState* xas, XaNode* node, uint32_t nr_slots, bint keep) noexcept nogil:
    """Moves the marks of the slots that are overwritten to the canonical one, or clears them all."""
    cdef uint32_t mark
    cdef uint64_t run = ((<uint64_t>1 << nr_slots) - 1 if nr_slots < 64 else <uint64_t>-1) << xas.offset
    cdef uint64_t canonical = <uint64_t>1 << xas.offset
    for mark in range(XA_MAX_MARKS):
        if not node.marks[mark] & run:
            continue
        node.marks[mark] = (node.marks[mark] & ~run) | canonical
        if not keep:
            xas_clear_mark_at(xas, xas.node, xas.offset, mark)


cdef inline void xas_store_slots(XaState* xas, xa_entry entry) noexcept nogil:
    """Overwrites the slots at the cursor's position, and keeps counts, marks and subtrees in order."""
    cdef XaNode* node = &xas.pool.nodes[xas.node]
    cdef uint32_t number = xas.node
    cdef uint32_t offset = xas.offset
    cdef uint32_t nr_slots = slot_run(node, offset)
    cdef uint32_t i
    cdef int count_change = 0, value_change = 0
    cdef xa_entry first = load_relaxed_u32(&node.slots[offset])
    cdef xa_entry old, new
    cdef bint old_is_value = False
    if node.shift == xas.shift and xas.sibs + 1 > nr_slots:
        nr_slots = xas.sibs + 1
    xas_gather_marks(xas, node, nr_slots, entry != 0)
    for i in range(nr_slots):
        old = load_relaxed_u32(&node.slots[offset + i])
        new = entry if i == 0 or entry == 0 else xa_mk_sibling(offset)
        if not xa_is_sibling(old):
            old_is_value = xa_is_value(old)
        store_release_u32(&node.slots[offset + i], new)
        count_change += (new != 0) - (old != 0)
        value_change += xa_is_value(entry) - old_is_value
        if xa_is_node(old) and node.shift != 0:
            xas_free_subtree(xas, xa_to_node(old))
    if count_change != 0 or value_change != 0:
        node.count = <uint8_t>(node.count + count_change)
        node.nr_values = <uint8_t>(node.nr_values + value_change)
        xas_update(xas, number)
    if count_change < 0:
        xas_delete_empty(xas, number)
    elif xa_is_internal(first) and not xa_is_node(first):
        xas_shrink(xas)             # the slot was reserved, which may be all that kept it out of the head


cdef inline void xas_store_head(XaState* xas, xa_entry entry) noexcept nogil:
    """Replaces the whole array by one entry at index 0, or by nothing."""
    cdef xa_entry old = head_entry(load_relaxed_u64(&xas.xa.head))
    if entry == 0:
        set_hint_u32(&xas.xa.flags, xas.xa.flags & ~<uint32_t>((1 << XA_MAX_MARKS) - 1))
    xas_set_head(xas, entry, 0)
    if xa_is_node(old):
        xas_free_subtree(xas, xa_to_node(old))


cdef inline xa_entry xas_store(XaState* xas, xa_entry entry) noexcept nogil:
    """Stores an entry over the cursor's range, or erases what is there (0). The lock is held.  A smaller range than
    an existing entry's replaces that entry as a whole; a larger one replaces everything it covers.
    Returns the previous entry of the position; look at `xas_error` after storing something."""
    cdef xa_entry old
    if xas.error != 0:
        return 0
    if entry == 0:
        old = xas_load(xas)
        if xas.node == XAS_BOUNDS or (old == 0 and xas.sibs == 0):
            return old
        if xas_is_node(xas) and xas.pool.nodes[xas.node].shift == xas.shift:
            xas.offset &= ~xas.sibs
    else:
        if not xas_create(xas):
            return 0
        if xas.node == XAS_HEAD and xa_is_internal(entry) and not xas_reserve_head(xas):
            return 0
        old = (head_entry(load_relaxed_u64(&xas.xa.head)) if xas.node == XAS_HEAD
               else load_relaxed_u32(&xas.pool.nodes[xas.node].slots[xas.offset]))
    if xas.node == XAS_HEAD:
        xas_store_head(xas, entry)
    else:
        xas_store_slots(xas, entry)
    return 0 if xa_is_node(old) else old


cdef inline bint xas_reserve_head(XaState* xas) noexcept nogil:
    """The head never holds a reserved slot: makes a node for index 0."""
    cdef uint64_t head = load_relaxed_u64(&xas.xa.head)
    cdef uint32_t number
    cdef XaNode* node
    cdef uint32_t mark
    number = xas_alloc(xas, 0)
    if number == NIL:
        return False
    node = &xas.pool.nodes[number]
    if head_entry(head) != 0:
        node.count = 1
        node.nr_values = xa_is_value(head_entry(head))
        store_release_u32(&node.slots[0], head_entry(head))
        for mark in range(XA_MAX_MARKS):
            if xas.xa.flags & (1 << mark):
                node.marks[mark] = 1
    xas_set_head(xas, xa_mk_node(number), 0)
    xas.node = number
    xas.offset = 0
    return True
