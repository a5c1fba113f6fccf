from pagecache.core.check cimport PC_OPTIMISTIC
from pagecache.core.config cimport PAGE_SHIFT
from pagecache.core.copy cimport copy_shared
from pagecache.core.folio cimport (FOLIO_LOCKED, FOLIO_READAHEAD, FOLIO_UPTODATE, folio_address, folio_clear,
                                   folio_end_read, folio_index, folio_lock_uninterruptible, folio_mapping,
                                   folio_nr_pages, folio_test, folio_trylock, folio_unlock, folio_wait_slice)
from pagecache.core.io cimport bytes_on_disk, run_read_fd
from pagecache.core.io_queue cimport IoRequest, io_prepare, io_request_new, io_submit
from pagecache.core.lines cimport LINE_MISSING, LINE_PINNED, LinePiece, PinResult, line_length, line_pin, line_unpin
from pagecache.core.lock cimport (RwSem, rwsem_read_begin, rwsem_read_end, rwsem_read_slice, rwsem_unlock_read,
                                  rwsem_unlock_write, rwsem_write_begin, rwsem_write_end, rwsem_write_slice)
from pagecache.core.lookup cimport filemap_get_entry, prefetch_cached, read_cached
from pagecache.core.lru cimport folio_put
from pagecache.core.charge cimport mapping_add_ensured
from pagecache.core.mapping cimport filemap_remove_folio
from pagecache.core.reclaim cimport folio_alloc
from pagecache.core.segment cimport Folio, Mapping
from pagecache.core.stamp cimport stamp_is_current
from pagecache.core.xa_entry cimport xa_entry

cdef enum:
    READ_AHEAD_PAGES = 8


cdef enum:
    READ_PAGES_MAX = 12


cdef void lock_shared(RwSem* sem) noexcept nogil:
    rwsem_read_begin(sem)
    while rwsem_read_slice(sem) != 0:
        pass
    rwsem_read_end(sem)


cdef void lock_exclusive(RwSem* sem) noexcept nogil:
    rwsem_write_begin(sem)
    while rwsem_write_slice(sem) != 0:
        pass
    rwsem_write_end(sem)


cdef void read_page(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Reads part of a page, two pages or many, and checks every word; brings in what is missing."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint32_t pages = READ_PAGES_MAX - 1 if random_below(worker, 4) == 0 else 2
    cdef uint64_t first = random_below(worker, PAGE_WORDS), nr = 1 + random_below(worker, pages * PAGE_WORDS - 1)
    cdef uint64_t pos = ((<uint64_t>page * PAGE_WORDS) + first) * 8
    cdef uint64_t done, size, part, at = 0
    cdef uint32_t cuts = load_acquire_u32(&file.cuts)
    cdef uint32_t[12] low           # READ_PAGES_MAX of them
    cdef uint32_t i
    for i in range(pages + 1):
        low[i] = load_acquire_u32(&file.done[page + i]) if page + i < NR_PAGES else 0
    size = load_acquire_u64(&mapping.size)
    if pos >= size:
        return
    if nr * 8 > size - pos:
        nr = (size - pos) // 8
    prefetch_cached(&work.seg, file.number, pos, nr * 8)
    done = read_cached(&work.seg, file.number, pos, nr * 8, <char*>worker.buffer, <uint64_t>-1)
    if done < nr * 8:
        fill_page(worker, m, <uint32_t>((pos + done) >> PAGE_SHIFT))
    if load_acquire_u64(&mapping.size) < pos + done:
        return
    i = 0
    while at < done // 8:
        part = PAGE_WORDS - (first + at) % PAGE_WORDS
        if part > done // 8 - at:
            part = done // 8 - at
        if cuts & 1 or load_acquire_u32(&file.cuts) != cuts:
            low[i] = 0
        if not words_good(work, m, worker.buffer + at, <uint64_t>page * PAGE_WORDS + first + at, part, low[i],
                          load_acquire_u32(&file.begun[page + i]), PC_OPTIMISTIC and nr <= 2 * PAGE_WORDS):
            return
        at += part
        i += 1


cdef void read_line(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Reads the line at some word as far as one folio holds it: it ends where it should; each page is of one version."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint64_t first = random_below(worker, PAGE_WORDS), at = 0, part, length
    cdef uint64_t pos = ((<uint64_t>page * PAGE_WORDS) + first) * 8
    cdef uint64_t size, nbytes = 2 * PAGE_SIZE
    cdef uint32_t cuts = load_acquire_u32(&file.cuts)
    cdef uint32_t[3] low
    cdef uint32_t i
    cdef LinePiece piece
    cdef PinResult result
    for i in range(3):
        low[i] = load_acquire_u32(&file.done[page + i]) if page + i < NR_PAGES else 0
    size = load_acquire_u64(&mapping.size)
    if pos >= size:
        return
    if nbytes > size - pos:
        nbytes = size - pos
    result = line_pin(&piece, &work.seg, file.number, pos, nbytes, size)
    if result == LINE_MISSING:
        fill_page(worker, m, page)
    if result != LINE_PINNED:
        return
    copy_shared(<char*>worker.buffer, piece.source, piece.nbytes)
    if not line_unpin(&piece, &work.seg, <uint64_t>-1) or load_acquire_u64(&mapping.size) < pos + piece.nbytes:
        return
    length = line_length(<char*>worker.buffer, piece.nbytes)
    if length != piece.nbytes and (length != 0 or piece.nbytes != nbytes and (pos + piece.nbytes) % PAGE_SIZE != 0):
        work_failed(work, TORN_BYTES, page, length, piece.nbytes, nbytes)
        return
    i = 0
    while at < piece.nbytes // 8:
        part = PAGE_WORDS - (first + at) % PAGE_WORDS
        if part > piece.nbytes // 8 - at:
            part = piece.nbytes // 8 - at
        if cuts & 1 or load_acquire_u32(&file.cuts) != cuts:
            low[i] = 0
        if not words_good(work, m, worker.buffer + at, <uint64_t>page * PAGE_WORDS + first + at, part, low[i],
                          load_acquire_u32(&file.begun[page + i]), True):
            return
        at += part
        i += 1


cdef void fill_page(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Brings in a folio that holds the page, of a random order, unless it is there."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint32_t order = random_below(worker, 4) if random_below(worker, 2) and work.span == NR_PAGES else 0
    cdef uint64_t index = page & ~((<uint32_t>1 << order) - 1)
    cdef uint64_t on_disk, wanted
    cdef Folio* folio
    lock_shared(&mapping.invalidate_lock)
    folio = folio_alloc(&work.seg, order, order == 0)
    if folio != NULL:
        if (index << PAGE_SHIFT) < load_acquire_u64(&mapping.size) and mapping_add_ensured(
                &work.seg, file.number, folio, index, FOLIO_READAHEAD if random_below(worker, 8) == 0 else 0, False) == 0:
            on_disk = bytes_on_disk(mapping)
            wanted = on_disk - (index << PAGE_SHIFT) if on_disk > index << PAGE_SHIFT else 0
            if wanted > <uint64_t>PAGE_SIZE << order:
                wanted = <uint64_t>PAGE_SIZE << order
            if run_read_fd(&work.seg, file.fd, False, <int64_t>(index << PAGE_SHIFT), &folio, 1, wanted) != <int64_t>wanted:
                work_failed(work, SHORT_FILE, index, wanted, 0, 0)
            if not stamp_is_current(mapping, file.fd):
                work_failed(work, FILE_CHANGED, index, 0, 0, 0)
            folio_end_read(&work.seg, folio, True)
        folio_put(&work.seg, folio)
    rwsem_unlock_read(&mapping.invalidate_lock)


cdef void read_ahead(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Has a run of single pages read in the background, as far as none of them is there."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef Folio* folios[8]
    cdef uint32_t nr = 0
    cdef uint64_t start = <uint64_t>page << PAGE_SHIFT, on_disk
    cdef IoRequest* request
    lock_shared(&mapping.invalidate_lock)
    on_disk = bytes_on_disk(mapping)
    while nr < READ_AHEAD_PAGES and start + (<uint64_t>nr << PAGE_SHIFT) < on_disk:
        folios[nr] = folio_alloc(&work.seg, 0, False)
        if folios[nr] == NULL:
            break
        if mapping_add_ensured(&work.seg, file.number, folios[nr], page + nr, 0, False) != 0:
            folio_put(&work.seg, folios[nr])
            break
        nr += 1
    if nr > 0:
        request = io_request_new(&work.seg, file.number, folios, nr)
        request.fd = file.fd
        request.direct = False
        request.offset = <int64_t>start
        request.nbytes = <uint64_t>nr << PAGE_SHIFT
        io_prepare(&work.seg, request)
        io_submit(&work.queue, request)
    rwsem_unlock_read(&mapping.invalidate_lock)


cdef void read_pinned(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Looks a page up with a reference, waits until it is readable, and reads it twice: it stays this page's for as long
    as the reference is held, whatever becomes of the page."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef xa_entry entry = 0
    cdef Folio* folio = filemap_get_entry(&work.seg, file.number, page, &entry)
    cdef uint32_t seq, i
    cdef uint64_t first
    if folio == NULL:
        return
    seq = load_acquire_u32(&folio.seq)
    if not folio_test(folio, FOLIO_UPTODATE):
        folio_wait_slice(folio, FOLIO_LOCKED, NULL)
    first = folio_index(folio)
    if folio_test(folio, FOLIO_READAHEAD):
        folio_clear(folio, FOLIO_READAHEAD)
    if folio_test(folio, FOLIO_UPTODATE):
        if not first <= page < first + folio_nr_pages(folio):
            if load_acquire_u32(&folio.seq) == seq:
                work_failed(work, FOREIGN_BYTES, page, first, file.number, folio_mapping(folio))
        else:
            for i in range(2):
                copy_shared(<char*>worker.buffer,
                            folio_address(&work.seg, folio) + ((page - first) << PAGE_SHIFT), PAGE_SIZE)
                if not words_good(work, m, worker.buffer, <uint64_t>page * PAGE_WORDS, PAGE_WORDS, 0,
                                  load_acquire_u32(&file.begun[page]), False):
                    break
    folio_put(&work.seg, folio)
