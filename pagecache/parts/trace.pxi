cdef bint trace_fill(CSegment* seg, uint32_t number, uint64_t index) noexcept nogil:
    """What a miss does, without the reading: creates the folio, uptodate and used once. Returns whether it could."""
    cdef CFolio* folio = folio_alloc(seg, 0, True)
    if folio == NULL:
        return False
    if mapping_add_ensured(seg, number, folio, index, FOLIO_REFERENCED, False) != 0:
        folio_put(seg, folio)
        return False
    folio_end_read(seg, folio, True)
    folio_put(seg, folio)
    return True


cdef int64_t trace_run(CSegment* seg, uint32_t number, const uint64_t* pages, uint64_t nr,
                       uint8_t* missed) noexcept nogil:
    """Runs accesses through the engine. Returns the misses, or -ENOMEM when a page could not be created."""
    cdef uint64_t i
    cdef int64_t nr_misses = 0
    cdef xa_entry entry
    cdef CFolio* folio
    for i in range(nr):
        entry = xa_load(&seg.mappings[number].pages, &seg.pool, pages[i])
        if xa_is_pointer(entry):
            folio = &seg.folios[entry_frame(entry)]
            if folio_is(folio, number, pages[i]):
                folio_used(seg, folio)
                continue
        if not trace_fill(seg, number, pages[i]):
            return -ENOMEM
        nr_misses += 1
        if missed != NULL:
            missed[i] = 1
    return nr_misses


def run_trace(AddressSpace mapping not None, const uint64_t[::1] pages, uint8_t[::1] missed=None):
    """Runs an access trace through the real engine: lookups, marks, reclaim, shadows; nothing is read or copied.

    mapping: whose segment may be one without frames. pages: page numbers in the order of access. missed: set to 1 where an
    access missed. Returns the misses. Raises MemoryError when no folio could be freed, ValueError for lengths that differ.
    Context: releases the GIL.
    """
    cdef int64_t nr_misses = 0
    cdef uint8_t* flags = NULL
    if missed is not None and missed.shape[0] != pages.shape[0]:
        raise ValueError(f"missed has {missed.shape[0]} places for {pages.shape[0]} accesses")
    if pages.shape[0] == 0:
        return 0
    if missed is not None:
        flags = &missed[0]
    with nogil:
        nr_misses = trace_run(mapping.seg, mapping.number, &pages[0], <uint64_t>pages.shape[0], flags)
    if nr_misses < 0:
        raise MemoryError("a page could not be created: everything that is cached is in use")
    return nr_misses
