/* The walk of the index that a lookup's time consists of, inlined wherever it is used: up to three levels, a pointer at the
 * end.
 *
 * It takes what a processor can do of each kind in a cycle: few shifts, so a node's address is made of its entry with the
 * class bits in place, and ranges are compared instead of shifted away (see xa_node.pxd for the layout). */
#ifndef PC_XA_WALK_H
#define PC_XA_WALK_H
#include <stddef.h>
#include <stdint.h>

enum { XA_WALK_SHIFT = 6, XA_WALK_MASK = 63, XA_WALK_NODE_BYTES = 320, XA_WALK_SIBLING_MAX = 62 };
#define XA_WALK_FIRST_NODE ((1025u << 2) | 2)

static inline __attribute__((always_inline)) int xa_walk_is_node(uint32_t entry) {
    return (entry & 3) == 2 && entry >= XA_WALK_FIRST_NODE;
}

/* A slot of the node that an entry stands for. */
static inline __attribute__((always_inline)) uint32_t xa_walk_slot(const void *nodes, uint32_t node, uint64_t slot) {
    const char *slots = (const char *)nodes + (size_t)node * (XA_WALK_NODE_BYTES / 4);
    slots -= (size_t)XA_WALK_FIRST_NODE * (XA_WALK_NODE_BYTES / 4);
    return __atomic_load_n((const uint32_t *)slots + slot, __ATOMIC_ACQUIRE);
}

/* The pointer stored at an index of an array with this head; 0 if there is none, or if the array has more levels. */
static inline __attribute__((always_inline)) uint32_t xa_walk_pointer(uint64_t head, const void *nodes, uint64_t index) {
    const uint64_t shift = head & (uint64_t)0xFF << 32;
    uint32_t node = (uint32_t)head, entry = node;
    if (__builtin_expect(!xa_walk_is_node(node), 0)) return 0;
    if (shift == (uint64_t)(2 * XA_WALK_SHIFT) << 32 && index < (uint64_t)1 << (3 * XA_WALK_SHIFT)) {
        entry = xa_walk_slot(nodes, node, index >> (2 * XA_WALK_SHIFT));
    } else if (shift == 0 && index <= XA_WALK_MASK) {
        entry = xa_walk_slot(nodes, node, index);
        goto found;
    } else if (shift != (uint64_t)XA_WALK_SHIFT << 32 || index >= 1 << (2 * XA_WALK_SHIFT)) {
        return 0;
    }
    if (__builtin_expect(xa_walk_is_node(entry), 1)) {
        node = entry;
        entry = xa_walk_slot(nodes, node, (index >> XA_WALK_SHIFT) & XA_WALK_MASK);
        if (__builtin_expect(xa_walk_is_node(entry), 1)) {
            node = entry;
            entry = xa_walk_slot(nodes, node, index & XA_WALK_MASK);
        }
    }
found:
    if (__builtin_expect((entry & 3) == 0, 1)) return entry;
    if ((entry & 3) != 2 || entry > ((XA_WALK_SIBLING_MAX << 2) | 2)) return 0;
    entry = xa_walk_slot(nodes, node, entry >> 2);
    return (entry & 3) == 0 ? entry : 0;
}
#endif
