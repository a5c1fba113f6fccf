from libc.stdint cimport int64_t
from posix.unistd cimport ftruncate
from pagecache.core.compact cimport folio_alloc_block
from pagecache.core.folio cimport FOLIO_DIRTY
from pagecache.core.lookup cimport folio_is
from pagecache.core.lru cimport folio_free_last
from pagecache.core.mapping cimport entry_frame, filemap_remove_clean, filemap_zero_unshared
from pagecache.core.folio cimport folio_try_get
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.split cimport folio_split
from pagecache.core.xa_entry cimport xa_is_value
from pagecache.core.xa_find cimport xas_find
from pagecache.core.xa_state cimport XaState, xas_init

cdef extern from "sched.h" nogil:
    int sched_yield()


cdef Folio* next_folio(Work* work, uint32_t m, uint64_t start) noexcept nogil:
    """The first cached folio at or behind a page, referenced, or NULL."""
    cdef Mapping* mapping = &work.seg.mappings[work.files[m].number]
    cdef Folio* folio = NULL
    cdef XaState xas
    cdef xa_entry entry
    futex_lock(&mapping.pages.lock)
    xas_init(&xas, &mapping.pages, &work.seg.pool, start, 0)
    entry = xas_find(&xas, NR_PAGES - 1)
    while entry != 0 and xa_is_value(entry):
        entry = xas_find(&xas, NR_PAGES - 1)
    if entry != 0:
        folio = &work.seg.folios[entry_frame(entry)]
        if not folio_try_get(folio):
            work_failed(work, FOREIGN_BYTES, start, entry, 0, 0)
            folio = NULL
    futex_unlock(&mapping.pages.lock)
    return folio


cdef void remove_from(Worker* worker, uint32_t m, uint64_t start) noexcept nogil:
    """Removes all folios from a page on; what reaches over the edge is split there. invalidate_lock is held."""
    cdef Work* work = worker.work
    cdef uint32_t number = work.files[m].number
    cdef Folio* folio = next_folio(work, m, start)
    while folio != NULL:
        folio_lock_uninterruptible(folio)
        while folio_mapping(folio) == number and folio_wait_slice(folio, FOLIO_WRITEBACK, NULL) != 0:
            pass
        if folio_mapping(folio) == number:
            if folio_index(folio) >= start:
                filemap_remove_folio(&work.seg, folio)
            elif (filemap_zero_unshared(&work.seg, folio, (start - folio_index(folio)) << PAGE_SHIFT, PAGE_SIZE) != 0
                  or folio_split(&work.seg, folio, start) != 0):
                sched_yield()               # a thread reads it
        folio_unlock(&work.seg, folio)
        folio_put(&work.seg, folio)
        folio = next_folio(work, m, start)


cdef void truncate(Worker* worker, uint32_t m, uint32_t nr_pages) noexcept nogil:
    """Truncates the file; every other time it grows again, by zeros."""
    cdef Work* work = worker.work
    cdef File* file = &work.files[m]
    cdef Mapping* mapping = &work.seg.mappings[file.number]
    cdef uint32_t page
    lock_exclusive(&mapping.inode_lock)
    lock_exclusive(&mapping.invalidate_lock)
    add_acq_rel_u32(&file.cuts, 1)
    own_write_begin(mapping)
    if <uint64_t>nr_pages << PAGE_SHIFT < load_acquire_u64(&mapping.size):
        for page in range(nr_pages, NR_PAGES):
            store_release_u32(&file.done[page], 0)
        mapping_set_size(mapping, <uint64_t>nr_pages << PAGE_SHIFT)
        remove_from(worker, m, nr_pages)
    if random_below(worker, 2):
        nr_pages = NR_PAGES
    if ftruncate(file.fd, <int64_t>nr_pages << PAGE_SHIFT) == 0:
        file_resize(work, m, nr_pages)
    own_write_end(mapping, file.fd, -1)
    add_acq_rel_u32(&file.cuts, 1)
    rwsem_unlock_write(&mapping.invalidate_lock)
    rwsem_unlock_write(&mapping.inode_lock)


cdef void evict(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Evicts the folio of a page if it is clean and not held."""
    cdef Work* work = worker.work
    cdef uint32_t number = work.files[m].number
    cdef xa_entry entry = 0
    cdef Folio* folio = filemap_get_entry(&work.seg, number, page, &entry)
    if folio == NULL:
        return
    if folio_trylock(folio):
        if (folio_mapping(folio) == number
                and filemap_remove_clean(&work.seg, folio, 1, random_below(worker, 2) != 0) == 0):
            folio_clear(folio, FOLIO_LOCKED)
            folio_free_last(&work.seg, folio)
            return
        folio_unlock(&work.seg, folio)
    folio_put(&work.seg, folio)


cdef void resize(Worker* worker) noexcept nogil:
    """Gives the cache another size, between a half and all of the frames, and takes some steps towards it."""
    cdef Segment* seg = &worker.work.seg
    cdef uint32_t missing, i
    cdef bint refused = False
    header_set_budget(seg.header, seg.nr_frames - random_below(worker, seg.nr_frames // 2 + 1))
    balloon_give_excess(seg)
    for i in range(3):
        missing = balloon_missing(seg)
        if missing > 0:
            balloon_fill(seg, missing, True, &refused)


cdef void hold_block(Worker* worker) noexcept nogil:
    """Takes some frames side by side, out of the hands of whatever is cached there, and writes to all of them."""
    cdef Work* work = worker.work
    cdef uint32_t order = 1 + random_below(worker, 4)
    cdef Folio* folio = folio_alloc_block(&work.seg, order)
    if folio != NULL:
        memset(folio_address(&work.seg, folio), 255, <uint64_t>PAGE_SIZE << order)
        folio_put(&work.seg, folio)


cdef void split(Worker* worker, uint32_t m, uint32_t page) noexcept nogil:
    """Splits the folio of a page if no other thread holds it."""
    cdef Work* work = worker.work
    cdef uint32_t number = work.files[m].number
    cdef xa_entry entry = 0
    cdef Folio* folio = filemap_get_entry(&work.seg, number, page, &entry)
    if folio == NULL:
        return
    if folio_trylock(folio):
        if (folio_is(folio, number, page) and folio_test(folio, FOLIO_UPTODATE)
                and not folio_test(folio, FOLIO_WRITEBACK)):
            folio_split(&work.seg, folio, page)
        folio_unlock(&work.seg, folio)
    folio_put(&work.seg, folio)
