@cython.final
@cython.freelist(8)
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class WritebackBatch:
    """A run of neighbouring folios under write-back, each with a reference.

    A batch that is dropped before `end` was not written: its folios are dirty again.
    """
    cdef AddressSpace mapping
    cdef CSegment* seg
    cdef CFolio* folios[512]
    cdef uint32_t nr
    cdef readonly uint64_t start            # index of the first page
    cdef readonly uint64_t next_index       # index behind the last page
    cdef readonly uint64_t nbytes           # of the object, from the first page on

    def __dealloc__(self):
        if self.mapping is not None and not self.seg.dead and self.nr > 0:
            self.finish(0, True)

    def __len__(self):
        return self.nr

    @property
    def nr_pages(self):
        """Pages in the run."""
        return self.next_index - self.start

    @property
    def offset(self):
        """Byte offset of the first page."""
        return self.start << PAGE_SHIFT

    def write_fd(self, int fd, bint direct=False):
        """Writes the run to a descriptor, at its own offset, if the file is the one whose bytes are cached.

        Returns (bytes written; the errno of what stopped it if they are fewer than nbytes; STAMP_SAME). If it is not,
        (0, 0, STAMP_OTHER), or (0, 0, STAMP_DOUBTFUL); the former too if others have changed the file's size while it
        was written.
        Context: the mapping's store_lock held; releases the GIL.
        """
        cdef int64_t done = 0, size = 0, end
        cdef int error = 0, state
        with nogil:
            state = stamp_look(self.mapping.m, fd, &size)
            if state == C_STAMP_SAME:
                own_write_begin(self.mapping.m)
                done = run_write_fd(self.seg, fd, direct, <int64_t>(self.start << PAGE_SHIFT), self.folios, self.nr,
                                    self.nbytes, &error)
                end = <int64_t>(self.start << PAGE_SHIFT) + done
                if not own_write_end(self.mapping.m, fd, end if done > 0 and end > size else size):
                    done, error, state = 0, 0, C_STAMP_OTHER
        return done, error, state

    def memory(self):
        """Read-only memoryviews over the bytes to write, one per folio. A view that is kept keeps its folio."""
        cdef uint64_t left = self.nbytes, piece
        cdef uint32_t i
        out = []
        for i in range(self.nr):
            piece = <uint64_t>folio_nr_pages(self.folios[i]) << PAGE_SHIFT
            if piece > left:
                piece = left
            folio_ref_add(self.folios[i], 1)
            out.append(folio_view(self.mapping.segment, self.folios[i], 0, piece))
            left -= piece
        return out

    def end(self, uint64_t written, bint keep=True):
        """Ends the write-back: the first `written` bytes are in the store.

        keep: what is not written stays dirty; False: it is taken for clean, and lost.
        Context: releases the GIL; wakes the waiters.
        """
        with nogil:
            self.finish(written, keep)

    cdef void finish(self, uint64_t written, bint keep) noexcept nogil:
        cdef uint64_t at = 0, length
        cdef uint32_t i
        cdef bint good
        if written > 0:
            disk_size_reached(self.mapping.m, (self.start << PAGE_SHIFT) + written)
        for i in range(self.nr):
            length = <uint64_t>folio_nr_pages(self.folios[i]) << PAGE_SHIFT
            at += length if length < self.nbytes - at else self.nbytes - at
            good = at <= written
            if not good and keep:
                folio_redirty(self.seg, self.folios[i])
            folio_end_writeback(self.seg, self.folios[i], good)
            folio_drop_behind(self.seg, self.folios[i])
        self.nr = 0


def next_marked_folio(AddressSpace mapping not None, uint64_t start, uint64_t last, int mark):
    """The first folio of pages start..last that carries a mark (DIRTY, WRITEBACK or TOWRITE), referenced, or None."""
    cdef CFolio* folio = next_marked(mapping.seg, mapping.m, start, last, mark)
    return None if folio == NULL else folio_object(mapping.segment, folio)


def tag_pages_for_writeback(AddressSpace mapping not None, uint64_t start, uint64_t last):
    """Marks TOWRITE what is dirty in pages start..last now. Returns the folios. Context: releases the GIL."""
    cdef uint64_t nr
    with nogil:
        nr = tag_for_writeback(mapping.seg, mapping.m, start, last)
    return nr


def wants_writeback(AddressSpace mapping not None, Folio folio not None):
    """Whether a locked folio is still of the mapping, dirty, and not being written already."""
    return folio_wants_writeback(folio.alive(), mapping.number)


def collect_writeback(AddressSpace mapping not None, Folio folio not None, uint64_t last, int mark, uint64_t max_bytes):
    """Puts a locked, dirty folio under write-back, with the marked ones behind it, up to page `last` and max_bytes, as
    far as that takes no wait; they are unlocked.

    Returns a WritebackBatch, which takes over the reference; None when the folio lies behind the end of the object.
    Context: releases the GIL.
    """
    cdef CFolio* raw = folio.alive()
    cdef WritebackBatch batch
    if not folio.is_lock_holder or not folio_wants_writeback(raw, mapping.number):
        raise ValueError("only a locked, dirty folio of this mapping can be put under write-back")
    batch = WritebackBatch.__new__(WritebackBatch)
    batch.mapping = mapping
    batch.seg = mapping.seg
    batch.start = folio_index(raw)
    folio.is_lock_holder = False
    with nogil:
        batch.nr = writeback_collect(mapping.seg, mapping.number, raw, last, mark, max_bytes, batch.folios, &batch.nbytes)
    if batch.nr == 0:
        return None
    folio.folio = NULL
    raw = batch.folios[batch.nr - 1]
    batch.next_index = folio_index(raw) + folio_nr_pages(raw)
    return batch


def has_mark(AddressSpace mapping not None, int mark):
    """Whether any folio of the mapping carries a mark."""
    return xa_marked(&mapping.m.pages, mark)


def dirtied_when_ns(AddressSpace mapping not None):
    """When the mapping became dirty (ns of the monotonic clock); worth something while it is."""
    return load_relaxed_u64(&mapping.m.dirtied_when_ns)


def get_writeback_index(AddressSpace mapping not None):
    """Page from which a cyclic write-back goes on."""
    return mapping.m.writeback_index


def set_writeback_index(AddressSpace mapping not None, uint64_t index):
    """Sets it."""
    mapping.m.writeback_index = index


def set_stable_writes(AddressSpace mapping not None, bint value):
    """Whether bytes under write-back may not change (AS_STABLE_WRITES)."""
    store_relaxed_u32(&mapping.m.flags, MAPPING_STABLE_WRITES if value else 0)


def mapping_set_error(AddressSpace mapping not None, int number):
    """Notes that a write-back failed with an errno: it is reported once to each open file."""
    errseq_set(&mapping.m.wb_err, number)


def mapping_sample_error(AddressSpace mapping not None):
    """What a file that is opened now has seen of the mapping's errors."""
    return errseq_sample(&mapping.m.wb_err)


@cython.final
@cython.no_gc_clear
cdef class OwnWrite:
    """A write of the cache itself to an object's store: until it ends, the object changing is no news.

    takes_stamp: False when another program had changed the object before: then it stays changed. size: what the file has
    afterwards (bytes), if that is known: with another one it was changed by others meanwhile, and it counts as changed.
    """
    cdef AddressSpace mapping
    cdef bint is_active
    cdef bint takes_stamp
    cdef public int64_t size
    cdef readonly bint is_alone             # whether the file's size was not changed by others meanwhile, once it has ended

    def __cinit__(self, AddressSpace mapping not None, bint takes_stamp=True, int64_t size=-1):
        self.mapping = mapping
        self.is_active = False
        self.takes_stamp = takes_stamp
        self.size = size
        self.is_alone = True

    def __enter__(self):
        own_write_begin(self.mapping.m)
        self.is_active = True
        return self

    def __exit__(self, *exc):
        self.finish()

    def __dealloc__(self):
        if not self.mapping.seg.dead:
            self.finish()

    cdef void finish(self) noexcept:
        if self.is_active:
            self.is_active = False
            self.is_alone = own_write_end(self.mapping.m, self.mapping.fd if self.takes_stamp else -1, self.size)


def own_write_word(AddressSpace mapping not None):
    """How many writes of the cache itself to the object's store are under way (lowest 16 bits), and how many began."""
    return load_acquire_u32(&mapping.m.own_writes)


def punch_hole(int fd, int64_t offset, int64_t nbytes):
    """Gives up the blocks of a range of a file, which reads as zeros then. Raises OSError. Context: releases the GIL."""
    cdef int r
    with nogil:
        r = punch_hole_fd(fd, offset, nbytes)
    if r < 0:
        raise_errno(r, f"cannot punch a hole of {nbytes} bytes at offset {offset}")


def sync_file_system(int fd):
    """Makes durable all that was written to the file system of an open file. Raises OSError. Context: releases the GIL."""
    cdef int r
    with nogil:
        r = sync_file_system_of(fd)
    if r < 0:
        raise_errno(r, "cannot sync the file system")
