cdef enum:
    READ_BATCH_FOLIOS = 31          # most folios one step of a read looks at


@cython.final
@cython.freelist(8)
cdef class CopyTarget:
    """Memory that a read fills: an address inside an object that is kept alive."""
    cdef char* address
    cdef readonly uint64_t nbytes
    cdef object owner

    def __len__(self):
        return self.nbytes


@cython.final
@cython.freelist(8)
cdef class CopySource:
    """Bytes that a write stores: an address inside an object that is kept alive."""
    cdef const char* address
    cdef readonly uint64_t nbytes
    cdef object owner

    def __len__(self):
        return self.nbytes


@cython.final
@cython.freelist(8)
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class FolioBatch:
    """A run of folios with consecutive indexes, each with a reference.

    *New* batches hold locked folios that were just added to a mapping and wait for their data; a batch that is dropped
    before `end_read` removes them again.  *Found* batches hold references for copying, locking or removing.
    Context: for one thread at a time; the memory it lends to a store may be released by any.
    """
    cdef AddressSpace mapping
    cdef CSegment* seg
    cdef CFolio* folios[512]
    cdef uint32_t nr
    cdef pc_u32 nr_exports                  # of the memory it waits for, to stores
    cdef bint is_new
    cdef pc_u32 is_held                     # its folios are out of the mapping, but a store may still write to them
    cdef readonly uint64_t start            # index of the first page
    cdef readonly uint64_t next_index       # index behind the last page
    cdef uint64_t object_bytes              # that the store had when the last folio was added

    def __dealloc__(self):
        if self.mapping is None or self.seg.dead:
            return
        self.end_hold()
        self.drop()

    def __len__(self):
        return self.nr

    @property
    def nr_pages(self):
        """Pages in the run."""
        return self.next_index - self.start

    cdef void drop(self) noexcept:
        if self.is_new:
            self.abandon()
        elif load_acquire_u32(&self.is_held) == 0:
            self.put_all()

    cdef void put_all(self) noexcept:
        cdef uint32_t i
        for i in range(self.nr):
            folio_put(self.seg, self.folios[i])
        self.nr = 0

    cdef void abandon(self) noexcept:
        """Takes new folios, which could not be read yet, out of the mapping."""
        cdef uint32_t i
        for i in range(self.nr):
            if folio_mapping(self.folios[i]) != 0:
                filemap_remove_folio(self.seg, self.folios[i])
            folio_unlock(self.seg, self.folios[i])
        self.is_new = False
        self.next_index = self.start
        if load_acquire_u32(&self.nr_exports) == 0:
            self.put_all()
        else:
            self.hold()

    cdef void hold(self) noexcept:
        """Pins the folios, so that their frames are not reused while they may be written to. The last export may
        end at any moment, in another thread: either it finds the hold, or this finds that there is no export."""
        cdef uint32_t i
        for i in range(self.nr):
            add_acq_rel_u32(&self.folios[i].nr_pins, 1)
            count(self.seg, NR_PINNED, folio_nr_pages(self.folios[i]))
        store_release_u32(&self.is_held, 1)
        fence_seq_cst()
        if load_acquire_u32(&self.nr_exports) == 0:
            self.end_hold()

    cdef void end_hold(self) noexcept:
        """Ends the hold if there is one, once, by any thread."""
        cdef uint32_t i
        if exchange_acq_rel_u32(&self.is_held, 0) == 0:
            return
        for i in range(self.nr):
            sub_acq_rel_u32(&self.folios[i].nr_pins, 1)
            count(self.seg, NR_PINNED, -<int64_t>folio_nr_pages(self.folios[i]))
        self.put_all()

    @property
    def exported(self):
        """Whether memory of the batch is still held."""
        return load_acquire_u32(&self.nr_exports) > 0

    def release(self):
        """Drops the references; folios of a new batch that have no data yet leave the mapping."""
        self.drop()

    def extend(self, uint64_t limit, uint32_t order, int64_t mark, uint64_t demand_end, bint dropbehind=False):
        """Adds new folios from `next_index` to page `limit` (inclusive), each as large as order, alignment and limit
        allow (page_cache_ra_order).

        mark: page whose folio gets the readahead marker, or -1. demand_end: folios from this page on were not asked
        for. Returns 0, -EEXIST (a page is there already), -ENOMEM, or -ENOSPC when the batch is full; the
        run then ends before that page.
        Context: releases the GIL; may reclaim.
        """
        cdef int r
        with nogil:
            r = self.extend_engine(limit, order, mark, demand_end, dropbehind)
            self.note_object()
        return r

    cdef void note_object(self) noexcept nogil:
        """Notes what the store has, which does not change for these folios while they are locked: no thread can write
        to them, and truncation of the store waits for them. i_size may: a truncation begins with it, and undoes it if it
        fails."""
        self.object_bytes = bytes_on_disk(self.mapping.m)

    cdef int extend_engine(self, uint64_t limit, uint32_t order, int64_t mark, uint64_t demand_end,
                           bint dropbehind) noexcept nogil:
        cdef uint64_t index
        cdef uint32_t k, flags
        cdef CFolio* folio
        cdef int r
        while self.next_index <= limit:
            index = self.next_index
            if self.nr == BATCH_PAGES:
                return -ENOSPC
            k = order
            if index & ((<uint64_t>1 << k) - 1):
                k = ctz64(index)
            while k > 0 and index + (<uint64_t>1 << k) - 1 > limit:
                k -= 1
            if not nodes_ensure(self.seg):
                return -ENOMEM
            folio = folio_alloc(self.seg, k, False)
            while folio == NULL and k > 0:
                k -= 1
                folio = folio_alloc_nowait(self.seg, k)
            if folio == NULL:
                return -ENOMEM
            flags = FOLIO_DROPBEHIND if dropbehind else 0
            if mark >= 0 and index == (<uint64_t>mark & ~((<uint64_t>1 << k) - 1)):
                flags |= FOLIO_READAHEAD
            if index >= demand_end:
                flags |= FOLIO_UNUSED
            r = mapping_add_ensured(self.seg, self.mapping.number, folio, index, flags, False)
            if r != 0:
                folio_put(self.seg, folio)
                return r
            if flags & FOLIO_UNUSED:
                count(self.seg, READAHEAD_PAGES, <int64_t>1 << k)
                add_relaxed_u64(&self.mapping.m.readahead_pages, <uint64_t>1 << k)
            self.folios[self.nr] = folio
            self.nr += 1
            self.next_index = index + (<uint64_t>1 << k)
        return 0

    def data_bytes(self):
        """Bytes of the run that the store has: inside the object, and written there. The rest is zeros."""
        return self.valid_bytes()

    cdef uint64_t valid_bytes(self) noexcept nogil:
        cdef uint64_t size = self.object_bytes
        cdef uint64_t first = self.start << PAGE_SHIFT
        cdef uint64_t end = self.next_index << PAGE_SHIFT
        if size <= first:
            return 0
        return (end if end < size else size) - first

    def read_fd(self, int fd, bint direct=False):
        """Reads the data of a new batch from a file descriptor at its own offset.

        Returns the bytes read, which are fewer than `data_bytes` when the file ends early. Raises OSError.
        Context: releases the GIL; data goes straight into frames.
        """
        cdef int64_t got
        with nogil:
            got = run_read_fd(self.seg, fd, direct, <int64_t>(self.start << PAGE_SHIFT), self.folios, self.nr,
                              self.valid_bytes())
        if got < 0:
            raise_errno(got, f"cannot read {self.mapping.name} at offset {self.start << PAGE_SHIFT}")
        return got

    def fill_fd(self, int fd, bint direct=False):
        """Reads the data of a new batch from a descriptor and ends the read, if nothing is wrong: then its folios are
        uptodate and unlocked. Returns whether that is so; if not, the batch is as before, and `read_fd` says why.

        Context: releases the GIL; data goes straight into frames.
        """
        cdef uint64_t wanted
        cdef bint good
        with nogil:
            wanted = self.valid_bytes()
            good = run_read_fd(self.seg, fd, direct, <int64_t>(self.start << PAGE_SHIFT), self.folios, self.nr,
                               wanted) == <int64_t>wanted and stamp_is_current(self.mapping.m, fd)
        if good:
            self.end_read_filled()
        return good

    def split_off(self, uint64_t index):
        """Divides a new batch: the folios that begin at page `index` or behind become another batch, returned."""
        cdef FolioBatch tail
        cdef uint32_t i = 0, j
        if not self.is_new:
            raise RuntimeError("only a new batch can be divided")
        while i < self.nr and folio_index(self.folios[i]) < index:
            i += 1
        tail = batch_object(self.mapping, folio_index(self.folios[i]) if i < self.nr else self.next_index, True)
        tail.next_index = self.next_index
        tail.object_bytes = self.object_bytes
        for j in range(i, self.nr):
            tail.folios[tail.nr] = self.folios[j]
            tail.nr += 1
        self.nr = i
        self.next_index = tail.start
        return tail

    def submit(self, int fd, bint direct, uint64_t max_bytes):
        """Starts reading a new batch from a descriptor in the background, in requests of at most max_bytes (or one
        folio). The batch is empty afterwards: its folios belong to the requests, which unlock them.

        Returns the number of requests. Context: needs `Segment.start_io`; errors are only counted.
        """
        cdef uint32_t i = 0, first, nr_requests = 0
        cdef uint64_t nbytes
        if not self.is_new or self.mapping.segment.queue.seg == NULL:
            raise RuntimeError("only a new batch of a segment that was prepared for it can be submitted")
        with nogil:
            while i < self.nr:
                first = i
                nbytes = 0
                while i < self.nr and (i == first or nbytes + (<uint64_t>folio_nr_pages(self.folios[i]) << PAGE_SHIFT)
                                       <= max_bytes):
                    nbytes += <uint64_t>folio_nr_pages(self.folios[i]) << PAGE_SHIFT
                    i += 1
                self.submit_run(first, i - first, nbytes, fd, direct)
                nr_requests += 1
            self.nr = 0
            self.is_new = False
        return nr_requests

    cdef void submit_run(self, uint32_t first, uint32_t nr, uint64_t nbytes, int fd, bint direct) noexcept nogil:
        cdef IoRequest* request = io_request_new(self.seg, self.mapping.number, &self.folios[first], nr)
        cdef uint64_t pos = folio_index(self.folios[first]) << PAGE_SHIFT
        cdef uint64_t size = self.object_bytes
        cdef uint32_t i
        if request == NULL or size <= pos:      # a reader that comes here fills what is only zeros
            for i in range(first, first + nr):
                filemap_remove_folio(self.seg, self.folios[i])
                folio_unlock(self.seg, self.folios[i])
                folio_put(self.seg, self.folios[i])
            free(request)
            return
        request.fd = fd
        request.direct = direct
        request.offset = <int64_t>pos
        request.nbytes = nbytes if nbytes < size - pos else size - pos
        io_prepare(self.seg, request)
        io_submit(&self.mapping.segment.queue, request)

    def memory(self, uint64_t nbytes):
        """Writable buffers over the first nbytes of a new batch, neighbouring frames as one.

        Returns a list of FillBuffer. Each must be released before the batch ends.
        """
        cdef iovec[512] pieces
        cdef int nr_pieces, i
        cdef FillBuffer buffer
        if not self.is_new:
            raise RuntimeError("only a new batch can be filled")
        nr_pieces = run_vector(self.seg, self.folios, self.nr, nbytes, pieces)
        out = []
        for i in range(nr_pieces):
            buffer = FillBuffer.__new__(FillBuffer)
            buffer.batch = self
            buffer.address = <char*>pieces[i].iov_base
            buffer.nbytes = <Py_ssize_t>pieces[i].iov_len
            out.append(buffer)
        return out

    def end_read(self, uint64_t nbytes):
        """Ends the read of a new batch: zeroes what lies behind nbytes, makes all folios uptodate, unlocks them and
        drops the references. Context: releases the GIL."""
        if not self.is_new:
            raise RuntimeError("only a new batch can end a read")
        with nogil:
            run_zero_tail(self.seg, self.folios, self.nr, nbytes)
        self.end_read_filled()

    def end_read_filled(self):
        """The same when the tail was zeroed by the read itself."""
        cdef uint32_t i
        for i in range(self.nr):
            folio_end_read(self.seg, self.folios[i], True)
        self.put_all()
        self.is_new = False

    def fail(self, error):
        """Ends a read that failed: the folios leave the mapping, and each thread that waits for one of them gets
        `error`."""
        cdef uint32_t i
        for i in range(self.nr):
            self.mapping.log_failure(self.folios[i], error)
        self.abandon()

    @property
    def last_uptodate(self):
        """Whether the last folio is uptodate."""
        return self.nr > 0 and folio_test(self.folios[self.nr - 1], FOLIO_UPTODATE)

    @property
    def last_readahead(self):
        """Whether the last folio carries the readahead marker."""
        return self.nr > 0 and folio_test(self.folios[self.nr - 1], FOLIO_READAHEAD)

    def last(self):
        """The last folio, with a reference of its own."""
        if self.nr == 0:
            raise IndexError("empty batch")
        folio_ref_add(self.folios[self.nr - 1], 1)
        return folio_object(self.mapping.segment, self.folios[self.nr - 1])

    def folio(self, uint32_t position):
        """The folio at a position, with a reference of its own."""
        if position >= self.nr:
            raise IndexError("no such folio in the batch")
        folio_ref_add(self.folios[position], 1)
        return folio_object(self.mapping.segment, self.folios[position])

    def drop_last(self):
        """Takes the last folio out of a found batch."""
        self.nr -= 1
        self.next_index = folio_index(self.folios[self.nr])
        folio_put(self.seg, self.folios[self.nr])

    def copy_to(self, CopyTarget target, uint64_t done, uint64_t pos, uint64_t nbytes, int64_t last_pos,
                uint32_t nr_truncations):
        """Copies bytes [pos, pos + nbytes) of the object, as far as the batch holds them, to target[done:].

        last_pos: byte behind the last one read before (or -1): an access to the folio that holds byte last_pos - 1 is
        not counted again. nr_truncations: of the mapping, before its size was read. Returns the bytes copied, 0 if
        the object was truncated meanwhile.
        Context: releases the GIL for long copies; the references keep the folios.
        """
        cdef uint64_t copied
        if done > target.nbytes or nbytes > target.nbytes - done:
            raise ValueError("range outside the target")
        if nbytes > GIL_COPY_MAX:
            with nogil:
                copied = self.copy_engine(target.address + done, pos, nbytes, last_pos)
        else:
            copied = self.copy_engine(target.address + done, pos, nbytes, last_pos)
        return copied if mapping_not_truncated_since(self.mapping.m, nr_truncations) else 0

    cdef uint64_t copy_engine(self, char* target, uint64_t pos, uint64_t nbytes, int64_t last_pos) noexcept nogil:
        cdef uint32_t i
        cdef uint64_t first, length, offset, piece, copied = 0
        for i in range(self.nr):
            first = folio_index(self.folios[i]) << PAGE_SHIFT
            length = <uint64_t>folio_nr_pages(self.folios[i]) << PAGE_SHIFT
            if copied >= nbytes:
                break
            if pos < first or pos >= first + length:
                continue
            offset = pos - first
            piece = length - offset if length - offset < nbytes - copied else nbytes - copied
            copy_shared(target + copied, folio_address(self.seg, self.folios[i]) + offset, piece)
            if last_pos <= <int64_t>first or last_pos > <int64_t>(first + length):
                folio_used(self.seg, self.folios[i])
            copied += piece
            pos += piece
            last_pos = <int64_t>pos
        return copied

    def drop_behind(self):
        """Removes the folios of the batch that are marked for it, if they are clean and not used otherwise."""
        cdef uint32_t i
        for i in range(self.nr):
            if folio_test(self.folios[i], FOLIO_DROPBEHIND) and folio_trylock(self.folios[i]):
                if (folio_mapping(self.folios[i]) != 0
                        and filemap_remove_clean(self.seg, self.folios[i], 1, False) == 0):
                    folio_clear(self.folios[i], FOLIO_LOCKED)
                    folio_free_last(self.seg, self.folios[i])
                    self.folios[i] = NULL
                else:
                    folio_unlock(self.seg, self.folios[i])
        self.compact()

    cdef void compact(self) noexcept:
        cdef uint32_t i, kept = 0
        for i in range(self.nr):
            if self.folios[i] != NULL:
                self.folios[kept] = self.folios[i]
                kept += 1
        self.nr = kept


@cython.final
@cython.no_gc_clear
cdef class FillBuffer:
    """A writable buffer over frames that wait for data. As long as it is held the frames are not reused."""
    cdef FolioBatch batch
    cdef char* address
    cdef Py_ssize_t nbytes

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.nbytes, 0, flags)
        add_acq_rel_u32(&self.batch.nr_exports, 1)

    def __releasebuffer__(self, Py_buffer* buffer):
        if sub_acq_rel_u32(&self.batch.nr_exports, 1) == 1 and not self.batch.seg.dead:
            fence_seq_cst()
            self.batch.end_hold()


cdef FolioBatch batch_object(AddressSpace mapping, uint64_t start, bint is_new):
    cdef FolioBatch batch = FolioBatch.__new__(FolioBatch)
    batch.mapping = mapping
    batch.seg = mapping.seg
    batch.nr = 0
    store_relaxed_u32(&batch.nr_exports, 0)
    batch.is_new = is_new
    store_relaxed_u32(&batch.is_held, 0)
    batch.start = start
    batch.next_index = start
    batch.object_bytes = 0
    return batch


cdef FolioBatch batch_of_one(AddressSpace mapping, CFolio* folio, bint is_new):
    cdef FolioBatch batch = batch_object(mapping, folio_index(folio), is_new)
    folio_ref_add(folio, 1)
    batch.folios[0] = folio
    batch.nr = 1
    batch.next_index = folio_index(folio) + folio_nr_pages(folio)
    return batch


def copy_source(data not None):
    """A CopySource over bytes."""
    cdef CopySource source = CopySource.__new__(CopySource)
    cdef bytes owner = data
    source.address = PyBytes_AS_STRING(owner)
    source.nbytes = <uint64_t>len(owner)
    source.owner = owner
    return source
