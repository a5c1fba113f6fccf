cdef enum:
    PTE_PRESENT = 1                 # bit 0; bits 1..31 seq / 2, bits 32..63 frame of the folio

@cython.final
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class PageTable:
    """The translations of one mapped area: for each page the folio that was mapped there.

    A translation holds no reference. It is the folio's frame and its sequence counter, and is worth something only
    while the descriptor still says the same: every removal, split and replacement ends it by itself, so reclaim and
    truncation need not find the tables that hold a folio.
    """
    cdef AddressSpace mapping
    cdef CSegment* seg
    cdef readonly uint64_t first_index          # page of the object that the first entry translates
    cdef readonly uint64_t nr_pages
    cdef pc_u64* entries                        # hints: loaded and stored whole, validated when used

    def __cinit__(self, AddressSpace mapping not None, uint64_t first_index, uint64_t nr_pages):
        self.mapping = mapping
        self.seg = mapping.seg
        self.first_index = first_index
        self.nr_pages = nr_pages
        self.entries = <pc_u64*>calloc(nr_pages if nr_pages else 1, sizeof(pc_u64))     # touched as it is used
        if self.entries == NULL:
            raise MemoryError(f"no memory for the translations of {nr_pages} pages")

    def __dealloc__(self):
        free(self.entries)

    cdef CFolio* translate(self, uint64_t position, uint32_t* seq) noexcept nogil:
        """The folio of a page if its translation still holds. The caller copies and looks at seq again."""
        cdef uint64_t entry = load_acquire_u64(&self.entries[position])
        cdef CFolio* folio
        if not entry & PTE_PRESENT:
            return NULL
        folio = &self.seg.folios[entry >> 32]
        seq[0] = load_acquire_u32(&folio.seq)
        if (seq[0] & ~<uint32_t>1) != (<uint32_t>entry & ~<uint32_t>1) or seq[0] & 1:
            return NULL
        # state last: a translation to a folio that had left its mapping may have the seq of its frame's next owner, whose
        # mapping is seen set before its bytes are there
        if not folio_is(folio, self.mapping.number, self.first_index + position) or not folio_test(folio, FOLIO_UPTODATE):
            return NULL
        return folio

    def set(self, uint64_t index, Folio folio not None):
        """Maps page `index` of the object to a locked or referenced folio of the mapping."""
        cdef CFolio* raw = folio.alive()
        cdef uint32_t seq = load_acquire_u32(&raw.seq) & ~<uint32_t>1
        if not self.first_index <= index < self.first_index + self.nr_pages:
            raise ValueError("page outside the table")
        folio_set(raw, FOLIO_MAPPED)
        store_release_u64(&self.entries[index - self.first_index],
                          <uint64_t>folio_number(self.seg, raw) << 32 | seq | PTE_PRESENT)

    def present(self, uint64_t index):
        """Whether page `index` is mapped and the translation still holds."""
        cdef uint32_t seq
        if not self.first_index <= index < self.first_index + self.nr_pages:
            return False
        return self.translate(index - self.first_index, &seq) != NULL

    def clear(self, uint64_t start, uint64_t end):
        """Unmaps pages [start, end) of the object. Returns how many were mapped."""
        cdef uint64_t position, n = 0
        start = start - self.first_index if start > self.first_index else 0
        end = end - self.first_index if end > self.first_index else 0
        for position in range(start, end if end < self.nr_pages else self.nr_pages):
            n += exchange_acq_rel_u64(&self.entries[position], 0) & PTE_PRESENT
        return n

    def read_into(self, CopyTarget target, uint64_t done, uint64_t pos, uint64_t nbytes):
        """Copies the mapped beginning of bytes [pos, pos + nbytes) of the object to target[done:].

        Returns the bytes copied; behind them a page is not mapped. Context: releases the GIL for long copies.
        """
        cdef uint64_t copied
        if done > target.nbytes or nbytes > target.nbytes - done:
            raise ValueError("range outside the target")
        if nbytes > GIL_COPY_MAX:
            with nogil:
                copied = self.copy_engine(target.address + done, pos, nbytes)
        else:
            copied = self.copy_engine(target.address + done, pos, nbytes)
        return copied

    cdef uint64_t copy_engine(self, char* target, uint64_t pos, uint64_t nbytes) noexcept nogil:
        cdef uint64_t copied = 0, index, piece, offset
        cdef uint32_t seq
        cdef CFolio* folio
        while copied < nbytes:
            index = pos >> PAGE_SHIFT
            if index < self.first_index or index - self.first_index >= self.nr_pages:
                break
            folio = self.translate(index - self.first_index, &seq)
            if folio == NULL:
                break
            piece = PAGE_SIZE - (pos & (PAGE_SIZE - 1))
            if piece > nbytes - copied:
                piece = nbytes - copied
            offset = pos - (folio_index(folio) << PAGE_SHIFT)
            if PC_OPTIMISTIC:
                copy_page(target + copied, folio_address(self.seg, folio) + offset, piece)
            else:
                if not folio_try_get(folio):
                    break
                copy_shared(target + copied, folio_address(self.seg, folio) + offset, piece)
                folio_put(self.seg, folio)
            fence_acquire()
            if load_relaxed_u32(&folio.seq) != seq:
                break
            folio_used(self.seg, folio)
            copied += piece
            pos += piece
        return copied

    def write_from(self, CopySource source not None, uint64_t done, uint64_t pos, uint64_t nbytes):
        """Stores source[done:], nbytes of it, at byte pos of the object, as far as the pages are mapped, no other holds
        their locks, and they may become dirty. What lies behind the end of the object is taken, and lost.

        Returns the bytes taken. Context: releases the GIL for long copies.
        """
        cdef uint64_t stored
        if done > source.nbytes or nbytes > source.nbytes - done:
            raise ValueError("range outside the source")
        if nbytes > GIL_COPY_MAX:
            with nogil:
                stored = self.store_engine(source.address + done, pos, nbytes)
        else:
            stored = self.store_engine(source.address + done, pos, nbytes)
        return stored

    cdef uint64_t store_engine(self, const char* source, uint64_t pos, uint64_t nbytes) noexcept nogil:
        cdef uint64_t stored = 0, index, piece, wrote
        cdef uint32_t seq
        cdef CFolio* folio
        while stored < nbytes:
            index = pos >> PAGE_SHIFT
            if index < self.first_index or index - self.first_index >= self.nr_pages:
                break
            folio = self.translate(index - self.first_index, &seq)
            if folio == NULL or not folio_try_get(folio):
                break
            piece = PAGE_SIZE - (pos & (PAGE_SIZE - 1))
            if piece > nbytes - stored:
                piece = nbytes - stored
            wrote = 0
            if folio_trylock(folio):
                if folio_is(folio, self.mapping.number, index) and folio_writable_now(self.mapping.m, folio):
                    wrote = folio_write(self.seg, self.mapping.m, folio, pos, source + stored, piece, False)
                    store_release_u64(&self.entries[index - self.first_index],
                                      <uint64_t>folio_number(self.seg, folio) << 32
                                      | load_acquire_u32(&folio.seq) | PTE_PRESENT)
                folio_unlock(self.seg, folio)
            folio_put(self.seg, folio)
            if wrote == 0:
                break
            stored += wrote
            pos += wrote
        return stored

    def target(self, nbytes):
        """A bytes object of that length to fill, and the CopyTarget over it."""
        return new_target(to_count(nbytes))


def new_target(uint64_t nbytes):
    """A new bytes object of nbytes and a CopyTarget over it: no other thread may see the object before it is filled."""
    cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>nbytes)
    cdef CopyTarget target = CopyTarget.__new__(CopyTarget)
    target.address = PyBytes_AS_STRING(result)
    target.nbytes = nbytes
    target.owner = result
    return result, target


@cython.final
@cython.no_gc_clear
cdef class PrivatePage:
    """A page of a private map that was written to: a frame of its own, which no other map sees."""
    cdef Segment segment
    cdef CFolio* folio

    def __dealloc__(self):
        if self.folio != NULL and not self.segment.seg.dead:
            sub_acq_rel_u32(&self.folio.nr_pins, 1)
            count(&self.segment.seg, NR_PINNED, -1)
            folio_put(&self.segment.seg, self.folio)

    cdef char* at(self, uint64_t offset, uint64_t nbytes) except NULL:
        if offset > PAGE_SIZE or nbytes > PAGE_SIZE - offset:
            raise ValueError("range outside the page")
        return folio_address(&self.segment.seg, self.folio) + offset

    def read_into(self, CopyTarget target not None, uint64_t done, uint64_t offset, uint64_t nbytes):
        """Copies bytes of the page to target[done:]. Returns nbytes."""
        cdef char* source = self.at(offset, nbytes)
        if done > target.nbytes or nbytes > target.nbytes - done:
            raise ValueError("range outside the target")
        memcpy(target.address + done, source, nbytes)
        return nbytes

    def write_from(self, CopySource source not None, uint64_t done, uint64_t offset, uint64_t nbytes):
        """Stores source[done:] in the page. Returns nbytes."""
        cdef char* target = self.at(offset, nbytes)
        if done > source.nbytes or nbytes > source.nbytes - done:
            raise ValueError("range outside the source")
        memcpy(target, source.address + done, nbytes)
        return nbytes


def private_copy(Folio into not None, Folio folio not None, uint64_t index):
    """A PrivatePage in the new one-page folio `into`, with what a locked, uptodate folio holds of page `index`."""
    cdef CFolio* target = into.alive()
    cdef CFolio* source = folio.alive()
    cdef PrivatePage page
    if (folio_nr_pages(target) != 1 or folio_mapping(target) != 0
            or not folio_index(source) <= index < folio_index(source) + folio_nr_pages(source)):
        raise ValueError("not a new one-page folio, or a page outside the other")
    memcpy(folio_address(&into.segment.seg, target),
           folio_address(&folio.segment.seg, source) + ((index - folio_index(source)) << PAGE_SHIFT), PAGE_SIZE)
    page = PrivatePage.__new__(PrivatePage)
    page.segment = into.segment
    page.folio = target
    folio_ref_add(target, 1)
    add_acq_rel_u32(&target.nr_pins, 1)
    count(&page.segment.seg, NR_PINNED, 1)
    return page
