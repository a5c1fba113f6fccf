from pagecache.core.lookup cimport PageRun, page_run_find, page_run_validate


cdef void bring_in(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Caches one page, with nothing to be done about it."""
    cdef Work* work = worker.work
    cdef xa_entry entry = 0
    cdef Folio* folio
    fill_page(worker, m, page)
    folio = filemap_get_entry(&work.seg, work.files[m].number, page, &entry)
    if folio != NULL:
        folio_clear(folio, FOLIO_READAHEAD)
        folio_put(&work.seg, folio)


cdef void take_out(Worker* worker, uint32_t m) noexcept nogil:
    """Removes all pages of a file."""
    cdef Mapping* mapping = &worker.work.seg.mappings[worker.work.files[m].number]
    lock_exclusive(&mapping.invalidate_lock)
    remove_from(worker, m, 0)
    rwsem_unlock_write(&mapping.invalidate_lock)


def pages_valid_after_reuse(descriptors: list, m: int, page: int) -> int:
    """Find page 0 of file 0 in the only frame there is, put a page of a file there instead, and validate what was found.

    Returns how many pages a reader would copy then: 0, unless it is the same page.
    """
    cdef Work* work = <Work*>calloc(1, sizeof(Work))
    cdef Worker worker
    cdef PageRun found
    cdef uint32_t nr, file = m, index = page
    if work == NULL:
        raise MemoryError
    memset(&worker, 0, sizeof(Worker))
    worker.work = work
    worker.random = 1
    prepare(work, descriptors, 1, 0)
    work.span = 1                   # folios of one page
    with nogil:
        bring_in(&worker, 0, 0)
        page_run_find(&found, &work.seg, work.files[0].number, 0, 1)
        take_out(&worker, 0)
        bring_in(&worker, file, index)
        nr = page_run_validate(&found, work.files[0].number)
        io_queue_end(&work.queue)
    finish(work)
    give_back(work)
    return nr


def line_valid_after(descriptors: list, what: str) -> bool:
    """Find a line of a cached page, then have something done to the page. Returns whether what was found still counts.

    what: "nothing", "write" or "removal".
    """
    cdef Work* work = <Work*>calloc(1, sizeof(Work))
    cdef Worker worker
    cdef LinePiece piece
    cdef PinResult result
    cdef bint is_valid = False, writes = what == "write", removes = what == "removal"
    if work == NULL:
        raise MemoryError
    memset(&worker, 0, sizeof(Worker))
    worker.work = work
    worker.random = 1
    worker.no_faults = True
    prepare(work, descriptors, 4, 0)
    work.span = 1                   # folios of one page
    with nogil:
        bring_in(&worker, 0, 0)
        result = line_pin(&piece, &work.seg, work.files[0].number, 0, PAGE_SIZE, NR_PAGES * PAGE_SIZE)
        if result == LINE_PINNED:
            if writes:
                write_pages(&worker, 0, 0)
            elif removes:
                take_out(&worker, 0)
            is_valid = line_unpin(&piece, &work.seg, <uint64_t>-1)
        io_queue_end(&work.queue)
    assert result == LINE_PINNED
    finish(work)
    give_back(work)
    return is_valid
