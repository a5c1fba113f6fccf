"""The walk of the index in C, inlined wherever it is used.

`xa_load` returns what is stored at an index, without a lock and without reading a node's header: NULL, a value, a pointer,
or an internal entry: reserved, or XA_RETRY_ENTRY when the walk met something in motion.  A NULL was true at some moment of
the call.  An entry may belong to another place if its own was changed meanwhile: the owner of the entries recognises that,
and looks again under the lock.
"""
from libc.stdint cimport uint64_t
from pagecache.core.xa_entry cimport xa_entry
from pagecache.core.xa_node cimport XaPool, XArray

cdef extern from "core/xa_walk.h" nogil:
    xa_entry xa_load(XArray* xa, XaPool* pool, uint64_t index) noexcept
