"""XArray nodes and the pool they come from: the data layout every other xa_ file works on.

Head (one 64-bit word, so that a reader gets entry and shift together)
    bits 0..31 entry, bits 32..39 shift of the node if the entry is one, bits 40..63 generation: counts the nodes that
    were taken out of the array, so that a reader can tell whether it may have stood in one of them

Node (320 bytes = 5 cache lines; the 64 slots are the first four, so a walk touches one line a level)
    slots[64] | marks[3] (64-bit bitmaps) | shift offset count nr_values | parent owner | links of free or shadow list

Benefits: half the size of pointer nodes, so live index plus as many shadows as pages fit into 0.24 % of the cached
bytes; position independent; a walk reads head and slots only, never a node's header.
Costs: values have 31 bits, pointers 30; 2**27 nodes at most.

Nodes are type-stable: a slot array is always a slot array, so a reader without a lock may stand in a node that was
freed or reused meanwhile. What it finds there may belong to another place or array: the owner of the entries
validates what it got (a folio knows its mapping and index) or looks again under the lock. Freed nodes keep retry
entries in their slots until they are reused.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagecache.core.atomic cimport (pc_u32, pc_u64, fence_release, load_relaxed_u32, set_hint_u32,
                                    store_relaxed_u32, store_release_u32)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport NIL
from pagecache.core.lock cimport FutexLock, futex_lock, futex_unlock
from pagecache.core.xa_entry cimport XA_CHUNK_SIZE, XA_RETRY_ENTRY, xa_entry

cdef enum:
    XA_MAX_MARKS = 3
    HEAD_GENERATION_SHIFT = 40

ctypedef struct XaNode:
    pc_u32[64] slots                # written under the array's lock, read by anyone
    uint64_t[3] marks               # under the array's lock
    uint8_t shift                   # bits of index below this node
    uint8_t offset                  # slot in the parent
    uint8_t count                   # slots that are not NULL, siblings included
    uint8_t nr_values               # slots that hold values or siblings of values
    uint32_t parent                 # node, NIL at the head
    uint32_t owner                  # cookie of the array (mapping number); NIL when free
    uint32_t list_prev              # shadow-node list
    uint32_t list_next              # shadow-node list, or free list while free
    uint32_t on_list                # 1 while on the shadow-node list
    uint32_t[4] unused

ctypedef struct XaPoolHeader:       # lives in the segment beside the nodes
    FutexLock lock                   # guards everything here; innermost
    uint32_t nr_nodes               # capacity; fixed
    uint32_t nr_used
    uint32_t nr_touched             # nodes ever used; those beyond were never touched
    uint32_t free_head              # list of freed nodes below nr_touched, through list_next
    uint32_t shadow_head            # nodes that hold only values: oldest first
    uint32_t shadow_tail
    uint32_t nr_shadow_nodes
    uint32_t fail_countdown         # fault injection: the n-th coming allocation fails; 0 = off

ctypedef struct XaPool:             # a process's view of a pool
    XaPoolHeader* header
    XaNode* nodes

ctypedef struct XArray:
    pc_u64 head
    FutexLock lock                   # xa_lock
    uint32_t flags                  # bits 0..2: array-wide marks; others owned by xarray.pxd
    uint32_t owner                  # cookie copied into each node
    uint32_t unused


# -- head ------------------------------------------------------------------------------------------------------------

cdef inline xa_entry head_entry(uint64_t head) noexcept nogil:
    return <xa_entry>head

cdef inline uint32_t head_shift(uint64_t head) noexcept nogil:
    return <uint32_t>(head >> 32) & 0xFF

cdef inline uint64_t head_generation(uint64_t head) noexcept nogil:
    return head >> HEAD_GENERATION_SHIFT

cdef inline uint64_t mk_head(xa_entry entry, uint32_t shift, uint64_t generation) noexcept nogil:
    return entry | (<uint64_t>shift << 32) | (generation << HEAD_GENERATION_SHIFT)


# -- pool ------------------------------------------------------------------------------------------------------------

cdef inline void xa_pool_init(XaPoolHeader* header, uint32_t nr_nodes) noexcept nogil:
    header.nr_nodes = nr_nodes
    header.nr_used = 0
    header.nr_touched = 0
    header.free_head = NIL
    header.shadow_head = NIL
    header.shadow_tail = NIL
    header.nr_shadow_nodes = 0
    header.fail_countdown = 0


cdef inline uint32_t xa_node_alloc(XaPool* pool, uint32_t shift, uint32_t owner) noexcept nogil:
    """Takes an empty node. Returns its number, or NIL when all are in use."""
    cdef XaPoolHeader* header = pool.header
    cdef XaNode* node
    cdef uint32_t number = NIL
    cdef int i
    futex_lock(&header.lock)
    if header.fail_countdown != 0:
        header.fail_countdown -= 1
        if header.fail_countdown == 0:
            futex_unlock(&header.lock)
            return NIL
    if header.free_head != NIL:
        number = header.free_head
        header.free_head = pool.nodes[number].list_next
    elif header.nr_touched < header.nr_nodes:
        number = header.nr_touched
        header.nr_touched += 1
    if number != NIL:
        set_hint_u32(&header.nr_used, header.nr_used + 1)
    futex_unlock(&header.lock)
    if number == NIL:
        return NIL
    node = &pool.nodes[number]
    fence_release()                 # a reader of one of these zeros also sees the generation of the node's former array
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
    node.list_next = pool.header.free_head
    pool.header.free_head = number
    set_hint_u32(&pool.header.nr_used, pool.header.nr_used - 1)
    futex_unlock(&pool.header.lock)


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
