"""`FilePosition`: where a file's reads and writes without an offset begin.

A file object has one position, which every seek, read and write moves, whatever thread it comes from: the contract of io.
Native code that brings threads of its own may share one handle among them, and call seek, then read, in each of them
(DuckDB 2.0). There no other thread's seek may come between the two. So what a thread has sought is kept for its next read:

* A seek of a *native* thread, one that `threading` did not start, is kept for that thread. Its next read or write begins
  there, takes no lock, and waits for no other thread's.
* A seek of Python's threads is kept for the next read of any of them: among them there is one position, as io has it.
  With `seeks_by_thread` each of them has seeks of its own, as native ones.
* The position itself is where the last operation of any thread has left it. It is where all other reads begin: what one
  thread has sought another may read, and a stream is read on by whichever thread comes next (DuckDB 1.5 reads CSV so).
* A read of a thread that has sought nothing shows that the threads take turns: what others have sought is forgotten.
* A seek from the end asks for the size. It moves the position, and is not kept for later.

Benefits: (seek, read) is one step without a lock across the two, with the GIL and without it; threads that have sought
wait for the store at the same time, not one after the other. Costs: a word for each file; a table, once a native thread has
sought; until then reads look at one pointer, and seeks at one word of the thread's own.

Why it is right without the GIL: entries of `seeks` are written by their own thread alone, but for the forgetting, which a
caller that takes turns cannot race with; each operation on the table is one step of a dict. `position` and `sought` are
aligned words: threads that seek and read at once leave the position at one of their ends, as with a shared descriptor. What
Python's threads have sought is written under the lock, and native threads move the position only, so it stays.
"""

import threading as _threading

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1


cdef bint is_native_thread() except -1:
    """Whether the calling thread is not one of `threading`'s; looked up once in the life of a thread."""
    cdef int kind = thread_kind()
    if kind == THREAD_KIND_UNKNOWN:
        known = _threading._active.get(PyThread_get_thread_ident())
        kind = THREAD_KIND_NATIVE if known is None or type(known) is _threading._DummyThread else THREAD_KIND_PYTHON
        thread_kind_set(kind)
    return kind == THREAD_KIND_NATIVE


cdef class FilePosition:
    cdef FutexLock position_lock
    cdef int64_t position                   # as the last operation has left it
    cdef int64_t sought                     # what Python's threads have sought and not read; -1: nothing
    cdef dict seeks                         # what native threads have sought and not read, by thread; None: none ever has
    cdef public bint seeks_by_thread        # Python's threads count as native ones

    def __cinit__(self, *args, **kwargs):
        self.sought = -1

    cdef bint has_seeks_of_its_own(self) except -1:
        return self.seeks_by_thread or is_native_thread()

    cdef int64_t own_start(self) except -2:
        """Where the calling thread's next operation begins, if it has a seek of its own; else -1."""
        if self.seeks is None or not self.has_seeks_of_its_own():
            return -1
        found = self.seeks.get(PyThread_get_thread_ident())
        return -1 if found is None else <int64_t>found

    cdef int64_t shared_start(self) except -1:
        """Where an operation of a thread without a seek of its own begins. Context: file position lock held."""
        cdef dict seeks = self.seeks
        if seeks is not None:
            if self.has_seeks_of_its_own():
                self.sought = -1
            if self.sought < 0 and len(seeks):
                seeks.clear()
        return self.sought if self.sought >= 0 else self.position

    cdef int moved(self, bint is_own, int64_t end) except -1:
        """After an operation that ended there. Context: file position lock held, unless it began at a seek of its own."""
        self.position = end
        if is_own:
            self.seeks.pop(PyThread_get_thread_ident(), None)
        else:
            self.sought = -1
        return 0

    cdef int64_t where(self) except -1:
        """Where the calling thread's next operation would begin."""
        cdef int64_t own
        if self.seeks is None:
            return self.position
        if self.has_seeks_of_its_own():
            own = self.own_start()
            return own if own >= 0 else self.position
        return self.sought if self.sought >= 0 else self.position

    cdef int64_t seek_to(self, object offset, int whence, uint64_t size) except -1:
        """Moves the position. Context: file position lock held, unless the thread has seeks of its own."""
        cdef int overflow
        cdef int64_t target, base = 0
        if whence != 0:
            base = self.where() if whence == 1 else <int64_t>size
        if type(offset) is not int:
            offset = _index(offset)
        target = PyLong_AsLongLongAndOverflow(offset, &overflow)
        if overflow < 0 or (overflow == 0 and target < 0 and base + target < 0):
            raise ValueError(f"negative seek position {base + offset}")
        if overflow > 0 or (target > 0 and base > INT64_MAX - target):
            raise OSError(_errno.EINVAL, f"seek position {base + offset} is beyond the largest offset {OFFSET_MAX}")
        target += base
        if not self.has_seeks_of_its_own():
            self.sought = target if whence != 2 else -1
        else:
            if self.seeks is None:
                with cython.critical_section(self):
                    if self.seeks is None:
                        self.seeks = {}
            if whence != 2:
                self.seeks[PyThread_get_thread_ident()] = target
            else:
                self.seeks.pop(PyThread_get_thread_ident(), None)
        self.position = target
        return target

    cdef int lock_position(self) except -1:
        return 0 if futex_take(&self.position_lock) else futex_lock_interruptible(&self.position_lock)

    cdef void unlock_position(self) noexcept:
        futex_give(&self.position_lock)


@cython.final
cdef class Position(FilePosition):
    """A position for a file that is not a FileCore and has a lock of its own for it."""

    def own(self):
        """Where the calling thread's next operation begins by a seek of its own, or None: it takes no lock then."""
        cdef int64_t start = self.own_start()
        return None if start < 0 else start

    def shared(self):
        """Where the next operation of a thread without a seek of its own begins. Context: the caller holds its lock."""
        return self.shared_start()

    def move(self, bint is_own, int64_t end):
        """Says that an operation ended there. Context: the caller holds its lock, unless it began at a seek of its own."""
        self.moved(is_own, end)

    @property
    def is_by_thread(self):
        """Whether the calling thread has seeks of its own."""
        return self.has_seeks_of_its_own()

    def tell(self):
        """Where the calling thread's next operation begins (bytes)."""
        return self.where()

    def seek(self, offset, whence, uint64_t size):
        """Moves the position of a file of so many bytes. Returns the new one. Raises ValueError, OSError.

        Context: the caller holds its lock, unless the thread has seeks of its own."""
        return self.seek_to(offset, to_whence(whence), size)


cdef int to_whence(object whence) except -1:
    cdef int overflow
    cdef int64_t value
    if type(whence) is not int:
        whence = _index(whence)
    value = PyLong_AsLongLongAndOverflow(whence, &overflow)
    if overflow != 0 or not 0 <= value <= 2:
        raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
    return <int>value
