"""`XArray`: the engine's folio index as a sparse array of Python objects.

The entry table changes only inside the object's critical section, which covers each method as a whole.  The array's
lock is held around the engine calls that write (against readers in other threads that have left the GIL), and never
while Python code may run: objects are let go of when the array is in order again.
"""

cdef class XaCursor


cdef size_t pool_bytes(uint32_t nr_nodes) noexcept:
    """Of a pool of an array's own: nodes, then groups."""
    return max(<size_t>nr_nodes, 1) * NODE_BYTES + pool_nr_groups(nr_nodes) * sizeof(XaGroup)


@cython.final
@cython.no_gc_clear
cdef class XArray:
    """A sparse array of objects: indices 0..2**64-1, three marks per entry, entries that cover 2**order indices.

    The same code that indexes the folios of an address space, with a pool of nodes of its own: `nr_nodes` is the most
    it ever uses (320 bytes each; address space is reserved, memory is taken as nodes are used). Absent entries read
    as None, so None cannot be stored: storing it erases. Iterating gives the first index of each entry, ascending.

    Raises OSError with errno ENOMEM from operations that store when no node is left; nothing has changed then.
    Context: every method may be called from any thread.
    """
    cdef CXArray _xa
    cdef XaPoolHeader _header
    cdef XaPool _pool
    cdef EntryTable _table
    cdef uint64_t _version          # counts changes, so that a cursor sees when its place is out of date

    RETRY = SHOWN_RETRY
    RESERVED = SHOWN_RESERVED
    SIBLING = SHOWN_SIBLING
    NODE = SHOWN_NODE

    def __cinit__(self, *, nr_nodes=1 << 20):
        if not 0 <= nr_nodes <= MAX_NODES:
            raise ValueError(f"nr_nodes must be in 0..{MAX_NODES}, not {nr_nodes}")
        self._table = EntryTable()
        self._pool.header = &self._header
        self._pool.nodes = <XaNode*>memory_map(pool_bytes(nr_nodes), NODE_ALIGNMENT, -1)
        if self._pool.nodes == NULL:
            raise MemoryError(f"no address space for {nr_nodes} nodes")
        self._pool.groups = <XaGroup*>(self._pool.nodes + <size_t>nr_nodes)
        xa_pool_init(&self._header, nr_nodes, True)

    def __dealloc__(self):
        if self._pool.nodes != NULL:
            memory_unmap(self._pool.nodes, pool_bytes(self._header.nr_nodes))

    # -- what the methods share ----------------------------------------------------------------------------------------

    cdef list _entries_in(self, uint64_t first, uint64_t last):
        """Returns the entries that overlap a range."""
        cdef list entries = []
        cdef CXaState xas
        cdef xa_entry entry
        xas_init(&xas, &self._xa, &self._pool, first, 0)
        xas.last = last
        entry = xas_find_conflict(&xas)
        while entry != 0:
            entries.append(entry)
            entry = xas_find_conflict(&xas)
        return entries

    cdef xa_entry _load(self, uint64_t index) noexcept:
        """Loads without the lock, and under it if that met something in motion."""
        cdef CXaState xas
        cdef xa_entry entry = xa_load(&self._xa, &self._pool, index)
        if entry == XA_RETRY_ENTRY:
            futex_lock(&self._xa.lock)
            xas_init(&xas, &self._xa, &self._pool, index, 0)
            entry = xas_load(&xas)
            futex_unlock(&self._xa.lock)
        return entry

    cdef void _init_cursor(self, CXaState* xas, uint64_t index, uint32_t order) noexcept:
        xas_init(xas, &self._xa, &self._pool, index, order)
        xas.update = workingset_update_node

    cdef object _store_at(self, CXaState* xas, xa_entry entry, bint raw):
        """Stores through a cursor, and keeps the counts of entries and objects. Returns the previous value."""
        cdef xa_entry old
        cdef uint64_t index = xas.index
        cdef uint64_t size = (<uint64_t>1 << xas.order) - 1 if xas.order < 64 else INDEX_MAX
        cdef list gone = None
        if xas.order != 0:
            gone = self._entries_in(index & ~size, index | size)
        futex_lock(&self._xa.lock)
        old = xas_store(xas, entry)
        futex_unlock(&self._xa.lock)
        self._finish(xas, index, entry)
        self._table.hold(entry, 1)
        value = self._table.raw_value_of(old) if raw else self._table.value_of(old)
        if gone is None:
            self._table.drop(old)
        else:
            self._table.drop_all(gone)
        return value

    # -- one entry ---------------------------------------------------------------------------------------------------

    def load(self, index):
        """Return what is stored at `index`, or None.

        Context: takes no lock.
        """
        with cython.critical_section(self):
            return self._table.value_of(self._load(as_index(index)))

    def store(self, index, value, order=0):
        """Store `value` over the 2**order indices around `index` (aligned); None erases.

        Smaller entries in the range are replaced, marks of theirs become marks of the new one. A larger entry that
        covers the range is replaced as a whole.

        Returns: what `index` held before, or None.
        Raises: OSError(ENOMEM), then nothing has changed; ValueError for a bad order.
        Context: takes the array's lock.
        """
        cdef CXaState xas
        cdef uint64_t at = as_index(index)
        cdef uint32_t k = check_order(order)
        with cython.critical_section(self):
            before = self._table.value_of(self._load(at)) if k != 0 else None
            self._init_cursor(&xas, at, k)
            old = self._store_at(&xas, self._table.entry_of(value), False)
            return before if k != 0 else old

    def erase(self, index):
        """Erase the entry that covers `index`, over its whole range.

        Returns: what it was, or None.
        Context: takes the array's lock.
        """
        return self.store(index, None)

    def cmpxchg(self, index, old, new):
        """Store `new` (None: erase) at `index` if it holds `old`: the same object or an equal value, None for nothing.

        `XArray.RESERVED` as `old` stands for a reserved slot, which None does not match; as `new` it reserves.

        Returns: what the index held; the exchange took place if that matches `old`.
        Raises: OSError(ENOMEM).
        Context: takes the array's lock.
        """
        cdef CXaState xas
        cdef uint64_t at = as_index(index)
        cdef xa_entry current
        with cython.critical_section(self):
            current = self._load(at)
            value = self._table.raw_value_of(current)
            if value is old or (xa_is_value(current) and type(old) is int and value == old):
                self._init_cursor(&xas, at, 0)
                self._store_at(&xas, XA_ZERO_ENTRY if new is SHOWN_RESERVED else self._table.entry_of(new), False)
            return None if value is SHOWN_RESERVED else value

    def insert(self, index, value):
        """Store `value` at an empty `index`; None reserves it.

        Raises: OSError(EBUSY) if the index is covered by an entry or reserved; OSError(ENOMEM).
        Context: takes the array's lock.
        """
        cdef CXaState xas
        cdef uint64_t at = as_index(index)
        with cython.critical_section(self):
            if self._load(at) != 0:
                raise index_error(-EBUSY, at)
            self._init_cursor(&xas, at, 0)
            self._store_at(&xas, XA_ZERO_ENTRY if value is None else self._table.entry_of(value), False)

    cdef int _exchange(self, uint64_t index, xa_entry old, xa_entry new) except -1:
        """Reserves or releases a slot."""
        cdef CXaState xas
        with cython.critical_section(self):
            self._init_cursor(&xas, index, 0)
            futex_lock(&self._xa.lock)
            xas_cmpxchg(&xas, old, new)
            futex_unlock(&self._xa.lock)
            return self._finish(&xas, index, new)

    def reserve(self, index):
        """Make sure that a later store at `index` needs no memory. The index still reads as empty.

        Nothing happens if there is an entry, or a reservation, already.

        Raises: OSError(ENOMEM).
        Context: takes the array's lock.
        """
        self._exchange(as_index(index), 0, XA_ZERO_ENTRY)

    def release(self, index):
        """Give up a reservation that has not been used; anything else at `index` stays.

        Context: takes the array's lock.
        """
        self._exchange(as_index(index), XA_ZERO_ENTRY, 0)

    def get_order(self, index):
        """Return the order of the entry that covers `index`, 0 if there is none.

        Context: takes the array's lock.
        """
        cdef uint64_t at = as_index(index)
        cdef uint32_t order
        with cython.critical_section(self):
            futex_lock(&self._xa.lock)
            order = xa_get_order(&self._xa, &self._pool, at)
            futex_unlock(&self._xa.lock)
        return order

    # -- marks -------------------------------------------------------------------------------------------------------

    cdef bint _at_mark(self, uint64_t index, uint32_t mark, int change) noexcept:
        """Sets (1) or clears (-1) a mark, or only looks (0). Returns whether it is set."""
        cdef bint marked
        with cython.critical_section(self):
            futex_lock(&self._xa.lock)
            if change > 0:
                xa_set_mark(&self._xa, &self._pool, index, mark)
            elif change < 0:
                xa_clear_mark(&self._xa, &self._pool, index, mark)
            marked = xa_get_mark(&self._xa, &self._pool, index, mark)
            futex_unlock(&self._xa.lock)
        return marked

    def set_mark(self, index, mark):
        """Set mark 0, 1 or 2 of the entry that covers `index`; no entry, no effect.

        Context: takes the array's lock.
        """
        self._at_mark(as_index(index), check_mark(mark), 1)

    def clear_mark(self, index, mark):
        """Clear mark 0, 1 or 2 of the entry that covers `index`.

        Context: takes the array's lock.
        """
        self._at_mark(as_index(index), check_mark(mark), -1)

    def get_mark(self, index, mark):
        """Return whether the entry that covers `index` carries mark 0, 1 or 2.

        Context: takes the array's lock.
        """
        return bool(self._at_mark(as_index(index), check_mark(mark), 0))

    def marked(self, mark):
        """Return whether any entry carries mark 0, 1 or 2.

        Context: takes no lock.
        """
        return bool(xa_marked(&self._xa, check_mark(mark)))

    # -- finding -----------------------------------------------------------------------------------------------------

    cdef object _search(self, uint64_t index, uint64_t last, object mark, bint after):
        cdef uint64_t at = index
        cdef xa_entry entry
        cdef uint32_t m = <uint32_t>ANY_MARK if mark is None else check_mark(mark)
        with cython.critical_section(self):
            futex_lock(&self._xa.lock)
            if after:
                entry = xa_find_after(&self._xa, &self._pool, &at, last, m)
            else:
                entry = xa_find(&self._xa, &self._pool, &at, last, m)
            futex_unlock(&self._xa.lock)
            return (at, self._table.value_of(entry)) if entry != 0 else None

    def find(self, index=0, max=INDEX_MAX, mark=None):
        """Return (index, value) of the first entry that covers an index in index..max, or None.

        With `mark`, of the first that carries it. An entry that covers `index` is given as at `index`.

        Context: takes the array's lock.
        """
        return self._search(as_index(index), as_index(max), mark, False)

    def find_after(self, index, max=INDEX_MAX, mark=None):
        """Return (index, value) of the first entry behind the one at `index`, up to max, or None.

        Context: takes the array's lock.
        """
        return self._search(as_index(index), as_index(max), mark, True)

    def items(self, start=0, stop=None, mark=None):
        """Return an iterator of (index, value) over the entries (that carry `mark`) in start..stop-1, ascending.

        Each entry comes once, the first as at `start` if it covers that. The array may be changed meanwhile: what is
        stored or erased ahead is seen.

        Context: takes the array's lock for each step.
        """
        if stop is not None and stop <= start:
            return iter(())
        return self._iterate(as_index(start), INDEX_MAX if stop is None else as_index(stop - 1), mark)

    def _iterate(self, uint64_t start, uint64_t last, mark):
        found = self._search(start, last, mark, False)
        while found is not None:
            yield found
            found = self._search(found[0], last, mark, True)

    def __iter__(self):
        for index, _ in self.items():
            yield index

    def __len__(self):
        return self._table.nr_entries

    def __bool__(self):
        return self._table.nr_entries != 0

    def __contains__(self, index):
        return self.load(index) is not None

    def __getitem__(self, index):
        value = self.load(index)
        if value is None:
            raise KeyError(index)
        return value

    def __setitem__(self, index, value):
        self.store(index, value)

    def __delitem__(self, index):
        if self.store(index, None) is None:
            raise KeyError(index)

    # -- many entries ------------------------------------------------------------------------------------------------

    def store_range(self, first, last, value):
        """Store `value` at all indices first..last, as aligned entries of the largest orders; None erases.

        An entry that the range only touches is replaced as a whole.

        Raises: OSError(ENOMEM), then nothing has changed; ValueError if last < first.
        Context: takes the array's lock.
        """
        cdef CXaState xas
        cdef xa_entry entry
        cdef uint64_t at = as_index(first), end = as_index(last)
        if end < at:
            raise ValueError(f"the range {first}..{last} is empty")
        with cython.critical_section(self):
            entry = self._table.entry_of(value)
            gone = self._entries_in(at, end)
            self._init_cursor(&xas, at, 0)
            futex_lock(&self._xa.lock)
            xas_store_range(&xas, at, end, entry)
            futex_unlock(&self._xa.lock)
            self._finish(&xas, at, entry)
            self._table.hold(entry, len(self._entries_in(at, end)))
            self._table.drop_all(gone)

    def split(self, index, order, values=None):
        """Split the entry that covers `index` into pieces of 2**order indices, which keep its value and marks.

        `values` gives each piece, in ascending order, a value of its own instead (None: erase it).

        Raises: OSError(EINVAL) if there is no entry, or a smaller one, or the pieces lie two levels and more below it
            (order + 12 <= the entry's, orders rounded down to multiples of 6); OSError(ENOMEM), then nothing has
            changed; ValueError if there are not as many values as pieces.
        Context: takes the array's lock.
        """
        cdef CXaState xas
        cdef uint32_t k = check_order(order)
        cdef uint32_t old_order
        cdef uint64_t at = as_index(index), first
        with cython.critical_section(self):
            old_order = xa_get_order(&self._xa, &self._pool, at)
            first = (at >> old_order) << old_order
            if values is not None and old_order >= k and len(values) != 1 << (old_order - k):
                raise ValueError(f"{1 << (old_order - k)} pieces need as many values, not {len(values)}")
            self._init_cursor(&xas, at, k)
            self._split_at(&xas, old_order, False)
            for i, value in enumerate(() if values is None else values):
                self._init_cursor(&xas, first + (<uint64_t>i << k), k)
                self._store_at(&xas, self._table.entry_of(value), False)

    cdef int _split_at(self, CXaState* xas, uint32_t old_order, bint one_node) except -1:
        """Splits the entry at a cursor to the cursor's order, and counts the pieces."""
        cdef int error
        cdef xa_entry entry = self._load(xas.index)
        futex_lock(&self._xa.lock)
        error = xas_try_split(xas, entry, old_order) if one_node else xas_split(xas, entry, old_order)
        futex_unlock(&self._xa.lock)
        if error != 0:
            raise index_error(error, xas.index)
        self._version += 1
        self._table.hold(entry, (<uint64_t>1 << (old_order - xas.order)) - 1)
        return 0

    cdef int _finish(self, CXaState* xas, uint64_t index, xa_entry entry) except -1:
        """Raises what a cursor that was to store `entry` met, and lets go of the entry then."""
        if xas_error(xas) != 0:
            self._table.forget(entry)
            raise index_error(xas_error(xas), index)
        self._version += 1
        return 0

    def extract(self, start=0, max=INDEX_MAX, mark=None, limit=None):
        """Return a list of the values of the entries (that carry `mark`) in start..max, at most `limit` of them.

        Context: takes the array's lock for each entry.
        """
        cdef list values = []
        for _, value in self._iterate(as_index(start), as_index(max), mark):
            if limit is not None and len(values) >= limit:
                break
            values.append(value)
        return values

    def clear(self):
        """Erase everything, reservations too.

        Context: takes the array's lock.
        """
        with cython.critical_section(self):
            gone = self._entries_in(0, INDEX_MAX)
            futex_lock(&self._xa.lock)
            xa_destroy(&self._xa, &self._pool, workingset_update_node)
            futex_unlock(&self._xa.lock)
            self._version += 1
            self._table.drop_all(gone)

    # -- indices as identifiers --------------------------------------------------------------------------------------

    cdef object _alloc(self, object value, uint64_t first, uint64_t last):
        """Stores at the lowest empty index of a range. Returns it, or None if there is none."""
        cdef CXaState xas
        cdef uint64_t index = first
        cdef bint found
        futex_lock(&self._xa.lock)
        found = first <= last and xa_find_free(&self._xa, &self._pool, &index, last)
        futex_unlock(&self._xa.lock)
        if not found:
            return None
        self._init_cursor(&xas, index, 0)
        self._store_at(&xas, XA_ZERO_ENTRY if value is None else self._table.entry_of(value), False)
        return index

    def alloc(self, value, min=0, max=UINT_MAX):
        """Store `value` at the lowest empty index in min..max and return the index; None reserves it.

        Takes time linear in the leaves (64 indices each) before the index found.

        Raises: OSError(EBUSY) if no index is empty, or min > max; OSError(ENOMEM).
        Context: takes the array's lock.
        """
        with cython.critical_section(self):
            index = self._alloc(value, as_index(min), as_index(max))
        if index is None:
            raise OSError(EBUSY, f"no index in {min}..{max} is empty")
        return index

    def alloc_cyclic(self, value, next, min=0, max=UINT_MAX):
        """Store `value` at the first empty index at or after `next`, going on at `min` behind `max`; None reserves it.

        Returns: (index, next, wrapped): what to give as `next` the next time, which is behind `max` after the last index,
        and whether the search went on at `min`.
        Raises: OSError(EBUSY) if no index in min..max is empty; OSError(ENOMEM).
        Context: takes the array's lock.
        """
        next, index = PyNumber_Index(next), None
        with cython.critical_section(self):
            if next <= max:
                index = self._alloc(value, as_index(next if next > min else min), as_index(max))
            wrapped = index is None
            if wrapped and next > min:
                index = self._alloc(value, as_index(min), as_index(max))
        if index is None:
            raise OSError(EBUSY, f"no index in {min}..{max} is empty")
        return index, index + 1, wrapped

    # -- looking inside ----------------------------------------------------------------------------------------------

    def cursor(self, index=0, order=0):
        """Return a new XaCursor at `index`, for entries of 2**order indices."""
        return XaCursor(self, index, order)

    def check(self):
        """Prove every invariant of the tree, and that objects and nodes are counted right.

        Raises: AssertionError naming the first broken invariant.
        Context: takes the array's lock; linear in the nodes.
        """
        cdef uint64_t nr_nodes
        cdef int64_t broken
        cdef dict named = {}
        with cython.critical_section(self):
            futex_lock(&self._xa.lock)
            broken = xa_check(&self._xa, &self._pool, &nr_nodes)
            futex_unlock(&self._xa.lock)
            if broken != 0:
                raise AssertionError(BROKEN_INVARIANTS[broken])
            if nr_nodes != self._header.nr_used:
                raise AssertionError(f"{self._header.nr_used} nodes are in use, {nr_nodes} are in the tree")
            entries = [entry for entry in self._entries_in(0, INDEX_MAX) if entry != XA_ZERO_ENTRY]
            if len(entries) != self._table.nr_entries:
                raise AssertionError(f"{len(entries)} entries are counted as {self._table.nr_entries}")
            for entry in entries:
                if xa_is_pointer(entry):
                    named[entry - 1] = named.get(entry - 1, 0) + 1
            for handle, count in enumerate(self._table.counts):
                if count != named.get(handle, 0):
                    raise AssertionError(f"{named.get(handle, 0)} entries of an object are counted as {count}")

    @property
    def empty(self):
        """Whether nothing is stored, not even a reservation."""
        return bool(xa_empty(&self._xa))

    @property
    def nr_nodes(self):
        """Nodes in use."""
        return self._header.nr_used

    @property
    def height(self):
        """Levels of nodes: 0 if the only entry, or none, is in the head."""
        cdef uint64_t head = load_relaxed_u64(&self._xa.head)
        return head_shift(head) // XA_CHUNK_SHIFT + 1 if xa_is_node(head_entry(head)) else 0

    @property
    def _head(self):
        """The head's entry and shift."""
        cdef uint64_t head = load_relaxed_u64(&self._xa.head)
        return head_entry(head), head_shift(head)

    @property
    def nr_shadow_nodes(self):
        """Nodes that hold nothing but integers."""
        return self._header.nr_shadow_nodes

    def oldest_shadow_node(self):
        """Return (index, order) of the range of the node that has held nothing but integers for longest, or None.

        Context: for tests of the list that cached pages' shadows are reclaimed from.
        """
        cdef uint32_t number
        with cython.critical_section(self):
            number = self._header.shadow_head
            if number == <uint32_t>NIL:
                return None
            return shadow_node_index(&self._pool, number), self._pool.nodes[number].shift + XA_CHUNK_SHIFT

    def _skip_groups(self, uint32_t nr_groups):
        """Leave out the first groups of 64 nodes, as if all of theirs were in use.

        Context: for tests of numbers that would take too much memory to get to. The array must be new.
        """
        with cython.critical_section(self):
            if self._header.nr_groups != 0 or nr_groups > self._header.nr_nodes // 64:
                raise ValueError(f"only a new array can leave out groups, not {nr_groups} of {self._header.nr_nodes // 64}")
            self._header.nr_groups = nr_groups

    def fail_allocation(self, uint32_t nth):
        """Make the nth coming allocation of a node fail, once; 0: none.

        Context: for tests.
        """
        self._header.fail_countdown = nth
