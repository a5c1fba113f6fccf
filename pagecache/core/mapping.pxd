"""Mappings (address spaces): adding folios to an index, removing them, replacing and splitting them.

A folio entry is a pointer entry whose code packs frame and order into 30 bits,

    code = frame * 2 + 2**order

(frame is a multiple of 2**order, so the lowest set bit is the order's): a reader has the data's address from the index
alone, before the descriptor's cache line has arrived.

Insert and remove happen with the folio locked (or frozen) and xa_lock held; holding the folio lock and seeing
folio.mapping therefore pins membership.  Removal stores the shadow or NULL first, then clears `mapping`, then bumps
`seq`; the page cache's references go last, so the frame cannot be reused before a reader can notice.
"""
from libc.errno cimport EBUSY, EEXIST, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from pagecache.core.admit cimport lru_admit
from pagecache.core.atomic cimport (add_acq_rel_u32, add_relaxed_u64, ctz32, fence_acquire, hint_u32, load_acquire_u64,
                                    load_relaxed_u32, load_relaxed_u64, store_relaxed_u32, store_relaxed_u64,
                                    store_release_u32, store_release_u64)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport NIL, PAGE_SHIFT
from pagecache.core.folio cimport (FOLIO_DIRTY, FOLIO_LOCKED, FOLIO_UNUSED, FOLIO_WAITERS, FOLIO_WRITEBACK,
                                   folio_address, folio_clear, folio_index, folio_mapping, folio_nr_pages, folio_order,
                                   folio_ref_add, folio_ref_freeze, folio_ref_unfreeze, folio_seq_bump, folio_set,
                                   folio_test, folio_test_clear, folio_write_begin, folio_write_end)
from pagecache.core.directory cimport (HOLDING_HELD, HOLDING_NONE, directory_unpublish, generation_begin, idle_reuse,
                                       mapping_emptied)
from pagecache.core.dirty cimport dirty_uncharge
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport folio_put_many
from pagecache.core.node_memory cimport nodes_trim
from pagecache.core.segment cimport (ALL_ON_DISK, NR_DIRTY, NR_FILE_HUGEPAGES, NR_FILE_PAGES, PRIORITY_NORMAL,
                                     READAHEAD_WASTED, Folio,
                                     Mapping, Segment, count, folio_number)
from pagecache.core.workingset cimport workingset_eviction, workingset_refault, workingset_update_node
from pagecache.core.xa_entry cimport xa_entry, xa_is_value
from pagecache.core.xa_find cimport xas_find_conflict
from pagecache.core.xa_multi cimport xas_get_order, xas_split
from pagecache.core.xa_state cimport XaState, xas_error, xas_init, xas_init_marks, xas_load, xas_store
from pagecache.core.xarray cimport xa_empty

cdef enum Mark:
    MARK_DIRTY = 0
    MARK_WRITEBACK = 1
    MARK_TOWRITE = 2


# -- folio entries -----------------------------------------------------------------------------------------------------

cdef inline xa_entry folio_entry(uint32_t frame, uint32_t order) noexcept nogil:
    return (frame << 1) | (<uint32_t>1 << order)

cdef inline uint32_t entry_order(xa_entry entry) noexcept nogil:
    return ctz32(entry)

cdef inline uint32_t entry_frame(xa_entry entry) noexcept nogil:
    return (entry & (entry - 1)) >> 1       # without the lowest bit, which is the order's


# -- life of a mapping -----------------------------------------------------------------------------------------------

cdef inline void mapping_forget_counts(Mapping* mapping) noexcept nogil:
    """Counts from zero again. No other thread has the mapping yet."""
    store_relaxed_u64(&mapping.nr_misses, 0)
    store_relaxed_u64(&mapping.missed_bytes, 0)
    store_relaxed_u64(&mapping.store_reads, 0)
    store_relaxed_u64(&mapping.store_read_bytes, 0)
    store_relaxed_u64(&mapping.readahead_pages, 0)
    store_relaxed_u64(&mapping.readahead_wasted, 0)


cdef inline void mapping_forget_shadows(Segment* seg, Mapping* mapping) noexcept nogil:
    """Empties an index that holds only shadows. xa_lock is held."""
    cdef XaState xas
    xas_init(&xas, &mapping.pages, &seg.pool, 0, 63)
    xas.update = workingset_update_node
    xas_store(&xas, 0)


cdef inline uint32_t mapping_alloc(Segment* seg) noexcept nogil:
    """Takes an unused mapping, or the one that has been idle and without pages for longest: empty index, size 0. Returns
    its number, or 0 when all are held or have pages."""
    cdef uint32_t number
    cdef Mapping* mapping
    cdef bint is_reused = False
    futex_lock(&seg.header.mapping_lock)
    number = seg.header.free_mapping
    if number != NIL:
        seg.header.free_mapping = seg.mappings[number].next_free
    elif (seg.header.nr_mappings_touched < seg.header.nr_mappings
            and (seg.header.nr_mappings_touched + 1) * <uint64_t>sizeof(Mapping)
            <= <uint64_t>load_relaxed_u32(&seg.header.nr_record_pages) << PAGE_SHIFT      # those were paid for
            and seg.header.nr_listed_mappings < hint_u32(&seg.header.idle_kept)):
        number = seg.header.nr_mappings_touched
        seg.header.nr_mappings_touched += 1
    else:
        number = idle_reuse(seg)
        is_reused = number != 0
        if number == 0:
            futex_unlock(&seg.header.mapping_lock)
            return 0
    if not is_reused:
        seg.header.nr_mappings_used += 1
        store_relaxed_u32(&seg.mappings[number].holding, HOLDING_HELD)
        generation_begin(&seg.mappings[number])
    futex_unlock(&seg.header.mapping_lock)
    mapping = &seg.mappings[number]
    if is_reused:
        futex_lock(&mapping.pages.lock)
        mapping_forget_shadows(seg, mapping)
        futex_unlock(&mapping.pages.lock)
    mapping.pages.owner = number
    mapping.pages.flags = 0
    store_relaxed_u64(&mapping.size, 0)
    store_relaxed_u32(&mapping.flags, 0)
    store_relaxed_u32(&mapping.wb_err, 0)
    store_relaxed_u64(&mapping.disk_size, ALL_ON_DISK)
    mapping.writeback_index = 0
    store_relaxed_u32(&mapping.priority, PRIORITY_NORMAL)
    store_relaxed_u32(&mapping.tenant, 0)
    mapping_forget_counts(mapping)
    store_release_u32(&mapping.in_use, 1)
    return number


cdef inline void mapping_free(Segment* seg, uint32_t number) noexcept nogil:
    """Gives an emptied mapping back, out of the directory; shadows that are left go with it."""
    cdef Mapping* mapping = &seg.mappings[number]
    pc_assert(load_relaxed_u64(&mapping.nrpages) == 0)
    directory_unpublish(seg, number)
    futex_lock(&mapping.pages.lock)
    mapping_forget_shadows(seg, mapping)
    futex_unlock(&mapping.pages.lock)
    pc_assert(xa_empty(&mapping.pages))
    nodes_trim(seg)
    store_release_u32(&mapping.in_use, 0)
    futex_lock(&seg.header.mapping_lock)
    store_relaxed_u32(&mapping.holding, HOLDING_NONE)
    mapping.next_free = seg.header.free_mapping
    seg.header.free_mapping = number
    seg.header.nr_mappings_used -= 1
    futex_unlock(&seg.header.mapping_lock)


cdef inline void mapping_set_tenant(Segment* seg, Mapping* mapping, uint32_t tenant) noexcept nogil:
    """Makes a mapping one of a tenant's, with what it has cached. tenant: number, 0 for none."""
    cdef uint64_t nrpages
    cdef uint32_t before
    futex_lock(&mapping.pages.lock)
    nrpages = load_relaxed_u64(&mapping.nrpages)
    before = load_relaxed_u32(&mapping.tenant)
    if before != 0:
        add_relaxed_u64(&seg.header.tenants[before].nr_pages, 0 - nrpages)
    if tenant != 0:
        add_relaxed_u64(&seg.header.tenants[tenant].nr_pages, nrpages)
    store_relaxed_u32(&mapping.tenant, tenant)
    futex_unlock(&mapping.pages.lock)


# -- adding ----------------------------------------------------------------------------------------------------------

cdef inline int mapping_clear_way(Segment* seg, Mapping* mapping, uint64_t index, uint32_t order,
                                  xa_entry* shadow) noexcept nogil:
    """Looks at what a new folio would cover: a folio is a conflict; a larger shadow is split, so that the uncovered
    part keeps its own. `shadow` gets the last shadow met, or 0. xa_lock is held. Returns 0, -EEXIST, -ENOMEM."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint32_t old_order
    cdef int error
    shadow[0] = 0
    xas_init(&xas, &mapping.pages, &seg.pool, index, order)
    entry = xas_find_conflict(&xas)
    while entry != 0:
        if not xa_is_value(entry):
            return -EEXIST
        shadow[0] = entry
        old_order = xas_get_order(&xas)
        if old_order > order:
            return mapping_split_shadow(seg, mapping, index, order, entry, old_order)
        entry = xas_find_conflict(&xas)
    return 0


cdef inline int mapping_split_shadow(Segment* seg, Mapping* mapping, uint64_t index, uint32_t order, xa_entry shadow,
                                     uint32_t old_order) noexcept nogil:
    cdef XaState xas
    xas_init(&xas, &mapping.pages, &seg.pool, index, order)
    xas.update = workingset_update_node
    return xas_split(&xas, shadow, old_order)


cdef inline int mapping_insert(Segment* seg, uint32_t number, Folio* folio, uint64_t index,
                               xa_entry* shadow) noexcept nogil:
    """Stores a locked, unpublished folio in the index. Returns 0, -EEXIST, -ENOMEM; then the folio is in no mapping
    again, its index kept."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef uint32_t order = folio_order(folio)
    cdef uint32_t nr = <uint32_t>1 << order
    cdef XaState xas
    cdef int error
    pc_assert(folio_test(folio, FOLIO_LOCKED) and (index & (nr - 1)) == 0)
    folio_ref_add(folio, nr)
    store_relaxed_u64(&folio.index, index)
    store_release_u32(&folio.mapping, number)
    futex_lock(&mapping.pages.lock)
    error = mapping_clear_way(seg, mapping, index, order, shadow)
    if error == 0:
        xas_init(&xas, &mapping.pages, &seg.pool, index, order)
        xas.update = workingset_update_node
        xas_store(&xas, folio_entry(folio_number(seg, folio), order))
        error = xas_error(&xas)
    if error == 0:
        store_relaxed_u64(&mapping.nrpages, load_relaxed_u64(&mapping.nrpages) + nr)
        if load_relaxed_u32(&mapping.tenant) != 0:
            add_relaxed_u64(&seg.header.tenants[load_relaxed_u32(&mapping.tenant)].nr_pages, nr)
    futex_unlock(&mapping.pages.lock)
    if error != 0:
        store_release_u32(&folio.mapping, 0)
        folio_seq_bump(folio)
        folio_put_many(seg, folio, nr)
        return error
    count(seg, NR_FILE_PAGES, nr)
    if order > 0:
        count(seg, NR_FILE_HUGEPAGES, nr)
    return 0


cdef inline int mapping_add_folio(Segment* seg, uint32_t number, Folio* folio, uint64_t index, uint32_t flags,
                                  bint writing) noexcept nogil:
    """Adds a new folio, locked and with `flags` set, and puts it on its list (filemap_add_folio).  A folio that is
    created to be written is not judged by its shadow. Returns 0, -EEXIST, -ENOMEM; the caller keeps its reference."""
    cdef xa_entry shadow = 0
    cdef int error
    folio_set(folio, FOLIO_LOCKED | flags)
    error = mapping_insert(seg, number, folio, index, &shadow)
    if error != 0:
        folio_clear(folio, FOLIO_LOCKED | FOLIO_WAITERS | flags)
        return error
    if shadow != 0 and not writing:
        workingset_refault(seg, folio, shadow)
    lru_admit(seg, folio)
    return 0


# -- removing --------------------------------------------------------------------------------------------------------

cdef inline void mapping_unaccount(Segment* seg, Mapping* mapping, Folio* folio) noexcept nogil:
    cdef uint32_t order = folio_order(folio)
    cdef int64_t nr = <int64_t>1 << order
    cdef uint64_t nrpages = load_relaxed_u64(&mapping.nrpages) - <uint64_t>nr
    store_relaxed_u64(&mapping.nrpages, nrpages)
    if nrpages == 0:
        mapping_emptied(seg, mapping)
    if load_relaxed_u32(&mapping.tenant) != 0:
        add_relaxed_u64(&seg.header.tenants[load_relaxed_u32(&mapping.tenant)].nr_pages, <uint64_t>-nr)
    count(seg, NR_FILE_PAGES, -nr)
    if order > 0:
        count(seg, NR_FILE_HUGEPAGES, -nr)
    if folio_test_clear(folio, FOLIO_DIRTY):
        count(seg, NR_DIRTY, -nr)
        dirty_uncharge(seg, <uint32_t>nr)
    if folio_test_clear(folio, FOLIO_UNUSED):
        count(seg, READAHEAD_WASTED, nr)
        add_relaxed_u64(&mapping.readahead_wasted, <uint64_t>nr)


cdef inline void mapping_remove(Segment* seg, Folio* folio, xa_entry shadow) noexcept nogil:
    """Takes a locked (or frozen) folio out of its index, leaving a shadow or nothing. xa_lock is held; the caller
    drops the page cache's references afterwards."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef XaState xas
    cdef uint32_t order = folio_order(folio)
    pc_assert(folio_test(folio, FOLIO_LOCKED) and folio_mapping(folio) != 0)
    pc_assert(not folio_test(folio, FOLIO_WRITEBACK))
    xas_init(&xas, &mapping.pages, &seg.pool, folio_index(folio), order)
    xas.update = workingset_update_node
    if shadow != 0:
        xas_load(&xas)
        xas_init_marks(&xas)
    xas_store(&xas, shadow)
    pc_assert(xas_error(&xas) == 0)
    mapping_unaccount(seg, mapping, folio)
    store_release_u32(&folio.mapping, 0)
    folio_seq_bump(folio)


cdef inline void filemap_remove_folio(Segment* seg, Folio* folio) noexcept nogil:
    """Removes a locked folio of a mapping, without a shadow, and drops the page cache's references."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    futex_lock(&mapping.pages.lock)
    mapping_remove(seg, folio, 0)
    futex_unlock(&mapping.pages.lock)
    folio_put_many(seg, folio, folio_nr_pages(folio))


cdef inline int filemap_remove_clean(Segment* seg, Folio* folio, uint32_t references, bint shadow) noexcept nogil:
    """Removes a locked folio if exactly `references` are held beside the page cache's and it is clean; all of them are
    gone then, and the caller frees the (still locked) folio. With `shadow` the eviction is remembered.
    Freezes first, tests dirty afterwards: another thread may have dirtied the folio and then dropped its reference.
    Returns 0 or -EBUSY."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t expected = folio_nr_pages(folio) + references
    futex_lock(&mapping.pages.lock)
    if not folio_ref_freeze(folio, expected):
        futex_unlock(&mapping.pages.lock)
        return -EBUSY
    if folio_test(folio, FOLIO_DIRTY | FOLIO_WRITEBACK):
        folio_ref_unfreeze(folio, expected)
        futex_unlock(&mapping.pages.lock)
        return -EBUSY
    mapping_remove(seg, folio, workingset_eviction(seg, folio) if shadow else 0)
    futex_unlock(&mapping.pages.lock)
    return 0


# -- truncating ------------------------------------------------------------------------------------------------------

cdef inline void mapping_set_size(Mapping* mapping, uint64_t size) noexcept nogil:
    """Sets i_size. A smaller one is announced to readers before any byte behind it changes."""
    cdef uint64_t old_size = load_acquire_u64(&mapping.size)
    store_release_u64(&mapping.size, size)
    if size < old_size:
        add_acq_rel_u32(&mapping.nr_truncations, 1)


cdef inline bint mapping_not_truncated_since(Mapping* mapping, uint32_t nr_truncations) noexcept nogil:
    """Whether what was copied since nr_truncations was loaded, and i_size after it, are bytes of the object."""
    fence_acquire()
    return load_relaxed_u32(&mapping.nr_truncations) == nr_truncations


cdef inline int filemap_zero_unshared(Segment* seg, Folio* folio, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Zeroes bytes of a locked folio of a mapping if only the caller and the page cache hold it: what others hold
    of never changes. Returns 0 or -EBUSY."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t expected = folio_nr_pages(folio) + 1
    futex_lock(&mapping.pages.lock)
    if not folio_ref_freeze(folio, expected):
        futex_unlock(&mapping.pages.lock)
        return -EBUSY
    folio_write_begin(folio)
    if seg.header.has_data:
        memset(folio_address(seg, folio) + offset, 0, nbytes)
    folio_write_end(folio)
    folio_ref_unfreeze(folio, expected)
    futex_unlock(&mapping.pages.lock)
    return 0


# -- replacing -------------------------------------------------------------------------------------------------------

cdef inline void filemap_replace_folio(Segment* seg, Folio* old, Folio* new) noexcept nogil:
    """Puts a locked, unpublished folio in the place of a locked one of the same order, with one store: marks and the
    dirty state go over, lookups find one or the other. The old one keeps its contents for holders of references."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(old)]
    cdef uint32_t order = folio_order(old)
    cdef uint32_t nr = <uint32_t>1 << order
    cdef XaState xas
    folio_ref_add(new, nr)
    store_relaxed_u64(&new.index, folio_index(old))
    store_relaxed_u64(&new.dirtied_at_ns, load_relaxed_u64(&old.dirtied_at_ns))
    store_release_u32(&new.mapping, folio_mapping(old))
    futex_lock(&mapping.pages.lock)
    if folio_test_clear(old, FOLIO_DIRTY):
        folio_set(new, FOLIO_DIRTY)
    xas_init(&xas, &mapping.pages, &seg.pool, folio_index(old), order)
    xas.update = workingset_update_node
    xas_store(&xas, folio_entry(folio_number(seg, new), order))
    store_release_u32(&old.mapping, 0)
    folio_seq_bump(old)
    futex_unlock(&mapping.pages.lock)
    lru_admit(seg, new)
    folio_put_many(seg, old, nr)
