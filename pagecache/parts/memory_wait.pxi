@cython.final
@cython.no_gc_clear
cdef class MemoryWait:
    """`with MemoryWait(segment) as wait:` waits for page frames: `look` until it brings some, `wait` in between.

    Memory that is given back is announced only while a thread waits. So a waiter is known as one before it looks, and
    sleeps only if nothing was given back since: what becomes free between a look and a sleep ends the sleep.
    """
    cdef Segment segment
    cdef uint32_t seen              # Header.memory_event when it looked, its own events included
    cdef bint is_waiting

    def __cinit__(self, Segment segment not None):
        self.segment = segment
        self.is_waiting = False

    def __enter__(self):
        self.is_waiting = True
        add_acq_rel_u32(&self.segment.seg.header.nr_waiting_for_memory, 1)
        fence_seq_cst()
        return self

    def __exit__(self, *exc):
        self.end()

    def __dealloc__(self):
        if not self.segment.seg.dead:
            self.end()

    cdef void end(self) noexcept:
        if self.is_waiting:
            self.is_waiting = False
            sub_acq_rel_u32(&self.segment.seg.header.nr_waiting_for_memory, 1)

    def look(self, attempt):
        """What `attempt()`, which tries to get memory, returns; what becomes free from its beginning on ends a `wait`."""
        cdef uint32_t own = thread_events()
        self.seen = load_acquire_u32(&self.segment.seg.header.memory_event)
        found = attempt()
        self.seen += thread_events() - own
        return found

    def wait(self, double timeout_s):
        """Sleeps until memory may have become free since `look` began, at most timeout_s seconds. Context: releases the
        GIL; a signal handler that raises ends it."""
        cdef pc_u32* event = &self.segment.seg.header.memory_event
        cdef int64_t timeout_ns = <int64_t>(timeout_s * 1e9)
        if load_acquire_u32(event) == self.seen:
            with nogil:
                futex_wait(event, self.seen, timeout_ns)
        PyErr_CheckSignals()
