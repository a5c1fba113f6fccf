/* The walk of the index that a lookup's time consists of, inlined wherever it is used; see xa_entry.pxd and xa_node.pxd
 * for the layout.
 *
 * It takes what a processor can do of each kind in a cycle: one subtraction gives a node's place and, compared once, tells
 * that the entry is a node; up to three levels are without a loop, in the order in which they are likely. */
#ifndef PC_XA_WALK_H
#define PC_XA_WALK_H
#include <stdint.h>
#include "atomic.h"
#include "xa_entry.h"

#define XA_WALK_LIKELY(condition) __builtin_expect(!!(condition), 1)

/* A slot of the node that an entry stands for. */
XA_ENTRY_INLINE uint32_t xa_walk_slot(const void *nodes, uint32_t node, uint64_t slot) {
    const char *slots = (const char *)nodes + (uint64_t)(node - XA_NODE_FIRST) * XA_LINE_BYTES;
    return __atomic_load_n((const uint32_t *)slots + slot, __ATOMIC_ACQUIRE);
}

/* The pointer stored at an index of an array with this head; 0 if there is none, or if the array has more levels. */
XA_ENTRY_INLINE uint32_t xa_walk_pointer(uint64_t head, const void *nodes, uint64_t index) {
    const uint32_t shift = (uint32_t)(head >> 32) & 0xFF;       /* not 0: the head is a node */
    uint32_t node = (uint32_t)head, entry;
    if (XA_WALK_LIKELY(shift == 2 * XA_CHUNK_SHIFT)) {
        if (!XA_WALK_LIKELY(index < (uint64_t)1 << 3 * XA_CHUNK_SHIFT)) return 0;
        entry = xa_walk_slot(nodes, node, index >> 2 * XA_CHUNK_SHIFT);
        if (!XA_WALK_LIKELY(xa_is_node(entry))) goto found;
        node = entry;
    } else if (shift == 0) {
        if (!xa_is_node(node) || index > XA_CHUNK_MASK) return 0;
        entry = xa_walk_slot(nodes, node, index);
        goto found;
    } else if (shift != XA_CHUNK_SHIFT || index >= 1 << 2 * XA_CHUNK_SHIFT) {
        return 0;
    }
    entry = xa_walk_slot(nodes, node, (index >> XA_CHUNK_SHIFT) & XA_CHUNK_MASK);
    if (XA_WALK_LIKELY(xa_is_node(entry))) {
        node = entry;
        entry = xa_walk_slot(nodes, node, index & XA_CHUNK_MASK);
    }
found:
    if (XA_WALK_LIKELY(xa_is_pointer(entry))) return entry;
    if (!xa_is_sibling(entry)) return 0;
    entry = xa_walk_slot(nodes, node, entry & XA_CHUNK_MASK);
    return xa_is_pointer(entry) ? entry : 0;
}

/* What `xa_load` returns, of arrays of any height and entries of all kinds. */
static __attribute__((noinline, cold, unused))
uint32_t xa_walk_any(const pc_u64 *at, const void *nodes, uint64_t index) {
    const uint64_t head = load_acquire_u64(at);
    uint32_t node = (uint32_t)head, entry, shift = (uint32_t)(head >> 32) & 0xFF;
    if (!xa_is_node(node)) return index == 0 ? node : 0;
    if (index >> shift > XA_CHUNK_MASK) return 0;
    for (;;) {
        entry = xa_walk_slot(nodes, node, (index >> shift) & XA_CHUNK_MASK);
        if (!xa_is_node(entry)) break;
        if (shift == 0) return XA_RETRY_ENTRY;
        shift -= XA_CHUNK_SHIFT;
        node = entry;
    }
    if (xa_is_sibling(entry)) {
        entry = xa_walk_slot(nodes, node, entry & XA_CHUNK_MASK);
        if (xa_is_internal(entry)) return XA_RETRY_ENTRY;
    }
    if (entry != 0) return entry;
    /* absent, or nodes were taken out of the array since its head was read */
    return load_acquire_u64(at) >> 40 == head >> 40 ? 0 : XA_RETRY_ENTRY;
}

XA_ENTRY_INLINE uint32_t xa_walk_load(const pc_u64 *at, const void *nodes, uint64_t index) {
    const uint32_t entry = xa_walk_pointer(load_acquire_u64(at), nodes, index);
    return XA_WALK_LIKELY(entry != 0) ? entry : xa_walk_any(at, nodes, index);
}

/* A macro, as a function that calls it would not always be inlined. */
#define xa_load(xa, pool, index) xa_walk_load(&(xa)->head, (pool)->nodes, (index))
#endif
