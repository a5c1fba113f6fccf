"""Writing into cached folios: the hit path of writes.

The rules: docs/kernel.md, buffered writes.

Folio by folio: look up with a reference, lock if no other thread has, dirty (which may be refused: too much is dirty), open
the sequence counter, copy, close it, extend i_size while the folio is still locked, unlock.  Lock-free readers copy
again when the counter has moved; the folio is dirty before its bytes change, so write-back, which needs the lock to
begin, sees all of a write or none of it of each folio.

The caller holds the inode lock, so only one thread extends the object, and none truncates it.  What lies between
i_size and the end of its page is always zero: truncation zeroes it, and stores through maps stop at i_size.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport load_acquire_u64, load_relaxed_u32, store_release_u64
from pagecache.core.config cimport PAGE_SHIFT
from pagecache.core.copy cimport copy_shared
from pagecache.core.folio cimport (FOLIO_UPTODATE, FOLIO_WRITEBACK, folio_address, folio_index, folio_nr_pages,
                                   folio_test, folio_trylock, folio_unlock, folio_write_begin, folio_write_end)
from pagecache.core.lookup cimport filemap_get_entry, folio_is, folio_used
from pagecache.core.lru cimport folio_put
from pagecache.core.segment cimport ALL_ON_DISK, MAPPING_STABLE_WRITES, Folio, Mapping, Segment
from pagecache.core.writeback cimport folio_mark_dirty
from pagecache.core.xa_entry cimport xa_entry


cdef inline void size_extend(Mapping* mapping, uint64_t end) noexcept nogil:
    """Moves i_size up to `end`: the inode lock is held, and the lock of the folio with the new last byte."""
    cdef uint64_t size = load_acquire_u64(&mapping.size)
    if end > size:
        if load_acquire_u64(&mapping.disk_size) == ALL_ON_DISK:
            store_release_u64(&mapping.disk_size, size)
        store_release_u64(&mapping.size, end)


cdef inline void folio_store(Segment* seg, Folio* folio, uint64_t offset, const char* source,
                             uint64_t nbytes) noexcept nogil:
    """Copies bytes into a locked, dirty folio."""
    folio_write_begin(folio)
    copy_shared(folio_address(seg, folio) + offset, source, nbytes)
    folio_write_end(folio)


cdef inline uint64_t folio_write(Segment* seg, Mapping* mapping, Folio* folio, uint64_t pos, const char* source,
                                 uint64_t nbytes, bint extend) noexcept nogil:
    """Writes what a locked, uptodate folio holds of [pos, pos + nbytes). extend: i_size may grow; otherwise bytes
    behind it are not stored, though they count. Returns the bytes, 0 when too much is dirty."""
    cdef uint64_t offset = pos - (folio_index(folio) << PAGE_SHIFT)
    cdef uint64_t room = (<uint64_t>folio_nr_pages(folio) << PAGE_SHIFT) - offset
    cdef uint64_t size, inside
    if nbytes > room:
        nbytes = room
    if not folio_mark_dirty(seg, folio):
        return 0
    size = load_acquire_u64(&mapping.size)
    inside = nbytes
    if not extend and pos + nbytes > size:
        inside = size - pos if size > pos else 0
    folio_store(seg, folio, offset, source, inside)
    if extend:
        size_extend(mapping, pos + nbytes)
    folio_used(seg, folio)
    return nbytes


cdef inline bint folio_writable_now(Mapping* mapping, Folio* folio) noexcept nogil:
    """Whether a locked folio can be written without reading it or waiting for it."""
    if not folio_test(folio, FOLIO_UPTODATE):
        return False
    return not (load_relaxed_u32(&mapping.flags) & MAPPING_STABLE_WRITES and folio_test(folio, FOLIO_WRITEBACK))


cdef inline uint64_t write_cached(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes,
                                  const char* source) noexcept nogil:
    """Writes the beginning of [pos, pos + nbytes) that is cached and free. pos is not behind i_size; the inode lock is
    held. Returns the bytes written; the slow path does the rest."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef uint64_t done = 0, wrote
    cdef uint64_t index
    cdef xa_entry entry
    cdef Folio* folio
    while done < nbytes:
        index = (pos + done) >> PAGE_SHIFT
        folio = filemap_get_entry(seg, number, index, &entry)
        if folio == NULL:
            break
        wrote = 0
        if folio_trylock(folio):
            if folio_is(folio, number, index) and folio_writable_now(mapping, folio):
                wrote = folio_write(seg, mapping, folio, pos + done, source + done, nbytes - done, True)
            folio_unlock(seg, folio)
        folio_put(seg, folio)
        if wrote == 0:
            break
        done += wrote
    return done
