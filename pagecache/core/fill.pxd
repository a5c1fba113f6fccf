"""Bringing in one missing page from a descriptor, when there is nothing to decide: no window, no memory to wait for, no
error to explain. The layer above does all the rest."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport load_acquire_u64
from pagecache.core.charge cimport mapping_add_ensured, nodes_ensure
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.folio cimport folio_end_read, folio_unlock
from pagecache.core.io cimport bytes_on_disk, run_read_fd
from pagecache.core.lru cimport folio_put
from pagecache.core.mapping cimport filemap_remove_folio
from pagecache.core.reclaim cimport folio_alloc
from pagecache.core.segment cimport Folio, Mapping, Segment
from pagecache.core.stamp cimport stamp_is_current


cdef inline Folio* filemap_fill_page(Segment* seg, uint32_t number, uint64_t index, int fd, bint direct) noexcept nogil:
    """Adds a folio for a missing page, reads it and ends the read. Returns it, referenced and uptodate; or NULL, and
    nothing has changed: the page is there or beyond the end, memory is short, the read failed, or the file is another.
    invalidate_lock is held shared."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef uint64_t pos = index << PAGE_SHIFT
    cdef uint64_t wanted
    cdef Folio* folio
    if pos >= load_acquire_u64(&mapping.size):
        return NULL
    if not nodes_ensure(seg):
        return NULL
    folio = folio_alloc(seg, 0, False)
    if folio == NULL:
        return NULL
    if mapping_add_ensured(seg, number, folio, index, 0, False) != 0:
        folio_put(seg, folio)
        return NULL
    wanted = bytes_on_disk(mapping)
    wanted = 0 if wanted <= pos else wanted - pos
    if wanted > PAGE_SIZE:
        wanted = PAGE_SIZE
    if (run_read_fd(seg, fd, direct, <int64_t>pos, &folio, 1, wanted) == <int64_t>wanted
            and stamp_is_current(mapping, fd)):
        folio_end_read(seg, folio, True)
        return folio
    filemap_remove_folio(seg, folio)
    folio_unlock(seg, folio)
    folio_put(seg, folio)
    return NULL
