from libc.errno cimport EIO
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from posix.unistd cimport pread
from pagecache.core.config cimport BATCH_PAGES
from pagecache.core.errseq cimport errseq_check_and_advance, errseq_set
from pagecache.core.folio cimport FOLIO_WRITEBACK, folio_set
from pagecache.core.io cimport run_write_fd
from pagecache.core.mapping cimport MARK_DIRTY, MARK_TOWRITE, MARK_WRITEBACK
from pagecache.core.stamp cimport own_write_begin, own_write_end
from pagecache.core.write cimport size_extend, write_cached
from pagecache.core.writeback cimport (disk_size_reached, folio_drop_behind, folio_end_writeback, folio_mark_dirty,
                                       folio_redirty,
                                       folio_wants_writeback, next_marked, tag_for_writeback, writeback_collect)

cdef enum:
    WRITE_TRIES = 6
    RUN_BYTES = 65536               # of one request


cdef void write_pages(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Writes the next version of one page or two, growing the file if they are behind its end."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint32_t nr = 1 + random_below(worker, 2), i, written = 0, tries = 0
    cdef uint64_t size
    lock_exclusive(&mapping.inode_lock)
    size = load_acquire_u64(&mapping.size) >> PAGE_SHIFT
    if page > size:
        page = <uint32_t>size
    if page + nr > NR_PAGES:
        nr = NR_PAGES - page
    for i in range(nr):
        store_release_u32(&file.begun[page + i], load_acquire_u32(&file.begun[page + i]) + 1)
        page_fill(<char*>worker.buffer + i * PAGE_SIZE, file.number, page + i, load_acquire_u32(&file.begun[page + i]))
    while written < nr and tries < WRITE_TRIES:
        tries += 1
        i = <uint32_t>(write_cached(&work.seg, file.number, <uint64_t>(page + written) << PAGE_SHIFT,
                                    <uint64_t>(nr - written) << PAGE_SHIFT,
                                    <char*>worker.buffer + written * PAGE_SIZE) >> PAGE_SHIFT)
        if i == 0:
            i = write_new(worker, m, page + written, <char*>worker.buffer + written * PAGE_SIZE)
        while i > 0:
            store_release_u32(&file.done[page + written], load_acquire_u32(&file.begun[page + written]))
            written += 1
            i -= 1
        if written < nr:
            write_back(worker, m, 0, NR_PAGES - 1, MARK_DIRTY, True)
    rwsem_unlock_write(&mapping.inode_lock)


cdef uint32_t write_new(Worker* worker, uint32_t m, uint32_t page, const char* source) noexcept nogil:
    """Writes a page that is not cached, without reading it. Returns the pages written. The inode lock is held."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef Folio* folio = folio_alloc(&work.seg, 0, True)
    cdef uint32_t done = 0
    if folio == NULL:
        return 0
    if mapping_add_ensured(&work.seg, file.number, folio, page, 0, True) == 0:
        if folio_mark_dirty(&work.seg, folio):
            memcpy(folio_address(&work.seg, folio), source, PAGE_SIZE)
            folio_set(folio, FOLIO_UPTODATE)
            size_extend(mapping, (<uint64_t>page + 1) << PAGE_SHIFT)
            done = 1
        else:
            filemap_remove_folio(&work.seg, folio)
        folio_unlock(&work.seg, folio)
    folio_put(&work.seg, folio)
    return done


cdef void write_back(Worker* worker, uint32_t m, uint64_t start, uint64_t last, int mark, bint one_run) noexcept nogil:
    """Writes marked folios to the file: one run, or all of the range."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Folio* run[512]
    cdef Folio* folio
    cdef uint64_t nbytes
    cdef uint32_t nr
    while start <= last:
        folio = next_marked(&work.seg, &work.seg.mappings[file.number], start, last, mark)
        if folio == NULL:
            return
        start = folio_index(folio) + folio_nr_pages(folio)
        folio_lock_uninterruptible(folio)
        while mark == MARK_TOWRITE and folio_mapping(folio) == file.number and folio_test(folio, FOLIO_WRITEBACK):
            folio_wait_slice(folio, FOLIO_WRITEBACK, NULL)
        if not folio_wants_writeback(folio, file.number):
            folio_unlock(&work.seg, folio)
            folio_put(&work.seg, folio)
            continue
        nr = writeback_collect(&work.seg, file.number, folio, last, mark, RUN_BYTES, run, &nbytes)
        if nr == 0:
            folio_put(&work.seg, folio)
            continue
        write_run(worker, m, run, nr, nbytes)
        if one_run:
            return


cdef void write_run(Worker* worker, uint32_t m, Folio** run, uint32_t nr, uint64_t nbytes) noexcept nogil:
    """Writes one run, or fails to; ends its write-back."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint64_t start = folio_index(run[0]) << PAGE_SHIFT
    cdef bint good = worker.no_faults or random_below(worker, 16) != 0
    cdef int error = 0
    cdef uint32_t i
    if good:
        own_write_begin(mapping)
        good = run_write_fd(&work.seg, file.fd, False, <int64_t>start, run, nr, nbytes, &error) == <int64_t>nbytes
        own_write_end(mapping, file.fd, -1)
    if good:
        disk_size_reached(mapping, start + nbytes)
    else:
        errseq_set(&mapping.wb_err, EIO)
    for i in range(nr):
        if not good:
            folio_redirty(&work.seg, run[i])
        folio_end_writeback(&work.seg, run[i], good)
        folio_drop_behind(&work.seg, run[i])


cdef void sync_pages(Worker* worker, uint32_t m) noexcept nogil:
    """Writes all that is dirty, waits for what others write, and compares the file if no error is reported."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint32_t[256] low
    cdef uint32_t cuts = load_acquire_u32(&file.cuts), page
    cdef uint64_t start = 0, word
    cdef Folio* folio
    for page in range(NR_PAGES):
        low[page] = load_acquire_u32(&file.done[page])
    tag_for_writeback(&work.seg, mapping, 0, NR_PAGES - 1)
    write_back(worker, m, 0, NR_PAGES - 1, MARK_TOWRITE, False)
    while start < NR_PAGES:
        folio = next_marked(&work.seg, mapping, start, NR_PAGES - 1, MARK_WRITEBACK)
        if folio == NULL:
            break
        start = folio_index(folio) + folio_nr_pages(folio)
        while folio_wait_slice(folio, FOLIO_WRITEBACK, NULL) != 0:
            pass
        folio_put(&work.seg, folio)
    if errseq_check_and_advance(&mapping.wb_err, &worker.since[m]) != 0:
        return
    for page in range(NR_PAGES):
        word = 0
        pread(file.fd, &word, 8, <int64_t>page * PAGE_SIZE)
        if cuts & 1 or load_acquire_u32(&file.cuts) != cuts:
            return
        if <uint32_t>(word >> 12) < low[page]:
            work_failed(work, LOST_ON_SYNC, page, word, low[page], 0)
