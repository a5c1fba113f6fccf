"""What is stored in an index: 32-bit entries.

Entry (32 bits, a class is a range)
    0                  absent
    1 .. 2**30 - 1     pointer: a code of the owner's (a folio entry, an object handle)
    2**30 + n          internal: n = 0..62 sibling (slot of the canonical entry in the same node), 256 retry,
                       257 zero (reserved), 1024 + 5 * i the node i of the pool, 5 cache lines each
    2**31 ..           value: 31-bit unsigned integer
A walk subtracts the first node's entry: the difference is the node's place in cache lines, and one comparison of it
says that it is a node's.
"""
from libc.stdint cimport uint32_t

ctypedef uint32_t xa_entry

cdef extern from "core/xa_entry.h" nogil:
    enum:
        XA_CHUNK_SHIFT
        XA_CHUNK_SIZE
        XA_CHUNK_MASK
        XA_SIBLING_MAX
        XA_NODE_LINES               # from a node's entry to the next one's
        XA_NODES_MAX                # nodes that entries can stand for
    const xa_entry XA_INTERNAL_FIRST
    const xa_entry XA_RETRY_ENTRY
    const xa_entry XA_ZERO_ENTRY
    const xa_entry XA_NODE_FIRST
    const xa_entry XA_VALUE_FIRST
    bint xa_is_pointer(xa_entry entry) noexcept
    bint xa_is_internal(xa_entry entry) noexcept
    bint xa_is_sibling(xa_entry entry) noexcept
    bint xa_is_node(xa_entry entry) noexcept
    bint xa_is_value(xa_entry entry) noexcept


cdef inline xa_entry xa_mk_value(uint32_t value) noexcept nogil:
    return value | XA_VALUE_FIRST

cdef inline uint32_t xa_to_value(xa_entry entry) noexcept nogil:
    return entry & ~XA_VALUE_FIRST

cdef inline xa_entry xa_mk_sibling(uint32_t slot) noexcept nogil:
    return XA_INTERNAL_FIRST + slot

cdef inline uint32_t xa_to_sibling(xa_entry entry) noexcept nogil:
    return entry & XA_CHUNK_MASK

cdef inline xa_entry xa_mk_node(uint32_t node) noexcept nogil:
    return XA_NODE_FIRST + XA_NODE_LINES * node

cdef inline uint32_t xa_to_node(xa_entry entry) noexcept nogil:
    return (entry - XA_NODE_FIRST) // XA_NODE_LINES
