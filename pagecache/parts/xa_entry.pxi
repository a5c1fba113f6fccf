"""What the Python classes of the index share: entries as cursors show them, checked arguments, errors, invariants."""
cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.number cimport PyNumber_Index
from libc.errno cimport EBUSY, ENOMEM
from libc.limits cimport UINT_MAX
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from pagecache.core.atomic cimport load_relaxed_u64
from pagecache.core.config cimport NIL
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.memory cimport memory_map, memory_unmap
from pagecache.core.workingset cimport shadow_node_index, workingset_update_node
from pagecache.core.xa_check cimport (XA_BAD_COUNT, XA_BAD_ENTRY, XA_BAD_HEAD, XA_BAD_LIST, XA_BAD_MARK, XA_BAD_NODE,
                                      XA_BAD_NR_VALUES, XA_BAD_OFFSET, XA_BAD_OWNER, XA_BAD_PARENT, XA_BAD_SHIFT,
                                      XA_BAD_SIBLING, XA_BAD_SUMMARY, XA_EMPTY_NODE, XA_NOT_SHRUNK, xa_check)
from pagecache.core.xa_entry cimport (XA_CHUNK_SHIFT, XA_NODES_MAX, XA_RETRY_ENTRY, XA_ZERO_ENTRY, xa_entry, xa_is_internal,
                                      xa_is_node, xa_is_pointer, xa_is_sibling, xa_is_value, xa_mk_value, xa_to_value)
from pagecache.core.xa_find cimport (ANY_MARK, xas_find, xas_find_conflict, xas_find_marked, xas_next, xas_pause,
                                     xas_prev)
from pagecache.core.xa_multi cimport xas_get_order, xas_split, xas_try_split
from pagecache.core.xa_node cimport (XA_MAX_MARKS, XaGroup, XaNode, XaPool, XaPoolHeader, XArray as CXArray, head_entry,
                                     head_shift)
from pagecache.core.xa_pool cimport pool_nr_groups, xa_pool_init
from pagecache.core.xa_state cimport (XAS_BOUNDS, XAS_HEAD, XAS_RESTART, XaState as CXaState,
                                      xas_clear_mark, xas_error, xas_get_mark, xas_init, xas_init_marks, xas_is_node,
                                      xas_load, xas_reload, xas_reset, xas_retry, xas_set, xas_set_err, xas_set_mark,
                                      xas_set_order, xas_store)
from pagecache.core.xarray cimport (xa_clear_mark, xa_destroy, xa_empty, xa_find, xa_find_after,
                                    xa_find_free, xa_get_mark, xa_get_order, xa_marked, xa_set_mark,
                                    xas_cmpxchg, xas_store_range)

if sizeof(XaNode) != 320 or sizeof(CXArray) != 24:
    raise ImportError("pagecache: the layout of index nodes is not what the engine was written for")

cdef enum:
    NODE_BYTES = 320
    NODE_ALIGNMENT = 4096
    MAX_NODES = XA_NODES_MAX
    VALUE_MAX = 0x7FFFFFFF
    ENTRY_ORDER_MAX = 63
    CURSOR_ORDER_MAX = 64           # erases everything
    MAX_HANDLES = (1 << 30) - 1

cdef uint64_t INDEX_MAX = <uint64_t>-1

cdef dict BROKEN_INVARIANTS = {
    XA_BAD_HEAD: "the head holds an entry or a shift it may not hold",
    XA_BAD_NODE: "a node is linked that is not in use, or below a leaf",
    XA_BAD_SHIFT: "a node's shift is not its level's",
    XA_BAD_PARENT: "a node's parent is not the node that links it",
    XA_BAD_OFFSET: "a node's offset is not the slot that links it",
    XA_BAD_OWNER: "a node belongs to another array",
    XA_EMPTY_NODE: "a node is empty",
    XA_BAD_COUNT: "a node's count is not the number of its entries",
    XA_BAD_NR_VALUES: "a node's nr_values is not the number of its values",
    XA_BAD_ENTRY: "an internal entry is stored",
    XA_BAD_SIBLING: "siblings do not follow their entry in an aligned run",
    XA_BAD_MARK: "a mark is set where no entry is",
    XA_BAD_SUMMARY: "a mark is not the sum of the marks below",
    XA_NOT_SHRUNK: "the tree has more levels than its entries need",
    XA_BAD_LIST: "a node on the shadow list holds something else than values",
}


@cython.final
cdef class _InternalEntry:
    """An entry of the engine's own, as a cursor shows it."""
    cdef str _name

    def __cinit__(self, str name):
        self._name = name

    def __repr__(self):
        return f"<XArray.{self._name}>"


cdef _InternalEntry SHOWN_RETRY = _InternalEntry("RETRY")
cdef _InternalEntry SHOWN_RESERVED = _InternalEntry("RESERVED")
cdef _InternalEntry SHOWN_SIBLING = _InternalEntry("SIBLING")
cdef _InternalEntry SHOWN_NODE = _InternalEntry("NODE")


@cython.final
@cython.no_gc_clear
cdef class EntryTable:
    """The entries an array holds, and the objects they stand for.

    Integers in range(2**31) are value entries. Other objects get the number of a *handle*, which counts the entries
    that name it: splitting an entry, or storing over a range, makes several of one.
    """
    cdef uint64_t nr_entries
    cdef list objects               # of each handle
    cdef list counts                # entries that name it
    cdef list free_handles

    def __cinit__(self):
        self.objects = []
        self.counts = []
        self.free_handles = []

    cdef xa_entry entry_of(self, object value) except? 0:
        """Returns the entry to store for a value: 0 for None; a new handle, named by no entry yet, for an object."""
        cdef uint32_t handle
        if value is None:
            return 0
        if type(value) is int and 0 <= value <= VALUE_MAX:
            return xa_mk_value(value)
        if isinstance(value, _InternalEntry):
            raise TypeError(f"{value!r} cannot be stored")
        if self.free_handles:
            handle = self.free_handles.pop()
        else:
            handle = len(self.objects)
            if handle >= MAX_HANDLES:
                raise OverflowError("too many objects")
            self.counts.append(0)
            self.objects.append(None)
        self.objects[handle] = value
        return handle + 1

    cdef object value_of(self, xa_entry entry):
        """Returns what a user sees of an entry."""
        if xa_is_value(entry):
            return xa_to_value(entry)
        if xa_is_pointer(entry):
            return self.objects[entry - 1]
        return None

    cdef object raw_value_of(self, xa_entry entry):
        """Returns what the user of a cursor sees of an entry."""
        if not xa_is_internal(entry):
            return self.value_of(entry)
        if entry == XA_ZERO_ENTRY:
            return SHOWN_RESERVED
        if xa_is_node(entry):
            return SHOWN_NODE
        return SHOWN_SIBLING if xa_is_sibling(entry) else SHOWN_RETRY

    cdef int hold(self, xa_entry entry, uint64_t nr) except -1:
        """Counts `nr` new entries."""
        if entry == 0 or xa_is_internal(entry):
            return 0
        self.nr_entries += nr
        if xa_is_pointer(entry):
            self.counts[entry - 1] += nr
        return 0

    cdef int drop(self, xa_entry entry) except -1:
        """Counts one entry less; the object goes with its last one. May run Python code."""
        cdef uint32_t handle
        if entry == 0 or xa_is_internal(entry):
            return 0
        self.nr_entries -= 1
        if xa_is_pointer(entry):
            handle = entry - 1
            self.counts[handle] -= 1
            if self.counts[handle] == 0:
                self.forget(entry)
        return 0

    cdef int forget(self, xa_entry entry) except -1:
        """Frees the handle of an object that no entry names. May run Python code."""
        cdef uint32_t handle = entry - 1
        if xa_is_pointer(entry) and self.counts[handle] == 0:
            value = self.objects[handle]
            self.objects[handle] = None
            self.free_handles.append(handle)
        return 0

    cdef int drop_all(self, list entries) except -1:
        for entry in entries:
            self.drop(entry)
        return 0


cdef inline uint64_t as_index(value) except? 0xFFFFFFFFFFFFFFFE:
    """Converts what is an integer (a float is none) in 0..2**64-1."""
    return PyNumber_Index(value)


cdef inline uint32_t check_order(order, uint32_t limit=ENTRY_ORDER_MAX) except? 0xFFFFFFFF:
    order = PyNumber_Index(order)
    if not 0 <= order <= limit:
        raise ValueError(f"order must be in 0..{limit}, not {order}")
    return order


cdef inline uint32_t check_mark(mark) except? 0xFFFFFFFF:
    mark = PyNumber_Index(mark)
    if not 0 <= mark < XA_MAX_MARKS:
        raise ValueError(f"mark must be in 0..{XA_MAX_MARKS - 1}, not {mark}")
    return mark


cdef object index_error(int error, uint64_t index):
    if error == -ENOMEM:
        return OSError(ENOMEM, f"no node left for index {index}")
    if error == -EBUSY:
        return OSError(EBUSY, f"index {index} is in use")
    return OSError(-error, f"the entry at index {index} does not allow this")
