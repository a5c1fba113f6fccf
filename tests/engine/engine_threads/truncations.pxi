from pagecache.core.mapping cimport mapping_not_truncated_since, mapping_set_size

cdef enum:
    CUT_PAGES = 3                   # of the truncated file; it never has a zero


cdef void put_page(Worker* worker, uint32_t page, uint64_t nr_ones) noexcept nogil:
    """Caches a page that begins with so many ones, and is zeros from there on."""
    cdef Work* work = worker.work
    cdef Folio* folio = folio_alloc(&work.seg, 0, True)
    if folio == NULL or mapping_add_ensured(&work.seg, work.files[0].number, folio, page, 0, False) != 0:
        work_failed(work, SHORT_FILE, page, 0, 0, 0)
    else:
        memset(folio_address(&work.seg, folio), 1, nr_ones)
        memset(folio_address(&work.seg, folio) + nr_ones, 0, PAGE_SIZE - nr_ones)
        folio_end_read(&work.seg, folio, True)
    if folio != NULL:
        folio_put(&work.seg, folio)


cdef void cut_page(Worker* worker, uint32_t page, uint64_t nr_left) noexcept nogil:
    """Truncates a cached page: zeroes it behind nr_left bytes, or puts another in its place if it is held, or by
    chance."""
    cdef Work* work = worker.work
    cdef xa_entry entry = 0
    cdef Folio* folio = filemap_get_entry(&work.seg, work.files[0].number, page, &entry)
    cdef bint is_cut
    folio_lock_uninterruptible(folio)
    is_cut = random_below(worker, 4) > 0 and filemap_zero_unshared(
        &work.seg, folio, nr_left, PAGE_SIZE - nr_left) == 0
    if not is_cut:
        filemap_remove_folio(&work.seg, folio)
    folio_unlock(&work.seg, folio)
    folio_put(&work.seg, folio)
    if not is_cut:
        put_page(worker, page, nr_left)


cdef void cut_and_write(Worker* worker) noexcept nogil:
    """Truncates the file anywhere, and writes ones from there to where it ended."""
    cdef Mapping* mapping = &worker.work.seg.mappings[worker.work.files[0].number]
    cdef uint64_t size = random_below(worker, CUT_PAGES * PAGE_SIZE), first
    cdef uint32_t page
    mapping_set_size(mapping, size)
    for page in range(CUT_PAGES):
        first = <uint64_t>page << PAGE_SHIFT
        if first + PAGE_SIZE > size:
            cut_page(worker, page, size - first if size > first else 0)
    while size < CUT_PAGES * PAGE_SIZE:
        size += write_cached(&worker.work.seg, worker.work.files[0].number, size, CUT_PAGES * PAGE_SIZE - size,
                             <char*>worker.buffer)


cdef uint64_t read_referenced(Worker* worker, uint64_t pos, uint64_t nbytes) noexcept nogil:
    """Copies bytes of one page with a reference. Returns how many."""
    cdef Work* work = worker.work
    cdef xa_entry entry = 0
    cdef Folio* folio = filemap_get_entry(&work.seg, work.files[0].number, pos >> PAGE_SHIFT, &entry)
    cdef uint64_t offset = pos & (PAGE_SIZE - 1)
    if folio == NULL:
        return 0
    if nbytes > PAGE_SIZE - offset:
        nbytes = PAGE_SIZE - offset
    if folio_test(folio, FOLIO_UPTODATE):
        copy_shared(<char*>worker.buffer, folio_address(&work.seg, folio) + offset, nbytes)
    else:
        nbytes = 0
    folio_put(&work.seg, folio)
    return nbytes


cdef void read_ones(Worker* worker) noexcept nogil:
    """Reads anything, in some way. There is no zero in what counts."""
    cdef Work* work = worker.work
    cdef Mapping* mapping = &work.seg.mappings[work.files[0].number]
    cdef uint32_t nr_truncations = load_acquire_u32(&mapping.nr_truncations)
    cdef uint64_t size = load_acquire_u64(&mapping.size)
    cdef uint64_t pos = random_below(worker, CUT_PAGES * PAGE_SIZE), done, i
    cdef uint32_t way = random_below(worker, 3)
    cdef LinePiece piece
    if pos >= size:
        return
    if way == 0:
        done = read_cached(&work.seg, work.files[0].number, pos, size - pos, <char*>worker.buffer, <uint64_t>-1)
    elif way == 1:
        done = read_referenced(worker, pos, size - pos)
    else:
        if line_pin(&piece, &work.seg, work.files[0].number, pos, size - pos, size) != LINE_PINNED:
            return
        done = piece.nbytes
        copy_shared(<char*>worker.buffer, piece.source, done)
        if not line_unpin(&piece, &work.seg, <uint64_t>-1):
            return
    if not mapping_not_truncated_since(mapping, nr_truncations):
        return
    worker.counts[way] += 1
    for i in range(done):
        if (<char*>worker.buffer)[i] != 1:
            work_failed(work, UNEXPECTED_ZEROS, (pos + i) >> PAGE_SHIFT, way, 0, 0)
            return


cdef void* cutting_main(void* argument) noexcept nogil:
    """The thread that truncates, until the others have done their part; the readers."""
    cdef Worker* worker = <Worker*>argument
    cdef uint64_t i
    wait_for_all(worker.work)
    if worker.nr_steps == 0:
        memset(worker.buffer, 1, CUT_PAGES * PAGE_SIZE)
        while (load_acquire_u32(&worker.work.nr_done) < worker.work.nr_threads - 1
               and load_acquire_u32(&worker.work.failure) == 0):
            cut_and_write(worker)
        return NULL
    for i in range(worker.nr_steps):
        if load_acquire_u32(&worker.work.failure):
            break
        read_ones(worker)
    add_acq_rel_u32(&worker.work.nr_done, 1)
    return NULL


def run_cuts(descriptors: list, nr_threads: int, nr_steps: int, seed: int) -> tuple[int, int, int]:
    """Let threads read a file of ones while another truncates it and writes it to its former size again, all the time.

    Returns how many reads were valid, without a reference, with one, and of lines. Raises as `run`.
    """
    cdef Work* work = <Work*>calloc(1, sizeof(Work))
    cdef Worker* workers = <Worker*>calloc(THREADS_MAX, sizeof(Worker))
    cdef uint32_t i
    if work == NULL or workers == NULL:
        raise MemoryError
    prepare(work, descriptors, 64, 0)
    work.nr_threads = nr_threads
    for i in range(work.nr_threads):
        workers[i].work = work
        workers[i].random = <uint64_t>seed * 1000 + i + 1
        workers[i].nr_steps = nr_steps if i > 0 else 0
    with nogil:
        mapping_set_size(&work.seg.mappings[work.files[0].number], CUT_PAGES * PAGE_SIZE)
        for i in range(CUT_PAGES):
            put_page(&workers[0], i, PAGE_SIZE)
        run_threads(work, workers, cutting_main)
        io_queue_end(&work.queue)
    raise_failure(work)
    finish(work)
    counts = tuple(sum(workers[i].counts[way] for i in range(nr_threads)) for way in range(3))
    free(workers)
    give_back(work)
    return counts
