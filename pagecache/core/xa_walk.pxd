"""The walk of the index in C, inlined wherever it is used."""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "core/xa_walk.h" nogil:
    uint32_t xa_walk_slot(const void* nodes, uint32_t node, uint64_t slot) noexcept
    uint32_t xa_walk_pointer(uint64_t head, const void* nodes, uint64_t index) noexcept
