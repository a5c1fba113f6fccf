@cython.final
cdef class Places:
    """How many requests of one store may run at once: places that are taken and given back by single atomic steps.

    limit: places, 1 or more. A signal, which may end a Python function between any two steps, never loses one.
    """
    cdef pc_u32 nr_taken
    cdef pc_u32 nr_urgent
    cdef pc_u32 nr_places

    def __init__(self, limit):
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        store_release_u32(&self.nr_places, limit)

    @property
    def limit(self):
        """Places there are."""
        return load_relaxed_u32(&self.nr_places)

    def narrow(self, limit):
        """Have no more places than `limit` from now on; what is taken beyond it stays taken until it is given back."""
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        cdef uint32_t had = load_relaxed_u32(&self.nr_places)
        while limit < had and not cas_acq_rel_u32(&self.nr_places, &had, limit):
            pass

    def lend(self):
        """Has one place more, until `take_back`, in the place of one that a request has for which no thread waits."""
        add_acq_rel_u32(&self.nr_places, 1)
        futex_wake(&self.nr_taken, WAKE_ALL)

    def take_back(self):
        """Ends a `lend`. One place is left in any case."""
        cdef uint32_t had = load_relaxed_u32(&self.nr_places)
        while had > 1 and not cas_acq_rel_u32(&self.nr_places, &had, had - 1):
            pass

    @property
    def taken(self):
        """Places in use now."""
        return load_acquire_u32(&self.nr_taken)

    @property
    def nr_urgent_waiting(self):
        """Threads that wait for a place in `urgent`."""
        return load_acquire_u32(&self.nr_urgent)

    cdef bint take_one(self) noexcept nogil:
        return self.take_below(0)

    cdef bint take_below(self, uint32_t nr_kept) noexcept nogil:
        """Takes a place if so many are left for others."""
        cdef uint32_t taken = load_relaxed_u32(&self.nr_taken)
        while taken + nr_kept < load_relaxed_u32(&self.nr_places):
            if cas_acq_rel_u32(&self.nr_taken, &taken, taken + 1):
                return True
        return False

    cdef void give_one(self) noexcept nogil:
        sub_acq_rel_u32(&self.nr_taken, 1)
        futex_wake(&self.nr_taken, WAKE_ALL)

    def take(self):
        """Takes a place for work in the background: none that urgent work waits for. Returns whether it did."""
        return self.take_below(load_acquire_u32(&self.nr_urgent))

    def give(self):
        """Gives a place back."""
        cdef uint32_t taken = load_relaxed_u32(&self.nr_taken)
        while taken != 0:
            if cas_acq_rel_u32(&self.nr_taken, &taken, taken - 1):
                futex_wake(&self.nr_taken, WAKE_ALL)
                return
        raise RuntimeError("no place is taken")

    def urgent(self, while_waiting=None):
        """`with places.urgent():` holds a place for the calling thread, which waits for one before all others.

        while_waiting: called again and again while it waits; what it raises ends the wait.
        Context: releases the GIL while it waits; Ctrl-C ends the wait.
        """
        cdef PlaceGuard guard = PlaceGuard.__new__(PlaceGuard)
        guard.places = self
        guard.while_waiting = while_waiting
        return guard


@cython.final
@cython.freelist(8)
cdef class PlaceGuard:
    """Holds a place from `__enter__` to `__exit__`."""
    cdef Places places
    cdef object while_waiting
    cdef bint held

    def __enter__(self):
        cdef Places places = self.places
        cdef uint32_t taken
        if not places.take_one():
            add_acq_rel_u32(&places.nr_urgent, 1)
            try:
                while not places.take_one():
                    taken = load_acquire_u32(&places.nr_taken)
                    if taken >= load_relaxed_u32(&places.nr_places):
                        with nogil:
                            futex_wait(&places.nr_taken, taken, WAIT_SLICE_NS)
                    PyErr_CheckSignals()
                    if self.while_waiting is not None:
                        self.while_waiting()
            finally:
                sub_acq_rel_u32(&places.nr_urgent, 1)
        self.held = True

    def __exit__(self, *exc):
        if self.held:
            self.held = False
            self.places.give_one()
        return False

    def __dealloc__(self):
        if self.held:
            self.places.give_one()
