cdef class FileRaState:
    """Readahead state of one open file (file_ra_state); pages unless said otherwise.

    Racy by design: it steers readahead and never decides what is read.
    """
    cdef public uint64_t start          # the current window
    cdef public uint64_t size
    cdef public uint64_t async_size     # its tail that was not asked for: reading its first page starts the next
    cdef public uint64_t ra_pages       # largest window
    cdef public uint64_t io_pages       # largest request of the store
    cdef public uint32_t order          # of the folios of the next window
    cdef public uint32_t mmap_miss
    cdef public bint dropbehind         # folios leave when they have been read
    cdef public int64_t prev_pos        # byte behind the last one read, -1 at first

    def __cinit__(self, ra_pages=32, io_pages=0):
        self.ra_pages = ra_pages
        self.io_pages = io_pages
        self.prev_pos = -1

    def __repr__(self):
        return (f"<FileRaState {self.start}+{self.size}/{self.async_size} ra_pages={self.ra_pages} order={self.order} "
                f"prev_pos={self.prev_pos}>")


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define PC_HAS_GIL 0
    #else
    #define PC_HAS_GIL 1
    #endif
    """
    bint PC_HAS_GIL

cdef enum:
    HINT_MAX = 4096                 # bytes; longer reads at the position walk the index


cdef class FileCore(FilePosition):
    """The hit path of an open file; a subclass supplies `_read_slow` and everything that is not hot.

    Context: reads of cached bytes take no lock, need no other thread, and keep the GIL up to 64 KiB.
    """
    cdef readonly AddressSpace mapping
    cdef CSegment* seg
    cdef CMapping* m
    cdef uint32_t number
    cdef bint is_open
    cdef readonly bint may_read
    cdef readonly bint may_write
    cdef bint is_append                     # writes at the position go to the end
    cdef bint is_through                    # writes are in the store before they return
    cdef pc_u32 wb_since                    # the mapping's errors as this file has seen them (errseq)
    cdef pc_u64 hint                        # the folio read last at the position (folio_hint)
    cdef readonly FileRaState ra
    cdef public bint is_random              # advised: a miss reads what was asked for and nothing else
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self.is_open = False

    def _attach(self, AddressSpace mapping not None, FileRaState ra not None, *, bint may_read=True,
                bint may_write=False, bint is_append=False, bint is_through=False):
        self.mapping = mapping
        self.seg = mapping.seg
        self.m = mapping.m
        self.number = mapping.number
        self.ra = ra
        self.may_read = may_read
        self.may_write = may_write
        self.is_append = is_append
        self.is_through = is_through
        store_release_u32(&self.wb_since, errseq_sample(&self.m.wb_err))
        self.is_open = True

    def _detach(self):
        """Marks the file closed. Returns whether it was open."""
        cdef bint was
        with cython.critical_section(self):     # one of the threads that close it at once gives it up
            was = self.is_open
            self.is_open = False
        return was

    @property
    def closed(self):
        """Whether the file is closed."""
        return not self.is_open

    cdef int ready(self) except -1:
        if not self.is_open:
            raise ValueError("I/O operation on closed file")
        if self.seg.dead:
            raise RuntimeError("this cache belongs to the parent process: open a new one after fork()")
        if not self.may_read:
            raise _io.UnsupportedOperation("not readable")
        return 0

    # -- reading at an offset ----------------------------------------------------------------------------------------

    def pread(self, nbytes, offset):
        """Reads up to nbytes at byte `offset`; the file position stays.

        Returns bytes, shorter only at the end of the file. Raises ValueError (closed, negative offset), TypeError,
        OSError. Context: see the class; a miss runs Python and may wait for the store.
        """
        return self.read_bytes(to_count(nbytes), to_offset(offset))

    cdef object read_bytes(self, uint64_t nbytes, uint64_t pos):
        cdef uint64_t size, done
        cdef uint32_t nr_truncations
        cdef bytes result
        if not self.is_open or self.seg.dead or not self.may_read:
            self.ready()
        nr_truncations = load_acquire_u32(&self.m.nr_truncations)
        size = load_acquire_u64(&self.m.size)
        if pos >= size or nbytes == 0:
            return self.read_end(nbytes, pos)
        if nbytes > size - pos:
            nbytes = size - pos
        if nbytes <= COPY_PAGE_MAX:
            prefetch_cached(self.seg, self.number, pos, nbytes)
        result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>nbytes)
        done = self.copy_cached(PyBytes_AS_STRING(result), nbytes, pos, nr_truncations)
        if done == nbytes:
            return result
        done = self.finish_slow(result, PyBytes_AS_STRING(result), nbytes, pos, done, nr_truncations)
        return result if done == nbytes else result[:done]

    def pread_cached(self, nbytes, offset):
        """As `pread`, but only if all of it is cached: else None. Never waits, never reads."""
        return self.cached_bytes(to_count(nbytes), to_offset(offset))

    cdef bytes cached_bytes(self, uint64_t wanted, uint64_t pos):
        cdef uint64_t size
        cdef uint32_t nr_truncations
        cdef bytes result
        self.ready()
        nr_truncations = load_acquire_u32(&self.m.nr_truncations)
        size = load_acquire_u64(&self.m.size)
        if pos >= size or wanted == 0:
            return b"" if wanted == 0 else None
        if wanted > size - pos:
            wanted = size - pos
        result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>wanted)
        return result if self.copy_cached(PyBytes_AS_STRING(result), wanted, pos, nr_truncations) == wanted else None

    cdef object read_end(self, uint64_t nbytes, uint64_t pos):
        """A read at or behind the end of the file: the store may have grown."""
        if nbytes == 0 or not self._grown(pos):
            return b""
        return self.read_bytes(nbytes, pos)

    cdef uint64_t copy_cached(self, char* target, uint64_t nbytes, uint64_t pos, uint32_t nr_truncations) noexcept:
        """Copies the cached beginning of a range inside the file; nothing counts if it was truncated since."""
        cdef int64_t prev_pos = self.ra.prev_pos
        cdef uint64_t last_index = <uint64_t>-1 if prev_pos <= 0 else <uint64_t>(prev_pos - 1) >> PAGE_SHIFT
        cdef uint64_t done
        if nbytes > GIL_COPY_MAX:
            with nogil:
                done = read_cached(self.seg, self.number, pos, nbytes, target, last_index)
        else:
            done = read_cached(self.seg, self.number, pos, nbytes, target, last_index)
        if not mapping_not_truncated_since(self.m, nr_truncations):
            return 0
        if done == nbytes:
            self.ra.prev_pos = <int64_t>(pos + done)
            count(self.seg, HITS, 1)
            count(self.seg, BYTES_ASKED, <int64_t>done)
        return done

    cdef uint64_t finish_slow(self, object owner, char* address, uint64_t nbytes, uint64_t pos, uint64_t done,
                              uint32_t nr_truncations) except? 0xFFFFFFFFFFFFFFFF:
        """Lets the layer above bring in and copy the rest. Returns the bytes there are in the end."""
        cdef CopyTarget target
        if done == 0 and self.is_random and self.read_missing(address, nbytes, pos, nr_truncations):
            return nbytes
        target = CopyTarget.__new__(CopyTarget)
        target.address = address
        target.nbytes = nbytes
        target.owner = owner
        return self._read_slow(target, done, pos)

    cdef bint read_missing(self, char* target, uint64_t nbytes, uint64_t pos, uint32_t nr_truncations) except -1:
        """A read inside one missing page of a file that the engine may read itself, if nothing is in the way. Returns
        whether it was served. invalidate_lock keeps the descriptor open."""
        cdef CFolio* folio
        cdef int fd
        cdef bint direct, is_whole = False
        if ((pos & (PAGE_SIZE - 1)) + nbytes > PAGE_SIZE or self.ra.dropbehind
                or xa_is_pointer(xa_load(&self.m.pages, &self.seg.pool, pos >> PAGE_SHIFT))
                or not rwsem_try_read(&self.m.invalidate_lock)):
            return False
        fd = self.mapping.fd if self.mapping.host is not None else -1
        direct = self.mapping.direct
        with nogil:
            folio = NULL if fd < 0 else filemap_fill_page(self.seg, self.number, pos >> PAGE_SHIFT, fd, direct)
            rwsem_unlock_read(&self.m.invalidate_lock)
            if folio != NULL:
                copy_shared(target, folio_address(self.seg, folio) + (pos & (PAGE_SIZE - 1)), nbytes)
                folio_used(self.seg, folio)
                folio_put(self.seg, folio)
                is_whole = mapping_not_truncated_since(self.m, nr_truncations)
        if is_whole:
            self.ra.prev_pos = <int64_t>(pos + nbytes)
            self.mapping.note_miss(nbytes)
        if not self.is_open:
            self._read_ended()
        return is_whole

    def preadinto(self, buffer, offset):
        """Fills a writable buffer with the bytes at `offset`.

        Returns the bytes read: all of the buffer except at the end of the file. Raises as `pread`.
        """
        cdef uint64_t pos = to_offset(offset)
        return self.read_into(buffer, pos)

    cdef object read_into(self, object buffer, uint64_t pos):
        cdef Py_buffer view
        cdef uint64_t nbytes, size, done
        cdef uint32_t nr_truncations
        self.ready()
        if PyObject_GetBuffer_raw(buffer, &view, PyBUF_WRITABLE) != 0:
            PyErr_Clear()
            raise TypeError(f"a contiguous, writable buffer is needed, not {type(buffer).__name__}")
        try:
            nbytes = <uint64_t>view.len
            size = load_acquire_u64(&self.m.size)
            if nbytes == 0 or (pos >= size and not self._grown(pos)):
                return 0
            nr_truncations = load_acquire_u32(&self.m.nr_truncations)
            size = load_acquire_u64(&self.m.size)
            if pos >= size:
                return 0
            if nbytes > size - pos:
                nbytes = size - pos
            if nbytes <= COPY_PAGE_MAX:
                prefetch_cached(self.seg, self.number, pos, nbytes)
            done = self.copy_cached(<char*>view.buf, nbytes, pos, nr_truncations)
            if done < nbytes:
                done = self.finish_slow(buffer, <char*>view.buf, nbytes, pos, done, nr_truncations)
            return done
        finally:
            PyBuffer_Release(&view)

    def view(self, nbytes, offset):
        """A read-only memoryview of up to nbytes at `offset`, without a copy where one folio holds them.

        The folio stays as it is until the view is released: a truncation or an eviction changes nothing in it. What
        several folios hold is copied into a new one, which is pinned and counts as they do: at most 2 MiB, and half of
        the cache. `iter_views` copies nothing, and has no such limit.
        Returns a memoryview, shorter only at the end of the file. Raises as `pread`; CacheFullError where a copy would be
        larger than that.
        """
        cdef uint64_t pos = to_offset(offset)
        cdef uint64_t wanted = to_count(nbytes)
        cdef uint64_t size, offset_in
        cdef xa_entry entry
        cdef uint32_t order, nr_truncations
        cdef CFolio* folio
        self.ready()
        nr_truncations = load_acquire_u32(&self.m.nr_truncations)
        size = load_acquire_u64(&self.m.size)
        if pos < size and wanted > 0:
            if wanted > size - pos:
                wanted = size - pos
            entry = xa_load(&self.m.pages, &self.seg.pool, pos >> PAGE_SHIFT)
            if xa_is_pointer(entry):
                order = entry_order(entry)
                offset_in = pos & ((<uint64_t>PAGE_SIZE << order) - 1)
                folio = &self.seg.folios[entry_frame(entry)]
                if offset_in + wanted <= <uint64_t>PAGE_SIZE << order and folio_try_get(folio):
                    if (folio_readable(folio_state(folio), order) and folio_is(folio, self.number, pos >> PAGE_SHIFT)
                            and mapping_not_truncated_since(self.m, nr_truncations)):
                        self.ra.prev_pos = <int64_t>(pos + wanted)
                        folio_used(self.seg, folio)
                        count(self.seg, HITS, 1)
                        count(self.seg, BYTES_ASKED, <int64_t>wanted)
                        return folio_view(self.mapping.segment, folio, offset_in, wanted)
                    folio_put(self.seg, folio)
        return self._view_slow(wanted, pos)

    def _view_cached(self, uint64_t nbytes, uint64_t pos, uint64_t nbytes_min, uint64_t pinned_max):
        """A view of up to nbytes at byte pos if one cached folio holds all of them that the object has, nbytes_min or more,
        and fewer than pinned_max pages are pinned; else None."""
        cdef uint64_t size = load_acquire_u64(&self.m.size)
        cdef uint64_t folio_bytes
        cdef xa_entry entry
        if pos >= size or min(nbytes, size - pos) < nbytes_min:
            return None
        nbytes = min(nbytes, size - pos)
        entry = xa_load(&self.m.pages, &self.seg.pool, pos >> PAGE_SHIFT)
        if not xa_is_pointer(entry):
            return None
        folio_bytes = <uint64_t>PAGE_SIZE << entry_order(entry)
        if ((pos & (folio_bytes - 1)) + nbytes > folio_bytes
                or not folio_readable(folio_state(&self.seg.folios[entry_frame(entry)]), entry_order(entry))
                or counted(self.seg, NR_PINNED) >= <int64_t>pinned_max):
            return None
        return self.view(nbytes, pos)

    def _view_copied(self, Folio folio not None, uint64_t pos, uint64_t nbytes):
        """A view of bytes [pos, pos + nbytes), which lie inside the file, copied into a new folio that is in no mapping;
        None if not all of them are cached."""
        cdef CFolio* raw = folio.alive()
        cdef uint32_t nr_truncations
        cdef uint64_t size
        if folio_mapping(raw) != 0 or nbytes > <uint64_t>folio_nr_pages(raw) << PAGE_SHIFT:
            raise ValueError("the folio is in a mapping, or too small")
        self.ready()
        nr_truncations = load_acquire_u32(&self.m.nr_truncations)
        size = load_acquire_u64(&self.m.size)
        if pos + nbytes > size or self.copy_cached(folio_address(self.seg, raw), nbytes, pos, nr_truncations) < nbytes:
            return None
        folio_ref_add(raw, 1)
        return folio_view(folio.segment, raw, 0, nbytes)

    def _view_folio(self, Folio folio not None, uint64_t pos, uint64_t nbytes):
        """A view of bytes [pos, pos + nbytes) of the object, which the referenced folio holds."""
        cdef CFolio* raw = folio.alive()
        cdef uint64_t first = folio_index(raw) << PAGE_SHIFT
        if pos < first or pos + nbytes > first + (<uint64_t>folio_nr_pages(raw) << PAGE_SHIFT):
            raise ValueError("range outside the folio")
        folio_ref_add(raw, 1)
        return folio_view(folio.segment, raw, pos - first, nbytes)

    # -- reading at the position -------------------------------------------------------------------------------------

    cdef int64_t begin(self, bint* is_own) except -1:
        """Where an operation at the position begins: at a seek of the thread's own, else with the position locked."""
        cdef int64_t start
        if self.seg.dead:
            self.ready()
        start = self.own_start()
        is_own[0] = start >= 0
        if start >= 0:
            return start
        self.lock_position()
        try:
            start = self.shared_start()
        except BaseException:
            self.unlock_position()
            raise
        return start

    cdef void end(self, bint is_own) noexcept:
        if not is_own:
            self.unlock_position()

    def read(self, size=-1, /):
        """Reads up to `size` bytes from the position and moves it; all that is left with -1 or None.

        Returns bytes, b"" at the end of the file.
        """
        cdef int64_t nbytes = -1 if size is None else to_signed(size)
        if nbytes < 0:
            return self.readall()
        result = self.read_hinted(<uint64_t>nbytes)
        if result is not None:
            return result
        return self.read_unhinted(<uint64_t>nbytes)

    cdef object read_unhinted(self, uint64_t nbytes):
        cdef bint is_own
        cdef int64_t pos = self.begin(&is_own)
        try:
            result = self.read_bytes(nbytes, <uint64_t>pos)
            self.moved(is_own, pos + len(result))
            if not is_own:
                self.take_hint(len(result))
        finally:
            self.end(is_own)
        return result

    cdef object read_hinted(self, uint64_t nbytes):
        """A short read out of the folio that the last one ended in, or None. With the GIL held throughout no other thread
        can come between, so the position needs no lock, and the size no second look: a truncation holds the GIL."""
        cdef uint64_t pos = <uint64_t>self.position
        cdef uint64_t hint = load_relaxed_u64(&self.hint)
        cdef uint64_t there = nbytes
        cdef const char* source
        cdef bytes result
        if (not PC_HAS_GIL or hint == 0 or nbytes - 1 >= HINT_MAX or futex_is_locked(&self.position_lock)
                or self.seeks is not None or not self.is_open or self.seg.dead
                or pos + nbytes > load_acquire_u64(&self.m.size)):
            return None
        source = hint_source(self.seg, self.number, hint, pos, &there)
        if source == NULL or there < nbytes:
            return None
        result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>nbytes)
        copy_page(PyBytes_AS_STRING(result), source, nbytes)
        if not hint_holds(self.seg, hint):
            return None
        self.position = <int64_t>(pos + nbytes)
        self.sought = -1
        self.ra.prev_pos = self.position
        count(self.seg, HITS, 1)
        count(self.seg, BYTES_ASKED, <int64_t>nbytes)
        return result

    cdef void take_hint(self, uint64_t nbytes) noexcept:
        """After a read at the position that ended there."""
        if 0 < nbytes <= HINT_MAX:
            store_relaxed_u64(&self.hint, folio_hint(self.seg, self.number, <uint64_t>self.position - 1))

    def readall(self):
        """Reads from the position to the end of the file."""
        cdef uint64_t size
        cdef int64_t pos
        cdef bint is_own
        parts = []
        self.ready()
        pos = self.begin(&is_own)
        try:
            while True:
                size = load_acquire_u64(&self.m.size)
                part = self.read_bytes(size - <uint64_t>pos if size > <uint64_t>pos else 1, <uint64_t>pos)
                if not part:
                    break
                pos += len(part)
                parts.append(part)
                if not is_own:
                    self.moved(is_own, pos)
            if is_own:
                self.moved(is_own, pos)
        finally:
            self.end(is_own)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer, /):
        """Fills a writable buffer from the position and moves it. Returns the bytes read, 0 at the end of the file."""
        cdef bint is_own
        cdef int64_t pos = self.begin(&is_own)
        try:
            done = self.read_into(buffer, <uint64_t>pos)
            self.moved(is_own, pos + <int64_t>done)
        finally:
            self.end(is_own)
        return done

    # -- writing -----------------------------------------------------------------------------------------------------

    cdef int ready_to_write(self) except -1:
        if not self.is_open:
            raise ValueError("I/O operation on closed file")
        if self.seg.dead:
            raise RuntimeError("this cache belongs to the parent process: open a new one after fork()")
        if not self.may_write:
            raise _io.UnsupportedOperation("not writable")
        return 0

    def pwrite(self, data, offset):
        """Writes bytes at an offset, all of them; the file position stays. The object grows if they reach over its end.

        data: any contiguous buffer. Returns the bytes written, always all. Raises ValueError (closed, negative offset),
        io.UnsupportedOperation, TypeError, OSError (EFBIG; what reading a page that is written in part raises; the
        store's error when so much is dirty that it has to be written first, and cannot be): then the file holds a
        beginning of the data.
        Context: takes the inode lock; writes into cached pages run without Python code, the GIL kept up to 64 KiB.
        """
        cdef uint64_t pos = to_offset(offset)
        return self.write_buffer(data, pos, False, NULL)

    def write(self, data, /):
        """Writes bytes at the position and moves it; a file opened to append writes at the end, whatever is there by
        then. Returns the bytes written, always all. Raises as `pwrite`."""
        cdef uint64_t end = 0
        cdef bint is_own
        cdef int64_t pos = self.begin(&is_own)
        try:
            done = self.write_buffer(data, <uint64_t>pos, self.is_append, &end)
            self.moved(is_own, <int64_t>end)
        finally:
            self.end(is_own)
        return done

    cdef object write_buffer(self, object data, uint64_t pos, bint at_end, uint64_t* end):
        cdef Py_buffer view
        cdef uint64_t nbytes
        self.ready_to_write()
        if PyObject_GetBuffer_raw(data, &view, PyBUF_SIMPLE) != 0:
            PyErr_Clear()
            raise TypeError(f"a contiguous bytes-like object is needed, not {type(data).__name__}")
        if is_cached_memory(self.seg, view.buf) and view.len > 0:
            data = PyBytes_FromStringAndSize(<char*>view.buf, view.len)     # the write could change it half way
            PyBuffer_Release(&view)
            PyObject_GetBuffer_raw(data, &view, PyBUF_SIMPLE)
        try:
            nbytes = <uint64_t>view.len
            if at_end and self.is_through and nbytes > 0:
                behind = self._append_through(data)
                if behind is not None:
                    end[0] = behind
                    return nbytes
            pos = self.write_all(data, <const char*>view.buf, nbytes, pos, at_end)
        finally:
            PyBuffer_Release(&view)
        if end != NULL:
            end[0] = pos + nbytes
        if nbytes > 0:
            if dirty_is_plenty(self.seg):
                self._throttle(nbytes)
            if self.is_through:
                self._write_through(pos, nbytes)
        return nbytes

    cdef uint64_t write_all(self, object owner, const char* source, uint64_t nbytes, uint64_t pos,
                            bint at_end) except? 0xFFFFFFFFFFFFFFFF:
        """Writes all of a buffer under the inode lock. Returns where."""
        cdef uint64_t size, done = 0
        cdef CopySource rest
        sem_lock_write(&self.m.inode_lock)
        try:
            size = load_acquire_u64(&self.m.size)
            if self.may_be_another(at_end):
                self._before_change(at_end)
                size = load_acquire_u64(&self.m.size)
            if at_end:
                pos = size
            if pos + nbytes > <uint64_t>0x7FFFFFFFFFFFFFFF:
                raise OSError(_errno.EFBIG, f"cannot write {nbytes} bytes at offset {pos} of {self.mapping.name}: "
                                            f"beyond the largest offset")
            if pos <= size and nbytes > 0:
                if nbytes > GIL_COPY_MAX:
                    with nogil:
                        done = write_cached(self.seg, self.number, pos, nbytes, source)
                else:
                    done = write_cached(self.seg, self.number, pos, nbytes, source)
            if done < nbytes:
                rest = CopySource.__new__(CopySource)
                rest.address = source
                rest.nbytes = nbytes
                rest.owner = owner
                self._write_slow(rest, done, pos)
        finally:
            rwsem_unlock_write(&self.m.inode_lock)
        return pos

    cdef bint may_be_another(self, bint at_end) noexcept:
        """Whether others may have changed the object, which is looked at when something becomes dirty and nothing was: what
        appends then goes to the end that the store has. Asking a store in Python is for that alone. The inode lock is
        held."""
        if xa_marked(&self.m.pages, MARK_DIRTY) or xa_marked(&self.m.pages, MARK_WRITEBACK):
            return False
        return at_end if self.mapping.fd < 0 else not stamp_is_current(self.m, self.mapping.fd)

    def _write_cached(self, CopySource source not None, uint64_t done, uint64_t pos):
        """Writes source[done:] at byte pos + done as far as that is cached and free. Returns the bytes of source that
        are written then. Context: inode lock held; releases the GIL."""
        cdef uint64_t wrote
        if done > source.nbytes:
            raise ValueError("range outside the source")
        with nogil:
            wrote = write_cached(self.seg, self.number, pos + done, source.nbytes - done, source.address + done)
        return done + wrote

    def _check_and_advance_wb_err(self):
        """The errno of a write-back that failed since this file looked last, or 0; it has looked now."""
        cdef uint32_t since, seen
        cdef int number
        while True:
            since = load_acquire_u32(&self.wb_since)
            seen = since
            number = errseq_check_and_advance(&self.m.wb_err, &seen)
            if number == 0 or cas_acq_rel_u32(&self.wb_since, &since, seen):
                return number

    def tell(self):
        """The position (bytes)."""
        if not self.is_open:
            raise ValueError("I/O operation on closed file")
        return self.position if self.seeks is None else self.where()

    def seek(self, offset, whence=0, /):
        """Moves the position: from the start (0), the position (1) or the end (2). Returns the new one."""
        cdef int from_where
        cdef bint is_own
        if not self.is_open:
            raise ValueError("I/O operation on closed file")
        from_where = to_whence(whence)
        if self.seg.dead:
            self.ready()
        is_own = self.has_seeks_of_its_own()
        if not is_own:
            self.lock_position()
        try:
            return self.seek_to(offset, from_where, load_acquire_u64(&self.m.size))
        finally:
            self.end(is_own)
