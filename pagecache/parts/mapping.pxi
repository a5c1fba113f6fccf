STAMP_SAME, STAMP_DOUBTFUL, STAMP_OTHER = C_STAMP_SAME, C_STAMP_DOUBTFUL, C_STAMP_OTHER

cdef enum:
    MINCORE_SHORT = 4096            # pages; longer looks release the GIL


@cython.final
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class AddressSpace:
    """The cached pages of one store object.

    segment: where they live. name: what error messages call the object. host: the store. number: adopts a mapping that
    another AddressSpace made, perhaps through another view of the segment; it ends with its maker. key: an ObjectKey;
    becomes the holder of the object that the directory knows by it, as with number and generation; raises KeyError if there
    is none, or it has a holder.

    With its holder an object gives up its pages, unless it is in the directory (`publish`) and `stays`.
    """
    cdef readonly Segment segment
    cdef CSegment* seg
    cdef CMapping* m
    cdef readonly uint32_t number
    cdef bint is_maker
    cdef public object name
    cdef public object host                 # the store
    cdef public object key
    cdef object _validator                  # of the bytes that are cached
    cdef ObjectKey _published               # by what the directory has it
    cdef public bint stays                  # in the directory, when it has no holder any more
    cdef public int fd                      # descriptor the engine may read from, or -1
    cdef public bint direct                 # the descriptor needs aligned whole pages (O_DIRECT)
    cdef readonly object store_lock         # Mutex: one at a time changes the file that fd names
    cdef public object maps                 # what unmap_mapping_range has to visit
    cdef public object backing              # owned by the layer above
    cdef dict failures
    cdef object __weakref__

    def __cinit__(self, Segment segment not None, name="object", *, uint32_t number=0, ObjectKey key=None,
                  generation=None):
        cdef bint has_room
        self.segment = segment
        self.seg = &segment.seg
        if self.seg.dead:
            raise RuntimeError("the cache belongs to the parent process")
        self.is_maker = number == 0
        if key is not None or generation is not None:
            number = claimed_number(self.seg, number, key, generation)
            self.is_maker, self._published = True, key
            known = known_object(self.seg, number)
            self._validator, name = known[4], known[5]
        elif self.is_maker:
            with nogil:
                has_room = records_ensure(self.seg)
            if not has_room:
                raise CacheFullError("no page can be freed to know one more object: release views, or enlarge the cache")
            number = mapping_alloc(self.seg)
            if number == 0:
                raise OSError(_errno.ENFILE, f"all {segment.seg.header.nr_mappings - 1} mappings of the cache are in use")
        elif (number >= segment.seg.header.nr_mappings
                or load_acquire_u32(&self.seg.mappings[number].in_use) == 0):
            raise ValueError(f"no mapping has the number {number}")
        self.number = number
        self.m = &self.seg.mappings[self.number]
        self.name = name
        self.fd = -1
        self.store_lock = Mutex()
        self.failures = {}

    def __dealloc__(self):
        if self.number == 0 or not self.is_maker or self.seg.dead:
            return
        self.wait_for_requests()
        if self.stays and self._published is not None and mapping_park(self.seg, self.number):
            return
        directory_unpublish(self.seg, self.number)
        self.drop_all()
        with nogil:
            mapping_free(self.seg, self.number)

    cdef void wait_for_requests(self) noexcept:
        cdef uint32_t nr_inflight
        with nogil:
            while True:
                nr_inflight = load_acquire_u32(&self.m.nr_inflight)
                if nr_inflight == 0:
                    break
                futex_wait(&self.m.nr_inflight, nr_inflight, WAIT_SLICE_NS)

    cdef void drop_all(self) noexcept:
        """Removes every folio, dirty or not: they cannot be reached any more."""
        cdef CFolio* folio
        cdef CSegment* seg = self.seg
        cdef uint64_t at = 0
        with nogil:
            while True:
                folio = mapping_next_folio(seg, self.m, &at)
                if folio == NULL and at == 0:
                    break
                if folio == NULL:
                    at = 0              # until nothing is left anywhere
                    continue
                folio_lock_uninterruptible(folio)
                if folio_mapping(folio) == self.number:
                    filemap_remove_folio(seg, folio)
                folio_unlock(seg, folio)
                folio_put(seg, folio)

    def publish(self, ObjectKey key not None):
        """Lets the directory find the object by its key. Returns whether it does: not if another one is known by it."""
        cdef CObjectText text
        text_pack(&text, &key.key, self._validator, str(self.name))
        if self._published is None and directory_publish(self.seg, self.number, &key.key, &text):
            self._published = key
            return True
        return False

    def unpublish(self):
        """Lets the directory find the object no more: it ends with who holds it."""
        directory_unpublish(self.seg, self.number)
        self._published = None

    @property
    def place(self):
        """(number, generation) for `read_object`, or None where the directory does not know the object."""
        cdef uint32_t generation = load_acquire_u32(&self.m.generation)
        return None if generation & 1 else (self.number, generation)

    @property
    def validator(self):
        """What tells the version of the cached bytes from others; reads by `place` are of one version."""
        return self._validator

    @validator.setter
    def validator(self, value):
        cdef CObjectText text
        self._validator = value
        if self._published is not None:
            text_pack(&text, &self._published.key, value, str(self.name))
            directory_set_text(self.seg, self.number, &text)

    # -- size ----------------------------------------------------------------------------------------------------------

    @property
    def size(self):
        """i_size: bytes."""
        return load_acquire_u64(&self.m.size)

    @size.setter
    def size(self, uint64_t value):
        mapping_set_size(self.m, value)

    @property
    def nr_truncations(self):
        """Changes when `size` becomes smaller. A reader loads it before `size`, and copies again if it has changed."""
        return load_acquire_u32(&self.m.nr_truncations)

    @property
    def disk_size(self):
        """Bytes of the object that the store has: fewer than `size` while an extension is not written back."""
        return bytes_on_disk(self.m)

    @disk_size.setter
    def disk_size(self, uint64_t value):
        store_release_u64(&self.m.disk_size, value)

    @property
    def nrpages(self):
        """Cached pages."""
        return load_acquire_u64(&self.m.nrpages)

    @property
    def empty(self):
        """Whether the index holds nothing, not even shadows."""
        return xa_empty(&self.m.pages)

    @property
    def nr_inflight(self):
        """Background requests that have not ended: the descriptor is in use."""
        return load_acquire_u32(&self.m.nr_inflight)

    def wait_inflight(self, double timeout_s):
        """Waits until no background request of the engine is under way. Returns whether that is so."""
        cdef uint32_t nr
        cdef int64_t until = monotonic_ns() + <int64_t>(timeout_s * 1e9)
        while True:
            nr = load_acquire_u32(&self.m.nr_inflight)
            if nr == 0:
                return True
            if monotonic_ns() >= until:
                return False
            with nogil:
                futex_wait(&self.m.nr_inflight, nr, WAIT_SLICE_NS)
            PyErr_CheckSignals()

    # -- invalidate_lock ---------------------------------------------------------------------------------------------

    def lock_shared(self):
        """Takes invalidate_lock for filling pages. Context: releases the GIL while it waits."""
        sem_lock_read(&self.m.invalidate_lock)

    def trylock_shared(self):
        return rwsem_try_read(&self.m.invalidate_lock)

    def unlock_shared(self):
        rwsem_unlock_read(&self.m.invalidate_lock)

    def lock_exclusive(self):
        """Takes invalidate_lock for removing pages together with what is below them. Context: releases the GIL."""
        sem_lock_write(&self.m.invalidate_lock)

    def trylock_exclusive(self):
        return rwsem_try_write(&self.m.invalidate_lock)

    def unlock_exclusive(self):
        rwsem_unlock_write(&self.m.invalidate_lock)

    @property
    def nr_waiting(self):
        """Threads that wait for invalidate_lock now: (shared, exclusive)."""
        return (load_relaxed_u32(&self.m.invalidate_lock.nr_readers_waiting),
                load_relaxed_u32(&self.m.invalidate_lock.nr_writers_waiting))

    def shared(self):
        """`with mapping.shared():` holds invalidate_lock as `lock_shared` does. A signal, which may end a Python function
        between any two steps, never leaves it held."""
        return lock_guard(self, &self.m.invalidate_lock, False, True)

    def exclusive(self, *, bint wait=True):
        """The same for `lock_exclusive`. wait: False to try only: the value of the block's `as` says whether it is
        held."""
        return lock_guard(self, &self.m.invalidate_lock, True, wait)

    def inode_locked(self):
        """The same for the inode lock (i_rwsem), held alone to write or truncate, outside invalidate_lock."""
        return lock_guard(self, &self.m.inode_lock, True, True)

    @property
    def nr_waiting_to_write(self):
        """Threads that wait for the inode lock now."""
        return load_relaxed_u32(&self.m.inode_lock.nr_writers_waiting)

    # -- lookup ------------------------------------------------------------------------------------------------------

    def get_entry(self, uint64_t index):
        """What the index holds for a page: a referenced Folio, the shadow of an eviction as an int, or None."""
        cdef xa_entry entry
        cdef CFolio* folio = filemap_get_entry(self.seg, self.number, index, &entry)
        if folio != NULL:
            return folio_object(self.segment, folio)
        return xa_to_value(entry) if xa_is_value(entry) else None

    def get_folio(self, uint64_t index):
        """The folio that caches a page, referenced, or None."""
        cdef xa_entry entry
        cdef CFolio* folio = filemap_get_entry(self.seg, self.number, index, &entry)
        return None if folio == NULL else folio_object(self.segment, folio)

    def get_read_batch(self, uint64_t index, uint64_t last_index):
        """The cached folios from page `index` on, up to last_index or 31 folios, referenced.  The batch ends after a
        folio that is not uptodate or carries the readahead marker, and before a hole."""
        cdef FolioBatch batch = batch_object(self, index, False)
        cdef xa_entry entry
        cdef CFolio* folio
        cdef uint32_t state
        while batch.next_index <= last_index and batch.nr < READ_BATCH_FOLIOS:
            folio = filemap_get_entry(self.seg, self.number, batch.next_index, &entry)
            if folio == NULL:
                break
            batch.folios[batch.nr] = folio
            batch.nr += 1
            batch.next_index = folio_index(folio) + folio_nr_pages(folio)
            state = folio_state(folio)
            if not state & FOLIO_UPTODATE or state & FOLIO_READAHEAD:
                break
        return batch

    def next_gap(self, uint64_t index, uint64_t max_scan):
        """First page at or after index, within max_scan pages, that is not cached; index + max_scan if all are."""
        cdef uint64_t at = index, end = index + max_scan
        cdef xa_entry entry
        while at < end:
            entry = xa_load(&self.m.pages, &self.seg.pool, at)
            if not xa_is_pointer(entry):
                return at
            at = (at & ~((<uint64_t>1 << entry_order(entry)) - 1)) + (<uint64_t>1 << entry_order(entry))
        return at if at < end else end

    def next_present(self, uint64_t index, uint64_t last):
        """First cached page in index..last, last + 1 if none is."""
        cdef uint64_t found
        with nogil:
            found = mapping_next_present(self.seg, self.m, index, last)
        return found

    def prev_gap(self, uint64_t index, uint64_t max_scan):
        """Last page at or before index, within max_scan pages, that is not cached; -1 when page 0 is reached and
        cached; index - max_scan if all are."""
        cdef uint64_t at = index, n = 0, first
        cdef xa_entry entry
        while n < max_scan:
            entry = xa_load(&self.m.pages, &self.seg.pool, at)
            if not xa_is_pointer(entry):
                return <int64_t>at
            first = at & ~((<uint64_t>1 << entry_order(entry)) - 1)
            if first == 0 and at < max_scan - n:
                return -1
            n += at - first + 1
            at = first - 1
        return <int64_t>(index - max_scan)

    def new_batch(self, uint64_t index):
        """An empty batch for new folios from page `index` on."""
        return batch_object(self, index, True)

    # -- adding and removing -----------------------------------------------------------------------------------------

    def add_folio(self, Folio folio not None, uint64_t index, *, bint referenced=False, bint dropbehind=False,
                  bint writing=False):
        """Adds a new folio, which comes back locked (filemap_add_folio).

        Returns 0, -EEXIST or -ENOMEM (then it is in no mapping).
        """
        cdef uint32_t flags = 0
        cdef CFolio* raw = folio.alive()
        if index & (folio_nr_pages(raw) - 1):
            raise ValueError(f"index {index} is not aligned to a folio of order {folio_order(raw)}")
        if folio_mapping(raw) != 0:
            raise ValueError("the folio is in a mapping")
        if referenced:
            flags |= FOLIO_REFERENCED
        if dropbehind:
            flags |= FOLIO_DROPBEHIND
        cdef int r = mapping_add_ensured(self.seg, self.number, raw, index, flags, writing)
        folio.is_lock_holder = r == 0
        return r

    def remove_folio(self, Folio folio not None):
        """Removes a locked folio of this mapping; its references stay valid."""
        if not folio_test(folio.alive(), FOLIO_LOCKED) or folio_mapping(folio.folio) != self.number:
            raise ValueError("the folio is not locked or not of this mapping")
        filemap_remove_folio(self.seg, folio.folio)

    def remove_clean(self, Folio folio not None):
        """Removes a locked folio if it is clean and only the caller holds a reference. Returns whether it did; the
        reference is gone then."""
        cdef CFolio* raw = folio.alive()
        if filemap_remove_clean(self.seg, raw, 1, False) != 0:
            return False
        folio.folio = NULL
        folio.is_lock_holder = False
        folio_clear(raw, FOLIO_LOCKED)
        folio_free_last(self.seg, raw)
        return True

    def adopt(self, Folio folio not None):
        """A new batch of one folio that is in the cache, locked and not uptodate; it takes over the lock."""
        cdef FolioBatch batch
        cdef CFolio* raw = folio.alive()
        if not folio_test(raw, FOLIO_LOCKED) or folio_mapping(raw) != self.number or folio_test(raw, FOLIO_UPTODATE):
            raise ValueError("only a locked folio of this mapping that is not uptodate can be adopted")
        folio.is_lock_holder = False
        batch = batch_of_one(self, raw, True)
        batch.note_object()
        return batch

    def found(self, Folio folio not None):
        """A found batch of one referenced folio."""
        return batch_of_one(self, folio.alive(), False)

    def take_stamp(self):
        """Remembers how the file looks now (times of the last changes of bytes and of anything, ns; size): its bytes are
        what is cached from now on."""
        cdef int r
        own_write_begin(self.m)             # a comparison meanwhile sees no half of it
        r = stamp_take(self.m, self.fd)
        own_write_end(self.m, -1, -1)
        if r < 0:
            raise_errno(r, f"cannot stat {self.name}")
        return self.stamp

    @property
    def stamp(self):
        """How the file looked when its stamp was taken."""
        return (load_relaxed_u64(&self.m.stamp_mtime_ns), load_relaxed_u64(&self.m.stamp_ctime_ns),
                load_relaxed_u64(&self.m.stamp_size))

    def set_stamp(self, int64_t mtime_ns, int64_t ctime_ns, int64_t size):
        """As `take_stamp`, of how the file looked when it was compared with what is cached."""
        stamp_set(self.m, mtime_ns, ctime_ns, size)

    def stamp_state(self, int fd=-1):
        """Whether the file is as it was when its stamp was taken: STAMP_SAME, STAMP_DOUBTFUL or STAMP_OTHER; while the
        cache itself writes, it is. fd: another descriptor of it."""
        cdef int64_t size = 0
        return stamp_look(self.m, fd if fd >= 0 else self.fd, &size)

    def stamp_unchanged(self, int fd=-1):
        """Whether that is STAMP_SAME."""
        return stamp_is_current(self.m, fd if fd >= 0 else self.fd)

    def recount_reads(self):
        """Lets reads that are under way copy again what they have copied: it may be of another version."""
        add_acq_rel_u32(&self.m.nr_truncations, 1)

    def file_agrees(self, Folio folio not None):
        """Whether the file has the bytes of a locked, uptodate folio, as far as the store has any of it.

        Raises OSError. Context: releases the GIL; reads the file.
        """
        cdef CFolio* raw = folio.alive()
        cdef uint64_t first = folio_index(raw) << PAGE_SHIFT
        cdef uint64_t end = first + (<uint64_t>folio_nr_pages(raw) << PAGE_SHIFT)
        cdef uint64_t on_disk = bytes_on_disk(self.m)
        cdef int fd = self.fd, r
        cdef bint direct = self.direct
        if not folio_test(raw, FOLIO_LOCKED) or folio_mapping(raw) != self.number:
            raise ValueError("the folio is not locked or not of this mapping")
        if on_disk <= first:
            return True
        if end > on_disk:
            end = on_disk
        with nogil:
            r = file_has_bytes(fd, direct, folio_address(self.seg, raw), <int64_t>first, <int64_t>(end - first))
        if r < 0:
            raise_errno(r, f"cannot read {self.name} at offset {first}")
        return r == 1

    def remove_unless_dirty(self, Folio folio not None):
        """Removes a locked folio of this mapping unless it is dirty (tested under xa_lock). Returns whether it did."""
        cdef CFolio* raw = folio.alive()
        cdef uint32_t nr = folio_nr_pages(raw)
        futex_lock(&self.m.pages.lock)
        if folio_test(raw, FOLIO_DIRTY | FOLIO_WRITEBACK):
            futex_unlock(&self.m.pages.lock)
            return False
        mapping_remove(self.seg, raw, 0)
        futex_unlock(&self.m.pages.lock)
        folio_put_many(self.seg, raw, nr)
        return True

    def replace_folio(self, Folio old not None, Folio new not None):
        """Puts a new folio, unpublished and locked, in the place of a locked folio of the same order; marks stay."""
        cdef CFolio* out = old.alive()
        cdef CFolio* into = new.alive()
        if folio_order(out) != folio_order(into) or folio_mapping(out) != self.number or folio_mapping(into) != 0:
            raise ValueError("only a folio of the same order that is in no mapping can replace one of this mapping")
        filemap_replace_folio(self.seg, out, into)

    # -- failures ----------------------------------------------------------------------------------------------------

    cdef object log_failure(self, CFolio* folio, error):
        """Notes errno and message, not the exception: that belongs to one thread, and keeps alive what its frames
        hold."""
        with cython.critical_section(self):
            if len(self.failures) >= 4096:
                self.failures.pop(next(iter(self.failures)))
        self.failures[(folio_number(self.seg, folio), load_acquire_u32(&folio.seq))] = (
            _errno.EIO if error.errno is None else error.errno, error.strerror or str(error))
        return None

    def fail_folio(self, Folio folio not None, error):
        """A read into the locked folio failed: it leaves the mapping, is unlocked, and its waiters get `error`."""
        self.log_failure(folio.alive(), error)
        if folio_mapping(folio.folio) == self.number:
            filemap_remove_folio(self.seg, folio.folio)
        folio.is_lock_holder = False
        folio_unlock(self.seg, folio.folio)

    def failure_of(self, uint32_t frame, uint32_t seq):
        """The error that ended the read of the folio that had this frame and seq, or None."""
        return self.failures.get((frame, seq))

    # -- introspection -----------------------------------------------------------------------------------------------

    def cachestat(self, uint64_t first, uint64_t last):
        """Counts over pages first..last: (cached, dirty, write-back, evicted, recently evicted)."""
        cdef Residency found
        with nogil:
            mapping_residency(self.seg, self.m, first, last, &found)
        return found.cached, found.dirty, found.writeback, found.evicted, found.recent

    def count_miss(self, uint64_t nbytes):
        """Counts a read that was not served from the cache alone, and what it was given after it had missed."""
        self.note_miss(nbytes)

    cdef void note_miss(self, uint64_t nbytes) noexcept:
        count(self.seg, MISSES, 1)
        count(self.seg, BYTES_ASKED, <int64_t>nbytes)
        add_relaxed_u64(&self.m.nr_misses, 1)
        add_relaxed_u64(&self.m.missed_bytes, nbytes)

    def count_store_read(self, uint64_t nbytes):
        """Counts a request to a store that the engine does not read itself, and what it brought."""
        count_store_read(self.seg, self.m, nbytes)

    def counters(self):
        """What was counted for this object alone, as a dict. Hits are not: nothing of a hit is kept by object."""
        return {
            "misses": load_relaxed_u64(&self.m.nr_misses),
            "missed_bytes": load_relaxed_u64(&self.m.missed_bytes),
            "store_reads": load_relaxed_u64(&self.m.store_reads),
            "store_read_bytes": load_relaxed_u64(&self.m.store_read_bytes),
            "readahead_pages": load_relaxed_u64(&self.m.readahead_pages),
            "readahead_wasted": load_relaxed_u64(&self.m.readahead_wasted),
        }

    def nr_unused(self):
        """Cached pages that were read ahead and that have not been asked for yet. Context: walks the index."""
        cdef uint64_t nr
        with nogil:
            nr = mapping_nr_unused(self.seg, self.m)
        return nr

    def mincore(self, uint64_t first, uint64_t nr_pages):
        """One byte per page: 1 if it is cached and uptodate. Context: takes as long as what is cached is long; releases
        the GIL for long ranges."""
        cdef bytes out
        cdef char* at
        if nr_pages <= MINCORE_SHORT:
            out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>nr_pages)
            at = PyBytes_AS_STRING(out)
            memset(at, 0, nr_pages)
            mapping_mincore(self.seg, self.m, first, nr_pages, at)
            return out
        out = bytes(nr_pages)               # zeros of the system's: what is not set is not touched
        at = PyBytes_AS_STRING(out)
        with nogil:
            mapping_mincore(self.seg, self.m, first, nr_pages, at)
        return out

    def all_cached(self, uint64_t pos, uint64_t nbytes):
        """Whether all pages of a byte range are cached and readable as they are."""
        return bool(range_is_cached(self.seg, self.m, pos, nbytes))

    def folios(self):
        """(index, order, uptodate) of every cached folio, ascending."""
        cdef uint64_t[256] indexes
        cdef uint32_t[256] states
        cdef uint32_t nr, i
        cdef uint64_t start = 0
        out = []
        while True:
            with nogil:
                nr = mapping_list_folios(self.seg, self.m, start, 256, indexes, states)
            for i in range(nr):
                out.append((indexes[i], state_order(states[i]), (states[i] & FOLIO_UPTODATE) != 0))
            if nr < 256:
                return out
            start = indexes[nr - 1] + (<uint64_t>1 << state_order(states[nr - 1]))
