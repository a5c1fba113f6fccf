"""XArray nodes: the data layout every other xa_ file works on.

Head (one 64-bit word, so that a reader gets entry and shift together)
    bits 0..31 entry, bits 32..39 shift of the node if the entry is one, bits 40..63 generation: counts the nodes that
    were taken out of the array, so that a reader can tell whether it may have stood in one of them

Node (320 bytes = 5 cache lines; the 64 slots are the first four, so a walk touches one line a level)
    slots[64] | marks[3] (64-bit bitmaps) | shift offset count nr_values | parent owner | links of free or shadow list

Benefits: half the size of pointer nodes, so live index plus as many shadows as pages fit into 0.24 % of the cached
bytes; position independent; a walk reads head and slots only, never a node's header.
Costs: values have 31 bits, pointers 30; XA_NODES_MAX (2**30 / 5, 214 million) nodes at most.

Nodes are type-stable: a slot array is always a slot array, so a reader without a lock may stand in a node that was
freed or reused meanwhile. What it finds there may belong to another place or array: the owner of the entries
validates what it got (a folio knows its mapping and index) or looks again under the lock. Freed nodes keep retry
entries in their slots until they are reused.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagecache.core.atomic cimport pc_u32, pc_u64
from pagecache.core.lock cimport FutexLock
from pagecache.core.xa_entry cimport xa_entry

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
    uint32_t list_next              # shadow-node list, or its group's free list while free
    uint32_t on_list                # 1 while on the shadow-node list
    uint32_t[4] unused

ctypedef struct XaGroup:            # of 64 nodes (xa_pool.pxd)
    uint32_t free_first             # list of its free nodes, through list_next
    uint32_t nr_free
    uint32_t prev
    uint32_t next

ctypedef struct XaPoolHeader:       # lives in the segment beside the nodes
    FutexLock lock                   # guards everything here; innermost
    uint32_t nr_nodes               # capacity; fixed
    uint32_t nr_used
    uint32_t nr_spare               # free nodes of open groups
    uint32_t nr_groups              # that were ever open; those behind were never touched
    uint32_t nr_away                # of those: whose memory is the system's
    uint32_t nr_empty               # open groups whose nodes are all free
    uint32_t partial_first          # open groups with some free nodes; nodes are taken from the first
    uint32_t partial_last
    uint32_t empty_first            # open groups with nothing but free nodes, through next
    uint32_t away_first             # groups that are away, through next
    uint32_t opens_groups           # 1: a thread that needs a node opens a group
    uint32_t shadow_head            # nodes that hold only values: oldest first
    uint32_t shadow_tail
    uint32_t nr_shadow_nodes
    uint32_t fail_countdown         # fault injection: the n-th coming allocation fails; 0 = off

ctypedef struct XaPool:             # a process's view of a pool
    XaPoolHeader* header
    XaNode* nodes
    XaGroup* groups

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
