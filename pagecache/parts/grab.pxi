cdef enum:
    GRAB_ENTRIES = 64               # entries one step of a truncation looks at

ctypedef struct Grab:               # entries of a range, each folio with a reference
    CFolio* folios[64]
    uint32_t nr
    uint32_t nr_values              # shadows erased
    uint64_t next_index             # where to go on; <uint64_t>-1 when nothing is left


cdef void grab_entries(AddressSpace mapping, uint64_t start, uint64_t end, bint whole, Grab* out) noexcept nogil:
    """Takes references on the folios of pages [start, end) and erases the shadows. whole: leaves out folios that reach
    over an edge of the range."""
    cdef CSegment* seg = mapping.seg
    cdef CMapping* m = mapping.m
    cdef CXaState xas
    cdef xa_entry entry
    cdef CFolio* folio
    cdef uint64_t first, nr, seen = 0
    out.nr = 0
    out.nr_values = 0
    out.next_index = <uint64_t>-1
    if start >= end:
        return
    futex_lock(&m.pages.lock)
    xas_init(&xas, &m.pages, &seg.pool, start, 0)
    xas.update = workingset_update_node
    entry = xas_find(&xas, end - 1)
    while entry != 0:
        nr = <uint64_t>1 << xas_get_order(&xas)
        first = xas.index & ~(nr - 1)
        if seen == GRAB_ENTRIES:
            out.next_index = first
            break
        seen += 1
        if xa_is_value(entry):
            if not whole or (first >= start and nr <= end - first):
                xas_store(&xas, 0)
                out.nr_values += 1
                xas_init(&xas, &m.pages, &seg.pool, first + nr, 0)
                xas.update = workingset_update_node
                if first + nr >= end or first + nr == 0:
                    break
        elif not whole or (first >= start and nr <= end - first):
            folio = &seg.folios[entry_frame(entry)]
            if folio_try_get(folio):
                out.folios[out.nr] = folio
                out.nr += 1
        entry = xas_find(&xas, end - 1)
    futex_unlock(&m.pages.lock)


cdef void grab_put(AddressSpace mapping, Grab* grab) noexcept nogil:
    cdef uint32_t i
    for i in range(grab.nr):
        folio_put(mapping.seg, grab.folios[i])


def truncate_unlocked(AddressSpace mapping not None, uint64_t start, uint64_t end):
    """One step of truncation's first pass: removes the folios that lie wholly in pages [start, end), are not locked
    and not under write-back, dirty or not, and the shadows.

    Returns the page to go on from, or None at the end of the range. Context: releases the GIL, waits for nothing.
    """
    cdef Grab grab
    cdef uint32_t i
    with nogil:
        grab_entries(mapping, start, end, True, &grab)
        for i in range(grab.nr):
            if not folio_trylock(grab.folios[i]):
                continue
            if (folio_mapping(grab.folios[i]) == mapping.number
                    and not folio_test(grab.folios[i], FOLIO_WRITEBACK)):
                filemap_remove_folio(mapping.seg, grab.folios[i])
            folio_unlock(mapping.seg, grab.folios[i])
        grab_put(mapping, &grab)
    return None if grab.next_index == <uint64_t>-1 else grab.next_index


def invalidate_unlocked(AddressSpace mapping not None, uint64_t start, uint64_t end):
    """One step of invalidation: removes what lies wholly in pages [start, end), is clean, not locked and held by
    nothing; what is left is deactivated.

    Returns (page to go on from or None, pages removed, pages left). Context: releases the GIL, waits for nothing.
    """
    cdef Grab grab
    cdef uint32_t i
    cdef uint64_t removed = 0, left = 0
    cdef CFolio* folio
    with nogil:
        grab_entries(mapping, start, end, True, &grab)
        for i in range(grab.nr):
            folio = grab.folios[i]
            if folio_trylock(folio):
                if (folio_mapping(folio) == mapping.number
                        and filemap_remove_clean(mapping.seg, folio, 1, False) == 0):
                    removed += folio_nr_pages(folio)
                    folio_clear(folio, FOLIO_LOCKED)
                    folio_free_last(mapping.seg, folio)
                    continue
                folio_unlock(mapping.seg, folio)
            left += folio_nr_pages(folio)
            if not folio_test(folio, FOLIO_UNEVICTABLE):
                folio_clear(folio, FOLIO_REFERENCED | FOLIO_ACCESSED)
                lru_move(mapping.seg, folio, False, not folio_test(folio, FOLIO_DIRTY | FOLIO_WRITEBACK))
            folio_put(mapping.seg, folio)
    count(mapping.seg, DROP_PAGECACHE, <int64_t>removed)
    return (None if grab.next_index == <uint64_t>-1 else grab.next_index), removed + grab.nr_values, left


def find_folios(AddressSpace mapping not None, uint64_t start, uint64_t end):
    """The next folios that overlap pages [start, end), referenced, and None or the page to go on from; shadows met on
    the way are erased. Context: waits for nothing."""
    cdef Grab grab
    cdef uint32_t i
    with nogil:
        grab_entries(mapping, start, end, False, &grab)
    out = [folio_object(mapping.segment, grab.folios[i]) for i in range(grab.nr)]
    return out, (None if grab.next_index == <uint64_t>-1 else grab.next_index)


def copy_folio(AddressSpace mapping not None, Folio folio not None):
    """A copy of an uptodate folio, of the same order, in no mapping, locked and uptodate; None without memory."""
    cdef CFolio* raw = folio.alive()
    cdef CFolio* copy
    with nogil:
        copy = folio_alloc(mapping.seg, folio_order(raw), True)
        if copy != NULL:
            memcpy(folio_address(mapping.seg, copy), folio_address(mapping.seg, raw),
                   <uint64_t>folio_nr_pages(raw) << PAGE_SHIFT)
            folio_set(copy, FOLIO_LOCKED | FOLIO_UPTODATE)
    return None if copy == NULL else locked_folio_object(mapping.segment, copy)
