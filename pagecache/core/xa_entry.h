/* What a 32-bit index entry is: a class is a range (the table is in xa_entry.pxd). */
#ifndef PC_XA_ENTRY_H
#define PC_XA_ENTRY_H
#include <stdint.h>

#define XA_ENTRY_INLINE static inline __attribute__((always_inline))

enum { XA_CHUNK_SHIFT = 6, XA_CHUNK_SIZE = 1 << XA_CHUNK_SHIFT, XA_CHUNK_MASK = XA_CHUNK_SIZE - 1 };
enum { XA_SIBLING_MAX = XA_CHUNK_SIZE - 2, XA_LINE_BYTES = 64, XA_NODE_LINES = 5 };
#define XA_INTERNAL_FIRST (1u << 30)
#define XA_RETRY_ENTRY (XA_INTERNAL_FIRST + 256)
#define XA_ZERO_ENTRY (XA_INTERNAL_FIRST + 257)
#define XA_NODE_FIRST (XA_INTERNAL_FIRST + 1024)
#define XA_VALUE_FIRST (1u << 31)
enum { XA_NODES_MAX = (XA_VALUE_FIRST - XA_NODE_FIRST) / XA_NODE_LINES };

XA_ENTRY_INLINE int xa_is_pointer(uint32_t entry) { return entry - 1 < XA_INTERNAL_FIRST - 1; }
XA_ENTRY_INLINE int xa_is_internal(uint32_t entry) {
    return entry - XA_INTERNAL_FIRST < XA_VALUE_FIRST - XA_INTERNAL_FIRST;
}
XA_ENTRY_INLINE int xa_is_sibling(uint32_t entry) { return entry - XA_INTERNAL_FIRST <= XA_SIBLING_MAX; }
XA_ENTRY_INLINE int xa_is_node(uint32_t entry) { return entry - XA_NODE_FIRST < XA_VALUE_FIRST - XA_NODE_FIRST; }
XA_ENTRY_INLINE int xa_is_value(uint32_t entry) { return entry >= XA_VALUE_FIRST; }
#endif
