cdef class VersionedCore:
    """The hit path of a file whose version is looked at: reads at the position, without Python as long as a look holds.

    A subclass looks, and says then for how long, and for which bytes, reads of that file need no further look
    (`_look_holds`). It also does whatever else there is to do (`_read_after_look`, `_line_after_look`): what is not cached,
    a file that was closed because another version is read now, a position that another thread holds or has sought.

    Context: with the GIL held throughout no other thread can come between; without one every read is the subclass's.
    """
    cdef readonly Position _position
    cdef readonly Mutex _position_lock
    cdef FileLines file                     # which the last look was at
    cdef int64_t until_ns                   # of the coarse clock
    cdef uint64_t first, end                # reads have to begin there
    cdef bint serves_calls                  # else iteration alone

    def __cinit__(self, *args, **kwargs):
        self._position = Position()
        self._position_lock = Mutex()

    def _look_holds(self, FileLines file not None, double seconds, *, lines=None):
        """Says that reads of `file` need no look for so long (s), if it stays open.

        lines: (first, end) in bytes: only those of iteration, and only lines that begin there.
        """
        if not PC_HAS_GIL:
            return
        self.file = file
        self.first, self.end = (0, NO_LIMIT) if lines is None else lines
        self.serves_calls = lines is None
        self.until_ns = monotonic_ns() + <int64_t>(min(max(seconds, 0.0), 1e9) * 1e9) - COARSE_TICK_NS

    @property
    def closed(self):
        """Whether the file is closed."""
        if self.file is not None and self.file.is_open:     # a text layer asks before each line
            return False
        return self._is_closed()

    cdef inline bint needs_look(self, uint64_t pos):
        """Whether Python has to look, or to wait for the position."""
        return (self.file is None or not self.file.is_open or self.file.seg.dead or self._position.seeks is not None
                or futex_is_locked(&self._position_lock.lock)
                or pos - self.first >= self.end - self.first or monotonic_coarse_ns() >= self.until_ns)

    cdef inline void moved_to(self, uint64_t end) noexcept:
        self._position.position = <int64_t>end
        self._position.sought = -1

    def read(self, size=-1, /):
        """As File.read."""
        cdef int64_t nbytes = -1 if size is None else to_signed(size)
        cdef uint64_t pos = <uint64_t>self._position.position
        cdef bytes data
        if self.serves_calls and 0 < nbytes <= GIL_COPY_MAX and not self.needs_look(pos) and not self.file.is_noting:
            data = self.file.cached_bytes(<uint64_t>nbytes, pos)
            if data is not None:
                self.moved_to(pos + <uint64_t>len(data))
                return data
        return self._read_after_look(nbytes)

    def readline(self, size=-1, /):
        """As File.readline."""
        cdef int64_t limit = -1 if size is None else to_signed(size)
        cdef bytes line = None
        if self.serves_calls and limit != 0:
            line = self.next_line(NO_LIMIT if limit < 0 else <uint64_t>limit)
        return line if line is not None else self._line_after_look(limit, False)

    def __next__(self):
        line = self.next_line(NO_LIMIT)
        if line is None:
            line = self._line_after_look(-1, True)
            if not line:
                raise StopIteration
        return line

    cdef bytes next_line(self, uint64_t limit):
        """The next line, or `limit` bytes of it, if it needs no look and all of it is cached, else None."""
        cdef uint64_t pos = <uint64_t>self._position.position
        cdef bytes line
        if self.needs_look(pos):
            return None
        line = self.file.line_at(pos, limit, True)
        if line is None or self._position.position != <int64_t>pos or futex_is_locked(&self._position_lock.lock):
            return None         # what was collected as garbage meanwhile may have run Python code, and other threads
        self.moved_to(pos + <uint64_t>len(line))
        if self.file.is_noting:
            self.file.note(pos, <uint64_t>len(line))
        return line
