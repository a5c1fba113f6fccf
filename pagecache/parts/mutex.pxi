# Mutex: the lock of the Python layers.  MutexGuard: one hold on it.  EventCount: something to sleep on.
cdef int futex_lock_interruptible(FutexLock* lock) except -1:
    """Locks, with the GIL released while it waits. Raises what a signal handler raises."""
    cdef int r
    while True:
        with nogil:
            r = futex_lock_slice(lock)
        if r == 0:
            return 0
        PyErr_CheckSignals()


@cython.final
cdef class Mutex:
    """A lock for sections of Python code: `with mutex.held():`. The thread that holds it may take it again.

    A signal handler that raises may strike between any two steps of a Python function, also between the call that takes
    a lock and the `with` block that gives it back. So the hold belongs to an object: when that dies, wherever the
    exception came from, the lock is free.

    Word: 0 free, 1 held, 2 held and a thread may be asleep (as `FutexLock` in core/lock.pxd, but a sleep ends after a slice
    for signals to be looked for).
    """
    cdef FutexLock lock
    cdef pc_u64 owner               # identifies the thread; 0 for none
    cdef uint32_t depth             # how often the owner holds it

    def held(self):
        """A guard that holds the mutex for the calling thread, for the length of a `with` block.

        Context: waits without the GIL; a signal handler that raises ends the wait.
        """
        cdef MutexGuard guard = MutexGuard.__new__(MutexGuard)
        guard.mutex = self
        return guard

    @property
    def is_held(self):
        """Whether a thread holds it now."""
        return futex_is_locked(&self.lock)

    cdef int take(self) except -1:
        cdef uint64_t me = <uint64_t>PyThread_get_thread_ident()
        if load_relaxed_u64(&self.owner) != me:
            if not futex_take(&self.lock):
                futex_lock_interruptible(&self.lock)
            store_relaxed_u64(&self.owner, me)
        self.depth += 1
        return 0

    cdef void give(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            store_relaxed_u64(&self.owner, 0)
            futex_give(&self.lock)


@cython.final
@cython.freelist(8)
@cython.no_gc
cdef class MutexGuard:
    """A hold on a mutex: ends with its `with` block, or with this object."""
    cdef Mutex mutex
    cdef bint is_holding

    def __enter__(self):
        self.mutex.take()
        self.is_holding = True

    def __exit__(self, *exc):
        if self.is_holding:
            self.is_holding = False
            self.mutex.give()
        return False

    def __dealloc__(self):
        if self.is_holding:
            self.mutex.give()


@cython.final
cdef class EventCount:
    """Something to sleep on until another thread says that something has changed.

    Take `value`, look at what is waited for, and if it is not there `wait` for another value: no change in between is
    missed, and no lock is held.
    """
    cdef pc_u32 word

    @property
    def value(self):
        """A number that changes with every `advance`."""
        return load_acquire_u32(&self.word)

    def advance(self):
        """Wake all waiters. Context: waits for nothing."""
        add_acq_rel_u32(&self.word, 1)
        futex_wake(&self.word, WAKE_ALL)

    def wait(self, value, timeout_s=None):
        """Sleep until `value` has changed, at most so long (seconds; None: for ever). Returns whether it has.

        Context: without the GIL; a signal handler that raises ends it.
        """
        cdef uint32_t seen = value
        cdef double seconds = 1e9 if timeout_s is None else min(max(timeout_s, 0.0), 1e9)
        cdef uint64_t now, until = <uint64_t>monotonic_ns() + <uint64_t>(seconds * 1e9)
        while load_acquire_u32(&self.word) == seen:
            now = <uint64_t>monotonic_ns()
            if now >= until:
                return False
            with nogil:
                futex_wait(&self.word, seen, <int64_t>min(until - now, <uint64_t>WAIT_SLICE_NS))
            PyErr_CheckSignals()
        return True


def _hold_engine_lock(Segment segment not None, str name, EventCount held not None, EventCount until not None,
                     uint32_t number=0):
    """Takes an engine lock, advances `held`, and keeps the lock until `until` advances.

    name: "index" (of mapping `number`), "lru", "buddy", "nodes" or "mappings". Context: for tests; releases the GIL.
    """
    cdef Header* header = segment.seg.header
    cdef FutexLock* lock
    cdef uint32_t seen = load_acquire_u32(&until.word)
    if name == "index":
        if not 0 < number < header.nr_mappings:
            raise ValueError(f"no mapping has the number {number}")
        lock = &segment.seg.mappings[number].pages.lock
    elif name == "nodes":
        lock = &header.pool.lock
    elif name in ("lru", "buddy", "mappings"):
        lock = (&header.lru_lock if name == "lru" else &header.buddy_lock if name == "buddy" else &header.mapping_lock)
    else:
        raise ValueError(f"no engine lock is called {name!r}")
    with nogil:
        futex_lock(lock)
        add_acq_rel_u32(&held.word, 1)
        futex_wake(&held.word, WAKE_ALL)
        while load_acquire_u32(&until.word) == seen:
            futex_wait(&until.word, seen, WAIT_SLICE_NS)
        futex_unlock(lock)
