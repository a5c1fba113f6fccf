"""Dirty folios and their way to the store.

The rules: docs/kernel.md, write-back.

    state of a folio            index marks                   charged (dirty.pxd)
    clean                       none                          no
    DIRTY                       DIRTY, perhaps TOWRITE        yes
    WRITEBACK                   WRITEBACK                     yes
    DIRTY and WRITEBACK         both                          yes, once

    mark dirty    folio lock held (so it is not removed meanwhile): charge, DIRTY by fetch-or, then the mark under
                  xa_lock: what finds the mark finds the flag, or waits on the folio lock for it
    begin         folio lock held, DIRTY set, WRITEBACK not: under xa_lock, one compare-and-swap turns DIRTY into
                  WRITEBACK, and the marks follow; a sync that looks for either mark under xa_lock never misses it
    end           by the writing thread, without the folio lock: under xa_lock WRITEBACK goes, flag and mark. A folio that
                  could not be written is made DIRTY first, so that it is never clean by mistake
A folio under write-back is not removed, split or freed: removal waits, and write-back holds a reference.  It may be
dirtied again: a store that must not see bytes change asks for stable writes, and then writers wait.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport (and_acq_rel_u32, cas_acq_rel_u32, load_acquire_u64, load_relaxed_u32,
                                    or_acq_rel_u32, store_relaxed_u64, cas_acq_rel_u64)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport BATCH_PAGES, PAGE_SHIFT
from pagecache.core.dirty cimport dirty_try_charge, dirty_uncharge
from pagecache.core.folio cimport (FOLIO_DIRTY, FOLIO_DROPBEHIND, FOLIO_LOCKED, FOLIO_READAHEAD, FOLIO_REFERENCED,
                                   FOLIO_ACCESSED, FOLIO_WAITERS, FOLIO_WRITEBACK, folio_clear, folio_index,
                                   folio_mapping, folio_nr_pages, folio_test, folio_trylock, folio_try_get,
                                   folio_unlock, folio_wake)
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport folio_free_last, folio_put, lru_move
from pagecache.core.mapping cimport (MARK_DIRTY, MARK_TOWRITE, MARK_WRITEBACK, entry_frame,
                                     filemap_remove_clean)
from pagecache.core.segment cimport (ALL_ON_DISK, NR_DIRTIED, NR_DIRTY, NR_WRITEBACK, NR_WRITTEN, PGROTATED, Folio,
                                     Mapping, Segment, count)
from pagecache.core.thread cimport monotonic_ns
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer
from pagecache.core.xa_find cimport xas_find_marked
from pagecache.core.xa_state cimport (XaState, xas_clear_mark, xas_init, xas_load, xas_set_mark)
from pagecache.core.xarray cimport xa_marked

cdef enum:
    TAG_BATCH = 4096                # marks copied before xa_lock is given up for a moment


# -- dirtying --------------------------------------------------------------------------------------------------------

cdef inline void mapping_mark_dirty(Segment* seg, Mapping* mapping, Folio* folio) noexcept nogil:
    """Sets the DIRTY mark. xa_lock is held, the folio in the index."""
    cdef XaState xas
    if not xa_marked(&mapping.pages, MARK_DIRTY):
        store_relaxed_u64(&mapping.dirtied_when_ns, <uint64_t>monotonic_ns())
    xas_init(&xas, &mapping.pages, &seg.pool, folio_index(folio), 0)
    xas_load(&xas)
    xas_set_mark(&xas, MARK_DIRTY)


cdef inline bint folio_mark_dirty(Segment* seg, Folio* folio) noexcept nogil:
    """Makes a locked, uptodate folio of a mapping dirty. Returns False when so much is dirty that the caller has to
    wait; then nothing has changed."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t nr = folio_nr_pages(folio), before
    pc_assert(folio_test(folio, FOLIO_LOCKED) and folio_mapping(folio) != 0)
    if folio_test(folio, FOLIO_DIRTY):
        return True
    if not dirty_try_charge(seg, nr):
        return False
    store_relaxed_u64(&folio.dirtied_at_ns, <uint64_t>monotonic_ns())
    before = or_acq_rel_u32(&folio.state, FOLIO_DIRTY)
    if before & (FOLIO_WRITEBACK | FOLIO_DIRTY):        # or its write-back failed meanwhile: charged already
        dirty_uncharge(seg, nr)
    if before & FOLIO_READAHEAD:
        folio_clear(folio, FOLIO_READAHEAD)
    futex_lock(&mapping.pages.lock)
    mapping_mark_dirty(seg, mapping, folio)
    futex_unlock(&mapping.pages.lock)
    if not before & FOLIO_DIRTY:
        count(seg, NR_DIRTY, nr)
        count(seg, NR_DIRTIED, nr)
    return True


# -- write-back ------------------------------------------------------------------------------------------------------

cdef inline void folio_begin_writeback(Segment* seg, Folio* folio) noexcept nogil:
    """Turns a locked, dirty folio that is not under write-back into one that is, with a reference of its own."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t nr = folio_nr_pages(folio)
    cdef uint32_t state
    cdef XaState xas
    futex_lock(&mapping.pages.lock)
    state = load_relaxed_u32(&folio.state)
    pc_assert((state & (FOLIO_LOCKED | FOLIO_DIRTY | FOLIO_WRITEBACK)) == (FOLIO_LOCKED | FOLIO_DIRTY))
    while not cas_acq_rel_u32(&folio.state, &state, (state | FOLIO_WRITEBACK) & ~<uint32_t>FOLIO_DIRTY):
        pass
    xas_init(&xas, &mapping.pages, &seg.pool, folio_index(folio), 0)
    xas_load(&xas)
    xas_set_mark(&xas, MARK_WRITEBACK)
    xas_clear_mark(&xas, MARK_DIRTY)
    xas_clear_mark(&xas, MARK_TOWRITE)
    futex_unlock(&mapping.pages.lock)
    count(seg, NR_DIRTY, -<int64_t>nr)
    count(seg, NR_WRITEBACK, nr)


cdef inline void folio_redirty(Segment* seg, Folio* folio) noexcept nogil:
    """A folio under write-back could not be written: it is dirty again, and still charged."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t before = or_acq_rel_u32(&folio.state, FOLIO_DIRTY)
    futex_lock(&mapping.pages.lock)
    mapping_mark_dirty(seg, mapping, folio)
    futex_unlock(&mapping.pages.lock)
    if not before & FOLIO_DIRTY:
        count(seg, NR_DIRTY, folio_nr_pages(folio))


cdef inline void folio_end_writeback(Segment* seg, Folio* folio, bint written) noexcept nogil:
    """Ends the write-back of a referenced folio; waiters go on. A folio that reclaim waited for leaves next,
    one that was to be cached only for the write leaves now."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t nr = folio_nr_pages(folio)
    cdef uint32_t before
    cdef XaState xas
    futex_lock(&mapping.pages.lock)
    before = and_acq_rel_u32(&folio.state, ~<uint32_t>(FOLIO_WRITEBACK | FOLIO_WAITERS | FOLIO_READAHEAD))
    pc_assert(before & FOLIO_WRITEBACK)
    xas_init(&xas, &mapping.pages, &seg.pool, folio_index(folio), 0)
    xas_load(&xas)
    xas_clear_mark(&xas, MARK_WRITEBACK)
    futex_unlock(&mapping.pages.lock)
    count(seg, NR_WRITEBACK, -<int64_t>nr)
    if written:
        count(seg, NR_WRITTEN, nr)
    if not before & FOLIO_DIRTY:
        dirty_uncharge(seg, nr)
    folio_wake(seg, folio, before)
    if before & FOLIO_READAHEAD and not before & FOLIO_DIRTY:
        folio_clear(folio, FOLIO_REFERENCED | FOLIO_ACCESSED)
        lru_move(seg, folio, False, True)
        count(seg, PGROTATED, nr)


cdef inline void folio_drop_behind(Segment* seg, Folio* folio) noexcept nogil:
    """Drops the caller's reference, and the folio with it if it is clean, not used otherwise, and only passing by."""
    if folio_test(folio, FOLIO_DROPBEHIND) and folio_trylock(folio):
        if folio_mapping(folio) != 0 and filemap_remove_clean(seg, folio, 1, False) == 0:
            folio_clear(folio, FOLIO_LOCKED)
            folio_free_last(seg, folio)
            return
        folio_unlock(seg, folio)
    folio_put(seg, folio)


cdef inline void disk_size_reached(Mapping* mapping, uint64_t end) noexcept nogil:
    """The store has the object's bytes up to `end` now."""
    cdef uint64_t old = load_acquire_u64(&mapping.disk_size)
    while old != ALL_ON_DISK and old < end:
        if cas_acq_rel_u64(&mapping.disk_size, &old, end):
            return


# -- selection -------------------------------------------------------------------------------------------------------

cdef inline uint64_t tag_for_writeback(Segment* seg, Mapping* mapping, uint64_t start, uint64_t last) noexcept nogil:
    """Marks TOWRITE what is dirty in pages start..last now: a sync writes these, and is not kept going for ever by
    what is dirtied while it writes. Returns the folios marked."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint64_t nr = 0
    while start <= last:
        futex_lock(&mapping.pages.lock)
        xas_init(&xas, &mapping.pages, &seg.pool, start, 0)
        entry = xas_find_marked(&xas, last, MARK_DIRTY)
        while entry != 0:
            xas_set_mark(&xas, MARK_TOWRITE)
            nr += 1
            if nr % TAG_BATCH == 0:
                break
            entry = xas_find_marked(&xas, last, MARK_DIRTY)
        futex_unlock(&mapping.pages.lock)
        if entry == 0:
            break
        start = xas.index + 1
    return nr


cdef inline Folio* next_marked(Segment* seg, Mapping* mapping, uint64_t start, uint64_t last,
                               int mark) noexcept nogil:
    """The first folio of pages start..last with a mark, referenced; NULL when there is none."""
    cdef XaState xas
    cdef xa_entry entry
    cdef Folio* folio = NULL
    futex_lock(&mapping.pages.lock)
    xas_init(&xas, &mapping.pages, &seg.pool, start, 0)
    entry = xas_find_marked(&xas, last, <uint32_t>mark)
    if entry != 0 and xa_is_pointer(entry):
        folio = &seg.folios[entry_frame(entry)]
        if not folio_try_get(folio):
            pc_assert(False)
    futex_unlock(&mapping.pages.lock)
    return folio


cdef inline bint folio_wants_writeback(Folio* folio, uint32_t number) noexcept nogil:
    """Whether a locked folio is still of this mapping, dirty, and not being written already."""
    return (folio_mapping(folio) == number and folio_test(folio, FOLIO_DIRTY)
            and not folio_test(folio, FOLIO_WRITEBACK))


cdef inline uint32_t writeback_collect(Segment* seg, uint32_t number, Folio* first, uint64_t last, int mark,
                                       uint64_t max_bytes, Folio** out, uint64_t* nbytes) noexcept nogil:
    """Puts a locked, dirty folio under write-back, and the marked ones right behind it as long as that needs no wait,
    in all max_bytes at most (but one folio at least). Unlocks them; the references go to `out` (BATCH_PAGES of room).
    nbytes: what is inside i_size. Returns the folios, 0 when the first lies behind the end of the object."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef Folio* folio = first
    cdef uint64_t start = folio_index(first) << PAGE_SHIFT
    cdef uint64_t end, size
    cdef uint32_t nr = 0
    nbytes[0] = 0
    while folio != NULL:
        size = load_acquire_u64(&mapping.size)
        end = (folio_index(folio) + folio_nr_pages(folio)) << PAGE_SHIFT
        if folio_index(folio) << PAGE_SHIFT >= size:
            folio_unlock(seg, folio)
            if nr > 0:
                folio_put(seg, folio)
            return nr
        folio_begin_writeback(seg, folio)
        folio_unlock(seg, folio)
        out[nr] = folio
        nr += 1
        nbytes[0] = (end if end < size else size) - start
        folio = NULL
        if nr < BATCH_PAGES and nbytes[0] < max_bytes and end >> PAGE_SHIFT <= last:
            folio = next_neighbour(seg, mapping, number, end >> PAGE_SHIFT, mark, max_bytes - nbytes[0])
    return nr


cdef inline Folio* next_neighbour(Segment* seg, Mapping* mapping, uint32_t number, uint64_t index, int mark,
                                  uint64_t max_bytes) noexcept nogil:
    """The marked folio that begins at page `index`, referenced and locked, if that takes no wait and it fits."""
    cdef Folio* folio = next_marked(seg, mapping, index, index, mark)
    if folio == NULL:
        return NULL
    if (folio_index(folio) == index and <uint64_t>folio_nr_pages(folio) << PAGE_SHIFT <= max_bytes
            and folio_trylock(folio)):
        if folio_wants_writeback(folio, number) and folio_index(folio) == index:
            return folio
        folio_unlock(seg, folio)
    folio_put(seg, folio)
    return NULL
