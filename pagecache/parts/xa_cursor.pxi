"""`XaCursor`: a position in an XArray, and what can be done from there."""


@cython.final
@cython.no_gc_clear
cdef class XaCursor:
    """A position in an XArray: an index, an order and, after an operation, the place in the tree where it ended.

    Made by XArray.cursor(). Unlike the array's own methods it shows everything: reserved slots, siblings of entries
    that cover several indices, nodes above entries that are smaller than its order (XArray.RESERVED, SIBLING, NODE),
    and XArray.RETRY where something was taken away under it.

    When others have changed the array, the next step goes on behind the cursor's index. An error sticks: all operations
    do nothing, until reset(), set() or set_order().

    Context: every method may be called from any thread; those that write take the array's lock.
    """
    cdef XArray _array
    cdef CXaState _xas
    cdef uint64_t _version          # of the array, when the place was right

    def __cinit__(self, XArray array not None, index=0, order=0):
        self._array = array
        array._init_cursor(&self._xas, as_index(index), check_order(order, CURSOR_ORDER_MAX))

    cdef void _catch_up(self) noexcept:
        """Walks again if the array changed since the last walk; siblings stay resolved to their entry."""
        if self._version != self._array._version and (xas_is_node(&self._xas) or self._xas.node == XAS_HEAD):
            xas_load(&self._xas)
        self._version = self._array._version

    # -- the position ------------------------------------------------------------------------------------------------

    @property
    def index(self):
        """The index it is at."""
        return self._xas.index

    @property
    def order(self):
        """The order of what it stores."""
        return self._xas.order

    @property
    def state(self):
        """Where the last operation ended: "restart" (nowhere yet), "bounds", "head", "node" or "error"."""
        if xas_is_node(&self._xas):
            return "node"
        if self._xas.node == XAS_RESTART:
            return "restart"
        if self._xas.node == XAS_BOUNDS:
            return "bounds"
        return "head" if self._xas.node == XAS_HEAD else "error"

    @property
    def error(self):
        """The errno that stopped it, or 0."""
        return -xas_error(&self._xas)

    @property
    def node_count(self):
        """Slots in use in the node it is at, siblings included; None if it is at no node."""
        return self._array._pool.nodes[self._xas.node].count if xas_is_node(&self._xas) else None

    @property
    def node_nr_values(self):
        """Slots of the node it is at that hold integers or their siblings; None if it is at no node."""
        return self._array._pool.nodes[self._xas.node].nr_values if xas_is_node(&self._xas) else None

    def set(self, index):
        """Move to `index`, with order 0."""
        cdef uint64_t at = as_index(index)
        with cython.critical_section(self._array):
            xas_set(&self._xas, at)

    def set_order(self, index, order):
        """Move to the aligned range of 2**order indices around `index`."""
        cdef uint64_t at = as_index(index)
        cdef uint32_t k = check_order(order, CURSOR_ORDER_MAX)
        with cython.critical_section(self._array):
            xas_set_order(&self._xas, at, k)

    def set_error(self, int errno):
        """Make all operations do nothing, as an error with this number does."""
        if errno <= 0:
            raise ValueError(f"errno must be positive, not {errno}")
        xas_set_err(&self._xas, -errno)

    def reset(self):
        """Forget the place in the tree, and an error; the index stays."""
        xas_reset(&self._xas)

    # -- reading -----------------------------------------------------------------------------------------------------

    cdef object _show(self, xa_entry entry):
        return self._array._table.raw_value_of(entry)

    def load(self):
        """Walk to the index and return what is there, or None. The index stays as it is inside a larger entry."""
        with cython.critical_section(self._array):
            self._version = self._array._version
            return self._show(xas_load(&self._xas))

    def reload(self):
        """Return what is in the current slot, without a walk: XArray.RETRY when the slot is no longer in the tree."""
        with cython.critical_section(self._array):
            return self._show(xas_reload(&self._xas))

    def retry(self, value):
        """Return whether to look again after getting `value`; after XArray.RETRY the cursor is reset, too."""
        with cython.critical_section(self._array):
            return xas_retry(&self._xas, XA_RETRY_ENTRY if value is SHOWN_RETRY else
                             XA_ZERO_ENTRY if value is SHOWN_RESERVED else 0)

    def get_order(self):
        """Return the order of the entry it is at (walk first)."""
        with cython.critical_section(self._array):
            self._catch_up()
            return xas_get_order(&self._xas)

    # -- storing -----------------------------------------------------------------------------------------------------

    def store(self, value):
        """Store `value` over the cursor's range; None erases. XArray.RESERVED and XArray.RETRY can be stored here.

        Returns: what was at the index before, or None; None if the cursor is stopped by an error.
        Raises: OSError(ENOMEM), then nothing has changed, and the error sticks.
        """
        cdef xa_entry entry
        if xas_error(&self._xas) != 0:
            return None
        if self._xas.order > ENTRY_ORDER_MAX and value is not None:
            raise ValueError(f"an entry has order {ENTRY_ORDER_MAX} at most")
        with cython.critical_section(self._array):
            if value is SHOWN_RESERVED:
                entry = XA_ZERO_ENTRY
            elif value is SHOWN_RETRY:
                entry = XA_RETRY_ENTRY
            else:
                entry = self._array._table.entry_of(value)
            old = self._array._store_at(&self._xas, entry, True)
            self._version = self._array._version
            return old

    def split(self):
        """Split the entry it is in into pieces of the cursor's order, as XArray.split.

        Raises: OSError(EINVAL), OSError(ENOMEM).
        """
        self._split(False)

    def try_split(self):
        """Split the entry it is in, if that takes at most one node.

        Raises: OSError(EINVAL) if it takes more, or as split; OSError(ENOMEM).
        """
        self._split(True)

    cdef int _split(self, bint one_node) except -1:
        cdef uint32_t order
        with cython.critical_section(self._array):
            order = xa_get_order(&self._array._xa, &self._array._pool, self._xas.index)
            self._array._split_at(&self._xas, order, one_node)
        return 0

    # -- marks -------------------------------------------------------------------------------------------------------

    def get_mark(self, mark):
        """Return whether the entry it is at carries the mark (walk first)."""
        cdef uint32_t m = check_mark(mark)
        with cython.critical_section(self._array):
            self._catch_up()
            return bool(xas_get_mark(&self._xas, m))

    def set_mark(self, mark):
        """Mark the entry it is at (walk first); nothing there, no effect."""
        cdef uint32_t m = check_mark(mark)
        with cython.critical_section(self._array):
            self._catch_up()
            futex_lock(&self._array._xa.lock)
            xas_set_mark(&self._xas, m)
            futex_unlock(&self._array._xa.lock)

    def clear_mark(self, mark):
        """Unmark the entry it is at (walk first)."""
        cdef uint32_t m = check_mark(mark)
        with cython.critical_section(self._array):
            self._catch_up()
            futex_lock(&self._array._xa.lock)
            xas_clear_mark(&self._xas, m)
            futex_unlock(&self._array._xa.lock)

    def init_marks(self):
        """Clear all marks of the entry it is at (walk first)."""
        with cython.critical_section(self._array):
            self._catch_up()
            futex_lock(&self._array._xa.lock)
            xas_init_marks(&self._xas)
            futex_unlock(&self._array._xa.lock)

    # -- moving ------------------------------------------------------------------------------------------------------

    def find(self, max=INDEX_MAX):
        """Go to the next entry up to `max`, beginning with the index itself, and return it; None: there is none."""
        cdef uint64_t last = as_index(max)
        with cython.critical_section(self._array):
            self._catch_up()
            return self._show(xas_find(&self._xas, last))

    def find_marked(self, mark, max=INDEX_MAX):
        """Go to the next entry up to `max` that carries the mark, beginning with the index itself, and return it."""
        cdef uint64_t last = as_index(max)
        cdef uint32_t m = check_mark(mark)
        with cython.critical_section(self._array):
            self._catch_up()
            return self._show(xas_find_marked(&self._xas, last, m))

    def find_conflict(self):
        """Go to the next entry that overlaps the range the cursor was set to, and return it; None behind the last one: the
        cursor is where it was set to then, and `store` replaces all of them."""
        with cython.critical_section(self._array):
            self._catch_up()
            return self._show(xas_find_conflict(&self._xas))

    def next(self):
        """Go one index up, whatever is there, from 2**64-1 to 0, and return it. A reset cursor stays where it is."""
        with cython.critical_section(self._array):
            self._version = self._array._version
            return self._show(xas_next(&self._xas))

    def prev(self):
        """Go one index down, whatever is there, from 0 to 2**64-1, and return it. A reset cursor stays where it is."""
        with cython.critical_section(self._array):
            self._version = self._array._version
            return self._show(xas_prev(&self._xas))

    def pause(self):
        """Leave the tree, so that an iteration with find or find_marked can go on behind the current entry later."""
        with cython.critical_section(self._array):
            self._catch_up()
            xas_pause(&self._xas)


# -- readers against writers -------------------------------------------------------------------------------------------

cdef struct HammerCounts:
    uint64_t nr_hits
    uint64_t nr_absent
    uint64_t nr_retries             # loads that met something in motion
    uint64_t nr_strangers           # loads of a value of another place
    uint64_t nr_wrong               # of these, under the lock: nothing may be wrong
    uint64_t nr_backwards           # hits that were older than an earlier one


cdef inline bint belongs(xa_entry entry, uint64_t index, uint32_t version_bits) noexcept nogil:
    return xa_is_value(entry) and xa_to_value(entry) >> version_bits == index


cdef void hammer(CXArray* xa, XaPool* pool, uint64_t* indices, uint32_t* newest, size_t nr_indices, uint64_t rounds,
                 uint32_t version_bits, HammerCounts* counts) noexcept nogil:
    cdef CXaState xas
    cdef xa_entry entry
    cdef uint32_t value
    cdef uint64_t i
    cdef size_t k = 0
    for i in range(rounds):
        entry = xa_load(xa, pool, indices[k])
        if entry != 0 and not belongs(entry, indices[k], version_bits):
            counts.nr_retries += entry == XA_RETRY_ENTRY
            counts.nr_strangers += entry != XA_RETRY_ENTRY
            futex_lock(&xa.lock)
            xas_init(&xas, xa, pool, indices[k], 0)
            entry = xas_load(&xas)
            futex_unlock(&xa.lock)
            counts.nr_wrong += entry != 0 and not belongs(entry, indices[k], version_bits)
        if entry == 0:
            counts.nr_absent += 1
        else:
            value = xa_to_value(entry)
            counts.nr_hits += 1
            counts.nr_backwards += value < newest[k]
            newest[k] = value
        k = k + 1 if k + 1 < nr_indices else 0


def _hammer_load(XArray array not None, indices, uint64_t rounds, uint32_t version_bits=10):
    """Load `indices` in turn, `rounds` times in all, without the lock and the GIL, while others store.

    Stored values must be index << version_bits | version, with versions that only grow. What is in motion, or has
    another index, is looked up again under the lock.

    Returns: a dict of counts: hits, absent, retries, strangers, and the mistakes: wrong, backwards.
    Context: for tests.
    """
    cdef HammerCounts counts
    cdef list wanted = list(indices)
    cdef size_t n = len(wanted), i
    if n == 0:
        raise ValueError("no indices")
    cdef uint64_t* places = <uint64_t*>PyMem_Calloc(n, sizeof(uint64_t))
    cdef uint32_t* newest = <uint32_t*>PyMem_Calloc(n, sizeof(uint32_t))
    try:
        if places == NULL or newest == NULL:
            raise MemoryError
        for i in range(n):
            places[i] = wanted[i]
        memset(&counts, 0, sizeof(counts))
        with nogil:
            hammer(&array._xa, &array._pool, places, newest, n, rounds, version_bits, &counts)
    finally:
        PyMem_Free(places)
        PyMem_Free(newest)
    return {"hits": counts.nr_hits, "absent": counts.nr_absent, "retries": counts.nr_retries,
            "strangers": counts.nr_strangers, "wrong": counts.nr_wrong, "backwards": counts.nr_backwards}
