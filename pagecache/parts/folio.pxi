@cython.final
@cython.freelist(64)
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class Folio:
    """One reference to a folio: 2**order pages of one mapping, with one descriptor.

    Objects come from an AddressSpace's lookups or from `Segment.alloc_folio`; the reference is dropped with the
    object or by `put`, and so is a lock that was taken through it.  A folio that was
    removed from its mapping keeps its contents as long as it is referenced.
    Context: for one thread at a time, which may be another one than the one that got it.
    """
    cdef Segment segment
    cdef CFolio* folio
    cdef bint is_lock_holder        # a signal may end a function anywhere: then the lock goes with the object

    def __dealloc__(self):
        if self.folio != NULL and self.segment is not None and not self.segment.seg.dead:
            if self.is_lock_holder:
                folio_unlock(&self.segment.seg, self.folio)
            folio_put(&self.segment.seg, self.folio)

    cdef CFolio* alive(self) except NULL:
        if self.folio == NULL:
            raise ValueError("the folio's reference was dropped")
        return self.folio

    def put(self):
        """Drops the reference now, and the lock if it is held; the object is unusable afterwards."""
        cdef CFolio* folio
        cdef bint is_lock_holder
        with cython.critical_section(self):     # a reference is dropped once
            folio = self.alive()
            is_lock_holder = self.is_lock_holder
            self.folio = NULL
            self.is_lock_holder = False
        if is_lock_holder:
            folio_unlock(&self.segment.seg, folio)
        folio_put(&self.segment.seg, folio)

    def __enter__(self):
        """The reference ends with the block, even if an exception keeps this object alive."""
        return self

    def __exit__(self, *exc):
        if self.folio != NULL:
            self.put()

    @property
    def index(self):
        """Page index of the first page; kept after removal."""
        return folio_index(self.alive())

    @property
    def order(self):
        return folio_order(self.alive())

    @property
    def nr_pages(self):
        return folio_nr_pages(self.alive())

    @property
    def frame(self):
        """Number of the first page frame."""
        return folio_number(&self.segment.seg, self.alive())

    @property
    def seq(self):
        """Sequence counter: changes with every removal, replacement, split and write."""
        return load_acquire_u32(&self.alive().seq)

    @property
    def mapping_number(self):
        """Number of the mapping that caches the folio, 0 when it was removed."""
        return folio_mapping(self.alive())

    @property
    def refcount(self):
        return load_relaxed_u32(&self.alive().refcount)

    @property
    def nr_pins(self):
        """Views that show the folio."""
        return load_relaxed_u32(&self.alive().nr_pins)

    @property
    def locked(self):
        return folio_test(self.alive(), FOLIO_LOCKED)

    @property
    def waiters(self):
        """Whether a thread may be waiting for the lock, or for write-back."""
        return folio_test(self.alive(), FOLIO_WAITERS)

    @property
    def handoff(self):
        """Whether a waiter lost so often that the lock will be handed to it."""
        return folio_test(self.alive(), FOLIO_HANDOFF)

    @property
    def uptodate(self):
        return folio_test(self.alive(), FOLIO_UPTODATE)

    @property
    def dirty(self):
        return folio_test(self.alive(), FOLIO_DIRTY)

    @property
    def writeback(self):
        return folio_test(self.alive(), FOLIO_WRITEBACK)

    @property
    def referenced(self):
        return folio_test(self.alive(), FOLIO_REFERENCED)

    @property
    def active(self):
        """Activated, or accessed often enough that reclaim will activate it when it meets it."""
        return folio_test(self.alive(), FOLIO_ACTIVE | FOLIO_ACCESSED)

    @property
    def workingset(self):
        return folio_test(self.alive(), FOLIO_WORKINGSET)

    @property
    def readahead(self):
        """The readahead marker (while under write-back: the reclaim flag)."""
        return folio_test(self.alive(), FOLIO_READAHEAD)

    @property
    def dropbehind(self):
        return folio_test(self.alive(), FOLIO_DROPBEHIND)

    @property
    def unevictable(self):
        return folio_test(self.alive(), FOLIO_UNEVICTABLE)

    def trylock(self):
        """Locks if the lock is free. Returns whether it did."""
        cdef bint taken = folio_trylock(self.alive())
        if taken:
            self.is_lock_holder = True
        return taken

    def lock(self, while_waiting=None):
        """Locks, sleeping if needed.

        while_waiting: called again and again meanwhile; what it raises ends the wait.
        Raises whatever a signal handler raises (KeyboardInterrupt); then the lock is not held.
        Context: releases the GIL while it waits; ascending index order when several folios are locked.
        """
        cdef CFolio* folio = self.alive()
        cdef FolioWaiter waiter
        cdef int r
        if folio_trylock(folio):
            self.is_lock_holder = True
            return
        waiter.nr_lost = 0
        waiter.designated = False
        try:
            while True:
                with nogil:
                    r = folio_lock_slice(folio, &waiter)
                if r == 0:
                    self.is_lock_holder = True
                    return
                PyErr_CheckSignals()
                if while_waiting is not None:
                    while_waiting()
        except BaseException:
            folio_lock_cancel(&self.segment.seg, folio, &waiter)
            raise

    def unlock(self):
        if not folio_test(self.alive(), FOLIO_LOCKED):
            raise RuntimeError("the folio is not locked")
        self.is_lock_holder = False
        folio_unlock(&self.segment.seg, self.folio)

    def wait_unlocked(self, bint drop=False, while_waiting=None):
        """Waits until the folio is not locked, or is another one. drop: the reference is given up first, so that the
        wait hinders no other. while_waiting: as for `lock`. Context: releases the GIL."""
        self.wait_flag(FOLIO_LOCKED, drop, while_waiting)

    def wait_writeback(self):
        """Waits until the folio is not under write-back. Context: releases the GIL."""
        self.wait_flag(FOLIO_WRITEBACK, False, None)

    cdef object wait_flag(self, uint32_t flag, bint drop, while_waiting):
        cdef CFolio* folio = self.alive()
        cdef uint32_t seq = load_acquire_u32(&folio.seq)
        cdef int r
        if drop:
            self.put()
        while True:
            with nogil:
                r = folio_wait_slice(folio, flag, &seq if drop else NULL)
            if r == 0:
                return None
            PyErr_CheckSignals()
            if while_waiting is not None:
                while_waiting()

    def end_read(self, bint success):
        """Ends a read into the locked folio: unlocks it, and if it succeeded makes it uptodate in the same step."""
        if not folio_test(self.alive(), FOLIO_LOCKED):
            raise RuntimeError("the folio is not locked")
        self.is_lock_holder = False
        folio_end_read(&self.segment.seg, self.folio, success)

    def mark_uptodate(self):
        """Makes a locked folio, whose data is complete, uptodate."""
        folio_set(self.alive(), FOLIO_UPTODATE)

    def clear_uptodate(self):
        """Makes a locked folio unreadable until it is read again."""
        folio_clear(self.alive(), FOLIO_UPTODATE)
        folio_seq_bump(self.folio)

    def test_clear_readahead(self):
        """Clears the readahead marker; returns whether it was set."""
        return folio_test_clear(self.alive(), FOLIO_READAHEAD)

    def set_dropbehind(self, bint value=True):
        if value:
            folio_set(self.alive(), FOLIO_DROPBEHIND)
        else:
            folio_clear(self.alive(), FOLIO_DROPBEHIND)

    def mark_accessed(self):
        """Notes an access."""
        folio_used(&self.segment.seg, self.alive())

    def deactivate(self):
        """Moves the folio to the tail of the inactive list: it leaves next."""
        cdef CFolio* folio = self.alive()
        if not folio_test(folio, FOLIO_UNEVICTABLE):
            folio_clear(folio, FOLIO_REFERENCED | FOLIO_ACCESSED)
            lru_move(&self.segment.seg, folio, False, not folio_test(folio, FOLIO_DIRTY | FOLIO_WRITEBACK))

    def is_page_of(self, AddressSpace mapping, uint64_t index):
        """Whether the folio caches page `index` of the mapping now. Certain while it is locked."""
        return folio_is(self.alive(), mapping.number, index)

    def zero(self, uint64_t offset, uint64_t nbytes):
        """Zeroes bytes [offset, offset + nbytes) of the locked folio; concurrent readers see old or new bytes."""
        cdef CFolio* folio = self.alive()
        cdef uint64_t length = <uint64_t>folio_nr_pages(folio) << PAGE_SHIFT
        if offset > length or nbytes > length - offset:
            raise ValueError("range outside the folio")
        folio_write_begin(folio)
        if self.segment.seg.header.has_data:
            memset(folio_address(&self.segment.seg, folio) + offset, 0, nbytes)
        folio_write_end(folio)

    def zero_unshared(self, uint64_t offset, uint64_t nbytes):
        """As `zero`, but only if only the caller and the page cache hold the folio: a view never changes.
        Returns whether it was done."""
        cdef CFolio* folio = self.alive()
        cdef uint64_t length = <uint64_t>folio_nr_pages(folio) << PAGE_SHIFT
        if offset > length or nbytes > length - offset:
            raise ValueError("range outside the folio")
        if not folio_test(folio, FOLIO_LOCKED) or folio_mapping(folio) == 0:
            raise ValueError("the folio is not locked or in no mapping")
        return filemap_zero_unshared(&self.segment.seg, folio, offset, nbytes) == 0

    def mark_dirty(self):
        """Makes the locked, uptodate folio dirty. Returns False when so much is dirty that the caller has to
        wait; then nothing has changed."""
        cdef CFolio* folio = self.alive()
        if not folio_test(folio, FOLIO_LOCKED) or folio_mapping(folio) == 0:
            raise ValueError("the folio is not locked or in no mapping")
        return folio_mark_dirty(&self.segment.seg, folio)

    cdef CFolio* checked(self, AddressSpace mapping, CopySource source, uint64_t done, uint64_t pos) except NULL:
        """The folio, if it is locked, of the mapping, holds byte pos, and the source has bytes from `done` on."""
        cdef CFolio* folio = self.alive()
        if not folio_test(folio, FOLIO_LOCKED) or not folio_is(folio, mapping.number, pos >> PAGE_SHIFT):
            raise ValueError("the folio is not locked or does not hold that byte")
        if done > source.nbytes:
            raise ValueError("range outside the source")
        return folio

    def write(self, AddressSpace mapping not None, CopySource source not None, uint64_t done, uint64_t pos, *,
              bint extend=True):
        """Writes source[done:], as far as it fits, at byte pos of the object into the locked, uptodate folio, which
        becomes dirty. extend: i_size grows with it (the inode lock is held); otherwise bytes behind it are not stored.

        Returns the bytes taken, 0 when too much is dirty.
        """
        cdef CFolio* folio = self.checked(mapping, source, done, pos)
        if not folio_test(folio, FOLIO_UPTODATE):
            raise ValueError("the folio is not uptodate")
        return folio_write(&self.segment.seg, mapping.m, folio, pos, source.address + done, source.nbytes - done, extend)

    def write_new(self, AddressSpace mapping not None, CopySource source not None, uint64_t done, uint64_t pos):
        """The same for a locked folio that is not uptodate and of which nothing else is in the store: its other bytes
        become zeros, and it uptodate. Returns the bytes taken, 0 when too much is dirty."""
        cdef CFolio* folio = self.checked(mapping, source, done, pos)
        cdef uint64_t offset = pos - (folio_index(folio) << PAGE_SHIFT)
        cdef uint64_t length = <uint64_t>folio_nr_pages(folio) << PAGE_SHIFT
        cdef uint64_t nbytes = source.nbytes - done
        cdef char* address = folio_address(&self.segment.seg, folio)
        if folio_test(folio, FOLIO_UPTODATE):
            raise ValueError("the folio is uptodate")
        if nbytes > length - offset:
            nbytes = length - offset
        if not folio_mark_dirty(&self.segment.seg, folio):
            return 0
        memset(address, 0, offset)
        memcpy(address + offset, source.address + done, nbytes)
        memset(address + offset + nbytes, 0, length - offset - nbytes)
        folio_set(folio, FOLIO_UPTODATE)
        size_extend(mapping.m, pos + nbytes)
        folio_mark_accessed(folio)
        return nbytes

    def tobytes(self):
        """A copy of the folio's bytes."""
        return PyBytes_FromStringAndSize(folio_address(&self.segment.seg, self.alive()),
                                         <Py_ssize_t>folio_nr_pages(self.folio) << PAGE_SHIFT)

    def split(self, uint64_t index):
        """Splits the locked folio until page `index` is a folio of its own; lock and reference stay with the first
        piece. Returns whether it succeeded: not when others hold references or index nodes ran out."""
        cdef CFolio* folio = self.alive()
        cdef int r
        if not folio_index(folio) <= index < folio_index(folio) + folio_nr_pages(folio):
            raise ValueError("index outside the folio")
        with nogil:
            r = folio_split(&self.segment.seg, folio, index)
        return r == 0

    def __repr__(self):
        if self.folio == NULL:
            return "<Folio, dropped>"
        flags = [name for name, value in (
            ("locked", FOLIO_LOCKED), ("uptodate", FOLIO_UPTODATE), ("dirty", FOLIO_DIRTY),
            ("writeback", FOLIO_WRITEBACK), ("referenced", FOLIO_REFERENCED), ("active", FOLIO_ACTIVE),
            ("lru", FOLIO_LRU), ("readahead", FOLIO_READAHEAD)) if folio_test(self.folio, <uint32_t>value)]
        return f"<Folio index={self.index} order={self.order} refs={self.refcount} {' '.join(flags)}>"


cdef Folio folio_object(Segment segment, CFolio* folio):
    """Wraps a reference that the caller holds."""
    cdef Folio self = Folio.__new__(Folio)
    self.segment = segment
    self.folio = folio
    return self


cdef Folio locked_folio_object(Segment segment, CFolio* folio):
    """Wraps a reference and the lock."""
    cdef Folio self = folio_object(segment, folio)
    self.is_lock_holder = True
    return self


cdef bint range_is_cached(CSegment* seg, CMapping* m, uint64_t pos, uint64_t nbytes) noexcept nogil:
    """Whether all pages of a byte range are cached and readable as they are."""
    cdef uint64_t index = pos >> PAGE_SHIFT
    cdef uint64_t end = (pos + nbytes + PAGE_SIZE - 1) >> PAGE_SHIFT
    cdef xa_entry entry
    while index < end:
        entry = xa_load(&m.pages, &seg.pool, index)
        if not xa_is_pointer(entry) or not folio_readable(
                folio_state(&seg.folios[entry_frame(entry)]), entry_order(entry)):
            return False
        index = (index & ~((<uint64_t>1 << entry_order(entry)) - 1)) + (<uint64_t>1 << entry_order(entry))
    return True
