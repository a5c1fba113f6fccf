"""Finding entries: the next present, the next marked, those in conflict with a range; stepping; pausing.

Each search descends from the head to the first slot at or after an index that holds something (or carries the mark):
within a node the mark bitmaps answer without looking at the slots.  The array's lock is held, and between two steps
the array was changed only through the cursor: after anything else pause, or set the cursor anew.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagecache.core.atomic cimport ctz64, load_relaxed_u32, load_relaxed_u64
from pagecache.core.xa_entry cimport (XA_CHUNK_MASK, XA_CHUNK_SHIFT, XA_CHUNK_SIZE, xa_entry, xa_is_node, xa_is_sibling,
                                      xa_to_node, xa_to_sibling)
from pagecache.core.xa_node cimport XaNode, head_entry, head_shift
from pagecache.core.xa_state cimport (XAS_BOUNDS, XAS_HEAD, XAS_RESTART, XaState, node_max, node_slot, slot_run,
                                      xas_is_node, xas_load)

cdef enum:
    ANY_MARK = 0xFF                 # search for presence


cdef inline uint64_t xas_entry_last(XaState* xas) noexcept nogil:
    """Last index of the entry the cursor is at."""
    cdef XaNode* node
    cdef uint32_t shift
    cdef uint64_t base, end
    if not xas_is_node(xas):
        return xas.index
    node = &xas.pool.nodes[xas.node]
    shift = node.shift
    base = xas.index & ~node_max(shift)
    end = xas.offset + slot_run(node, xas.offset)
    return base + ((end << shift) - 1)


cdef inline uint32_t next_slot(XaNode* node, uint32_t offset, uint32_t mark) noexcept nogil:
    """First slot at or after offset that holds an entry (or the mark); 64 if none."""
    cdef uint64_t bits
    cdef xa_entry entry
    if mark != ANY_MARK:
        bits = node.marks[mark] >> offset
        return offset + ctz64(bits) if bits else XA_CHUNK_SIZE
    while offset < XA_CHUNK_SIZE:
        entry = node_slot(node, offset)
        if entry != 0 and not xa_is_sibling(entry):
            return offset
        offset += 1
    return XA_CHUNK_SIZE


cdef inline xa_entry xas_search(XaState* xas, uint64_t start, uint64_t max, uint32_t mark) noexcept nogil:
    """Goes to the first entry whose range ends at or after `start` and begins at or before `max`.  Starting inside an
    entry finds that entry, with index = start. Returns it, or 0: then `node` is BOUNDS, index the first one outside
    the array or after max."""
    cdef uint64_t head = load_relaxed_u64(&xas.xa.head)
    cdef xa_entry entry = head_entry(head)
    cdef uint32_t shift, offset, found
    cdef uint64_t base, first
    cdef XaNode* node
    if not xa_is_node(entry):
        if entry != 0 and start == 0 and (mark == ANY_MARK or (xas.xa.flags >> mark) & 1):
            xas.node = XAS_HEAD
            xas.index = 0
            return entry
        xas.index = start if start > 0 else <uint64_t>(entry != 0)
        xas.node = XAS_BOUNDS
        return 0
    xas.index = start
    while True:                     # one descent for each subtree that has to be left
        entry = head_entry(head)
        shift = head_shift(head)
        if start > max or start > node_max(shift):
            xas.node = XAS_BOUNDS
            return 0
        while True:
            node = &xas.pool.nodes[xa_to_node(entry)]
            xas.node = xa_to_node(entry)
            base = start & ~node_max(shift)
            offset = (start >> shift) & XA_CHUNK_MASK
            entry = node_slot(node, offset)
            if xa_is_sibling(entry):
                offset = xa_to_sibling(entry)
            found = next_slot(node, offset, mark)
            if found == XA_CHUNK_SIZE:
                break
            entry = node_slot(node, found)
            first = base + (<uint64_t>found << shift)
            if first > max:
                xas.node = XAS_BOUNDS
                xas.index = first
                return 0
            if first > start:
                start = first
                xas.index = start
            if not xa_is_node(entry) or shift == 0:
                xas.offset = <uint8_t>found
                return entry
            shift -= XA_CHUNK_SHIFT
        start = base + node_max(shift) + 1
        xas.index = start
        if start == 0:
            xas.node = XAS_BOUNDS
            return 0


cdef inline xa_entry xas_continue(XaState* xas, uint64_t max, uint32_t mark) noexcept nogil:
    """Searches from the cursor (RESTART) or from behind the current entry."""
    cdef uint64_t start = xas.index
    if xas.error != 0 or xas.node == XAS_BOUNDS:
        return 0
    if xas.index > max:
        xas.node = XAS_BOUNDS
        return 0
    if xas.node != XAS_RESTART:
        start = xas_entry_last(xas) + 1
        if start == 0 or start > max:
            xas.index = start
            xas.node = XAS_BOUNDS
            return 0
    return xas_search(xas, start, max, mark)


cdef inline xa_entry xas_find(XaState* xas, uint64_t max) noexcept nogil:
    """The next present entry up to max: at or after the index at first, behind the current entry then."""
    return xas_continue(xas, max, ANY_MARK)


cdef inline xa_entry xas_find_marked(XaState* xas, uint64_t max, uint32_t mark) noexcept nogil:
    """The next marked entry up to max. When there is none: RESTART if max came first, BOUNDS if the array ended."""
    cdef xa_entry entry
    if xas.error != 0 or xas.node == XAS_BOUNDS:
        return 0
    entry = xas_continue(xas, max, mark)
    if entry == 0 and xas.index > max:
        xas.node = XAS_RESTART
    return entry


cdef inline xa_entry xas_find_conflict(XaState* xas) noexcept nogil:
    """The next entry that overlaps the cursor's range; each once, with `index` where the overlap begins. After the last
    one the cursor is where it was set to, so that a store then replaces them all."""
    cdef uint64_t start = xas.first
    cdef xa_entry entry = 0
    if xas.error != 0 or xas.node == XAS_BOUNDS:
        return 0
    if xas.node != XAS_RESTART:
        start = xas_entry_last(xas) + 1
    if xas.node == XAS_RESTART or (start != 0 and start <= xas.last):
        entry = xas_search(xas, start, xas.last, ANY_MARK)
    if entry == 0:
        xas.index = xas.first
        xas.node = XAS_BOUNDS
    return entry


cdef inline xa_entry xas_step_to(XaState* xas, uint64_t index) noexcept nogil:
    """Goes to an index whatever is there; a sibling is shown as such."""
    cdef xa_entry entry
    xas.index = index
    entry = xas_load(xas)
    if xas_is_node(xas) and xas.offset != ((index >> xas.pool.nodes[xas.node].shift) & XA_CHUNK_MASK):
        xas.offset = (index >> xas.pool.nodes[xas.node].shift) & XA_CHUNK_MASK
        return load_relaxed_u32(&xas.pool.nodes[xas.node].slots[xas.offset])
    return entry


cdef inline xa_entry xas_next(XaState* xas) noexcept nogil:
    """One index up (after RESTART: the index itself); wraps to 0."""
    if xas.error != 0:
        return 0
    return xas_step_to(xas, xas.index if xas.node == XAS_RESTART else xas.index + 1)


cdef inline xa_entry xas_prev(XaState* xas) noexcept nogil:
    """One index down (after RESTART: the index itself); wraps to the largest."""
    if xas.error != 0:
        return 0
    return xas_step_to(xas, xas.index if xas.node == XAS_RESTART else xas.index - 1)


cdef inline void xas_pause(XaState* xas) noexcept nogil:
    """Makes it safe to drop the lock inside an iteration: goes on behind the current entry."""
    if xas.error != 0 or xas.node == XAS_BOUNDS or xas.node == XAS_RESTART:
        return
    xas.index = xas_entry_last(xas) + 1
    xas.node = XAS_RESTART if xas.index != 0 else <uint32_t>XAS_BOUNDS
