# LockGuard: one hold on a lock of a mapping, invalidate_lock or the inode lock.
@cython.final
@cython.freelist(8)
@cython.no_gc_clear
cdef class LockGuard:
    """A hold on a lock of a mapping: ends with its `with` block, or with this object."""
    cdef AddressSpace mapping
    cdef RwSem* sem
    cdef bint is_exclusive
    cdef bint wait
    cdef bint is_held

    def __enter__(self):
        if not self.is_exclusive:
            sem_lock_read(self.sem)
        elif self.wait:
            sem_lock_write(self.sem)
        elif not rwsem_try_write(self.sem):
            return False
        self.is_held = True
        return True

    def __exit__(self, *exc):
        self.end()

    def give_up(self):
        """Ends the hold for the thread that has it: that does nothing any more for which it needs it, but to end.
        Context: the caller has seen to it that the two do not end it at the same time."""
        self.end()

    def __dealloc__(self):
        if not self.mapping.seg.dead:
            self.end()

    cdef void end(self) noexcept:
        if self.is_held:
            self.is_held = False
            if self.is_exclusive:
                rwsem_unlock_write(self.sem)
            else:
                rwsem_unlock_read(self.sem)


cdef int sem_lock_read(RwSem* sem) except -1:
    """Read-locks, with the GIL released while it waits. Raises what a signal handler raises."""
    cdef int r
    if rwsem_try_read(sem):
        return 0
    rwsem_read_begin(sem)
    try:
        while True:
            with nogil:
                r = rwsem_read_slice(sem)
            if r == 0:
                return 0
            PyErr_CheckSignals()
    finally:
        rwsem_read_end(sem)


cdef int sem_lock_write(RwSem* sem) except -1:
    """The same for writing."""
    cdef int r
    if rwsem_try_write(sem):
        return 0
    rwsem_write_begin(sem)
    try:
        while True:
            with nogil:
                r = rwsem_write_slice(sem)
            if r == 0:
                return 0
            PyErr_CheckSignals()
    finally:
        rwsem_write_end(sem)


cdef LockGuard lock_guard(AddressSpace mapping, RwSem* sem, bint is_exclusive, bint wait):
    cdef LockGuard guard = LockGuard.__new__(LockGuard)
    guard.mapping = mapping
    guard.sem = sem
    guard.is_exclusive = is_exclusive
    guard.wait = wait
    guard.is_held = False
    return guard
