from pagecache.core.lines cimport (LINE_HINT_MAX, LINE_MISSING, LINE_PINNED, LINE_READ_TO_END, LinePiece,
                                   PinResult, line_length, line_pin, line_unpin)

cdef enum:
    LINE_TRIES = 4                  # times a piece is looked for in its folio before a copy of the page is searched

cdef uint64_t NO_LIMIT = <uint64_t>-1


cdef class FileLines(FileCore):
    """Reading line by line; a line ends with a line feed, or with the file.

    Context: each call holds the file position lock, so that threads that share a file get different lines, each whole,
    unless it begins where its own native thread has sought. When a call raises, the position is where it was.
    """
    cdef bint is_noting             # a recorder notes what is read
    cdef uint64_t noted_index       # page it noted last

    def readline(self, size=-1, /):
        """Reads one line, at most `size` bytes of it, from the position and moves it.

        Returns bytes, b"" at the end of the file. Raises as `read`.
        """
        cdef int64_t limit = -1 if size is None else to_signed(size)
        if limit == 0:
            self.ready()
            return b""
        return self.line(NO_LIMIT if limit < 0 else <uint64_t>limit)

    def readlines(self, hint=-1, /):
        """Reads lines until the end, or until they are more than `hint` bytes together. Returns a list of bytes."""
        cdef int64_t most = -1 if hint is None else to_signed(hint)
        cdef uint64_t total = 0, yielded = 0
        cdef int64_t start
        cdef bint is_own
        cdef bytes line
        cdef list lines = []
        self.ready()
        start = self.begin(&is_own)
        try:
            while most <= 0 or total <= <uint64_t>most:
                line = self.line_at(<uint64_t>start + total, NO_LIMIT, False)
                if not line:
                    break
                lines.append(line)
                total += <uint64_t>len(line)
                if total - yielded > GIL_COPY_MAX:
                    yielded = total
                    let_others_run()
            self.moved(is_own, start + <int64_t>total)
        finally:
            self.end(is_own)
        if self.is_noting and total > 0:
            self.note(<uint64_t>start, total)
        return lines

    def __iter__(self):
        if not self.is_open:
            raise ValueError("I/O operation on closed file")
        return self

    def __next__(self):
        line = self.line(NO_LIMIT)
        if not line:
            raise StopIteration
        return line

    cdef bytes line(self, uint64_t limit):
        """The next line, or `limit` bytes of it; moves the position."""
        cdef bytes line = None
        cdef bint is_own
        cdef uint64_t pos = <uint64_t>self.position
        if PC_HAS_GIL and not futex_is_locked(&self.position_lock) and self.seeks is None:    # no thread can come between
            line = self.line_in_folio(pos, limit)
            if line is not None:
                self.position = <int64_t>pos + len(line)
                self.sought = -1
        if line is None:
            self.ready()
            pos = <uint64_t>self.begin(&is_own)
            try:
                line = self.line_at(pos, limit, False)
                self.moved(is_own, <int64_t>pos + len(line))
            finally:
                self.end(is_own)
        if self.is_noting and line:
            self.note(pos, <uint64_t>len(line))
        return line

    cdef bytes line_in_folio(self, uint64_t pos, uint64_t limit):
        """The line at byte `pos` if the folio that the last one ended in holds all of it, else None."""
        cdef uint64_t hint = load_relaxed_u64(&self.hint)
        cdef uint64_t size, nbytes, length
        cdef uint32_t nr_truncations
        cdef const char* source
        cdef bytes line
        if hint == 0 or not self.is_open or self.seg.dead:
            return None
        nr_truncations = load_acquire_u32(&self.m.nr_truncations)
        size = load_acquire_u64(&self.m.size)
        if pos >= size:
            return None
        nbytes = limit if limit < size - pos else size - pos
        if nbytes > LINE_HINT_MAX:
            nbytes = LINE_HINT_MAX
        source = hint_source(self.seg, self.number, hint, pos, &nbytes)
        if source == NULL:
            return None
        length = line_length(source, nbytes)
        if length == 0:
            if nbytes < limit:
                return None
            length = nbytes
        line = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        copy_page(PyBytes_AS_STRING(line), source, length)
        if not hint_holds(self.seg, hint) or not mapping_not_truncated_since(self.m, nr_truncations):
            return None
        self.ra.prev_pos = <int64_t>(pos + length)
        count(self.seg, HITS, 1)
        count(self.seg, BYTES_ASKED, <int64_t>length)
        return line

    cdef bytes line_at(self, uint64_t pos, uint64_t limit, bint only_cached):
        """The line at byte `pos`, at most `limit` bytes of it; b"" at the end of the file.

        only_cached: None instead, if the GIL would have to be given up for it, or Python called.
        """
        cdef uint64_t done = 0, yielded = 0, size
        cdef bytes piece = self.line_in_folio(pos, limit)
        cdef list parts = None
        if piece is not None:
            return piece
        while True:
            piece = None
            if not only_cached or done <= GIL_COPY_MAX:
                piece = self.line_piece(limit - done, pos + done, only_cached)
            if piece is None:
                if done > 0:            # what is not served is not counted
                    count(self.seg, HITS, -<int64_t>len(parts))
                    count(self.seg, BYTES_ASKED, -<int64_t>done)
                return None
            done += <uint64_t>len(piece)
            if not piece or done == limit or ends_line(piece):
                break
            if parts is None:
                parts = []
            parts.append(piece)
            if done - yielded > GIL_COPY_MAX:
                yielded = done
                let_others_run()
        if parts is not None:
            parts.append(piece)
            piece = b"".join(parts)
            size = load_acquire_u64(&self.m.size)
            if pos + done > size:       # truncated between two pieces
                done = size - pos if size > pos else 0
                piece = piece[:done]
        if done > 0:
            store_relaxed_u64(&self.hint, folio_hint(self.seg, self.number, pos + done - 1))
        return piece

    cdef bytes line_piece(self, uint64_t limit, uint64_t pos, bint only_cached):
        """What one folio holds of the line at `pos`, at most `limit` bytes; b"" at the end of the file, None as `line_at`.
        """
        cdef uint64_t size, nbytes, last_index, length
        cdef int64_t prev_pos = self.ra.prev_pos
        cdef uint32_t nr_truncations, tries
        cdef PinResult result
        cdef LinePiece piece
        cdef bytes line
        last_index = <uint64_t>-1 if prev_pos <= 0 else <uint64_t>(prev_pos - 1) >> PAGE_SHIFT
        for tries in range(LINE_TRIES):
            nr_truncations = load_acquire_u32(&self.m.nr_truncations)
            size = load_acquire_u64(&self.m.size)
            if pos >= size:
                if only_cached:
                    return None
                if not self._grown(pos):
                    return b""
                continue
            nbytes = limit if limit < size - pos else size - pos
            result = line_pin(&piece, self.seg, self.number, pos, nbytes if nbytes < GIL_COPY_MAX else GIL_COPY_MAX, size)
            if only_cached and result != LINE_PINNED:
                return None
            if result == LINE_MISSING and tries == 0 and nbytes > 1 and self._leaves_pages():
                self.read_bytes(1, pos)         # brings it, and leaves it there
                continue
            if result != LINE_PINNED:
                break
            line = self.line_copied(&piece)
            if line_unpin(&piece, self.seg, last_index) and mapping_not_truncated_since(self.m, nr_truncations):
                self.ra.prev_pos = <int64_t>(pos + piece.nbytes)
                count(self.seg, HITS, 1)
                count(self.seg, BYTES_ASKED, <int64_t>piece.nbytes)
                return line
        if only_cached:
            return None
        nbytes = PAGE_SIZE - (pos & (PAGE_SIZE - 1))
        line = self.read_bytes(limit if limit < nbytes else nbytes, pos)
        length = line_length(PyBytes_AS_STRING(line), <size_t>len(line))
        return line[:length] if length > 0 else line

    cdef bytes line_copied(self, LinePiece* piece):
        """A copy of a pinned piece; if there is no memory for one, the piece is no longer pinned."""
        cdef bytes line
        try:
            line = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>piece.nbytes)
        except MemoryError:
            folio_put(self.seg, piece.folio)
            raise
        copy_shared(PyBytes_AS_STRING(line), piece.source, piece.nbytes)
        return line

    cdef int note(self, uint64_t start, uint64_t nbytes) except -1:
        """Reports to the recorder what was read; lines of one page, one after the other, count once."""
        cdef uint64_t last_index = (start + nbytes - 1) >> PAGE_SHIFT
        if last_index != self.noted_index or start >> PAGE_SHIFT != last_index:
            self.noted_index = last_index
            self._note(start, nbytes)
        return 0

    @property
    def notes_lines(self):
        """Whether `_note` is called with the offset and length of what is read by lines."""
        return self.is_noting

    @notes_lines.setter
    def notes_lines(self, bint value):
        self.noted_index = NO_LIMIT
        self.is_noting = value


cdef inline bint ends_line(bytes piece):
    return PyBytes_AS_STRING(piece)[len(piece) - 1] == c"\n"


cdef int let_others_run() except -1:
    """In the middle of a long call: threads that wait for the GIL, and signal handlers."""
    with nogil:
        pass
    PyErr_CheckSignals()
    return 0
