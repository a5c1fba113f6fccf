"""The walk of the index in C, inlined wherever it is used."""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport pc_u64

cdef extern from "core/xa_walk.h" nogil:
    uint32_t xa_walk_load(const pc_u64* head, const void* nodes, uint64_t index) noexcept
