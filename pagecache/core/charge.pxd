"""Charging: what is not a frame is paid for with frames, before it is touched; and how the balloon is filled.

What is about to touch new pages of an array (index nodes, records of objects) adds them to `nr_metadata` first. As far as
they are more than their allowance the balloon has to grow by so many frames: free ones, else some are evicted as for any
allocation. If none can be had the pages are not touched, and the caller fails as it does without a frame.

    charge    nr_metadata += pages (acq_rel); then frames are taken until the balloon is what is wanted, or has grown by
              what this charge needs: a shrink under way, or another thread's charge, is not this thread's to pay
    touch     after that only, and in batches, populated without a lock
    uncharge  after the memory was given back; frames that are not wanted any more are freed
What the balloon took too much is freed at the end of each step: two threads that charge at once may both fill in for the
other, and evicting gives metadata back (index nodes, descriptors of blocks) which the frames were asked for.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport add_acq_rel_u32, cas_acq_rel_u32, hint_u32, load_acquire_u32, store_release_u32
from pagecache.core.balloon cimport (balloon_add, balloon_chunk, balloon_give_excess, balloon_missing, balloon_take_free,
                                     balloon_take_unopened, bucket_pages, metadata_uncharge, pages_of)
from pagecache.core.compact cimport folio_alloc_emptied
from pagecache.core.config cimport MAX_ORDER, NIL, PAGE_SHIFT
from pagecache.core.folio cimport folio_ref_freeze
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport folio_put
from pagecache.core.mapping cimport mapping_add_folio
from pagecache.core.memory cimport memory_populate
from pagecache.core.priority cimport reclaim_batch
from pagecache.core.reclaim cimport reclaim_pages
from pagecache.core.segment cimport Folio, Mapping, Segment, folio_number
from pagecache.core.workingset cimport shadow_nodes_trim
from pagecache.core.xa_node cimport XaPool
from pagecache.core.xa_pool cimport GROUP_NODES, GROUP_PAGES, group_open, group_take_closed

cdef enum:
    CHARGE_TRIES = 16               # evictions whose frames others took, before a charge gives up
    FILL_PAGES = 512                # evicted in one step of a shrink, at most
    GROUPS_OF_PAGE = 256            # XaGroup
    NODES_SPARE = 48                # free nodes that are had ready; an insertion takes nine at most
    NODES_FEW = 10
    RECORDS_SPARE = 16
    RECORD_PAGES = 4                # had ready at once


cdef inline uint32_t balloon_take_block(Segment* seg, uint32_t nr, bint spares, bint must_return,
                                        bint* refused) noexcept nogil:
    """Evicts what lies in a block of the largest order that is not more than nr frames, and takes it. Returns its
    frames."""
    cdef uint32_t order = MAX_ORDER, frame
    cdef Folio* folio
    while order > 0 and nr < <uint32_t>1 << order:
        order -= 1
    if order == 0:
        return 0
    folio = folio_alloc_emptied(seg, order, spares)
    if folio == NULL:
        return 0
    if not folio_ref_freeze(folio, 1):      # a lookup that came late holds it for a moment
        folio_put(seg, folio)
        return 0
    frame = folio_number(seg, folio)
    store_release_u32(&folio.state, 0)
    if balloon_add(seg, frame, order, must_return):
        return <uint32_t>1 << order
    refused[0] = True
    return 0


cdef inline uint32_t balloon_fill(Segment* seg, uint32_t nr, bint must_return, bint* refused) noexcept nogil:
    """One step: takes up to nr frames: such as were never used, free ones, whole blocks of what is not in use, at last
    what leaves first by the policy. Returns how many; 0 also when others took what was evicted. No lock is held.

    must_return: takes only what the system takes the memory of; refused is set where it does not."""
    cdef uint32_t taken = balloon_take_unopened(seg, nr), batch
    if taken < nr:
        taken += balloon_take_free(seg, nr - taken, must_return, refused)
    if taken > 0 or refused[0]:
        return taken
    taken = balloon_take_block(seg, nr, True, must_return, refused)
    if taken > 0 or refused[0]:
        return taken
    batch = reclaim_batch(seg, nr if nr < FILL_PAGES else FILL_PAGES)
    if reclaim_pages(seg, batch) > 0:
        return balloon_take_free(seg, nr, must_return, refused)
    return balloon_take_block(seg, nr, False, must_return, refused)


cdef inline bint metadata_charge(Segment* seg, uint32_t nr_pages) noexcept nogil:
    """Pays for pages that will be touched. Returns whether they may be. No lock is held."""
    cdef uint32_t missing, needed, taken, nr_filled = 0, tries = 0
    cdef uint32_t chunk = <uint32_t>1 << balloon_chunk(seg)
    cdef bint refused = False
    add_acq_rel_u32(&seg.header.nr_metadata, nr_pages)
    needed = balloon_missing(seg)
    needed = needed if needed < nr_pages else nr_pages
    missing = needed
    while needed > 0 and missing > 0:
        taken = balloon_fill(seg, chunk if tries == 0 and chunk > needed else needed, False, &refused)
        if taken == 0:
            tries += 1
            if tries == CHARGE_TRIES:
                metadata_uncharge(seg, nr_pages)
                return False
        nr_filled += taken
        needed = needed - taken if needed > taken else 0
        missing = balloon_missing(seg)
    if nr_filled > 0:
        balloon_give_excess(seg)
    return True


# -- index nodes -------------------------------------------------------------------------------------------------------

cdef inline bint nodes_refill(Segment* seg) noexcept nogil:
    """Has more free nodes ready: those of shadows beyond their share, else a group more. Returns whether it could."""
    cdef XaPool* pool = &seg.pool
    cdef uint32_t number
    cdef bint is_new = False
    shadow_nodes_trim(seg)
    if hint_u32(&pool.header.nr_spare) >= <uint32_t>NODES_SPARE:
        return True
    if not metadata_charge(seg, GROUP_PAGES + 1):
        return False
    futex_lock(&pool.header.lock)
    number = group_take_closed(pool, &is_new)
    futex_unlock(&pool.header.lock)
    if number == NIL:
        metadata_uncharge(seg, GROUP_PAGES + 1)
        return False
    if not is_new or number % GROUPS_OF_PAGE != 0:      # the group itself lies in a page that is paid for
        metadata_uncharge(seg, 1)
    memory_populate(&pool.nodes[number * GROUP_NODES], <size_t>GROUP_PAGES << PAGE_SHIFT)
    memory_populate(&pool.groups[number // GROUPS_OF_PAGE * GROUPS_OF_PAGE], <size_t>1 << PAGE_SHIFT)
    futex_lock(&pool.header.lock)
    group_open(pool, number)
    futex_unlock(&pool.header.lock)
    return True


cdef inline bint nodes_ensure(Segment* seg) noexcept nogil:
    """Sees to it that a folio can be added to an index. Returns whether it can. No lock is held."""
    return (hint_u32(&seg.pool.header.nr_spare) >= <uint32_t>NODES_SPARE or nodes_refill(seg)
            or hint_u32(&seg.pool.header.nr_spare) >= <uint32_t>NODES_FEW)


cdef inline int mapping_add_ensured(Segment* seg, uint32_t number, Folio* folio, uint64_t index, uint32_t flags,
                                    bint writing) noexcept nogil:
    """`mapping_add_folio`, again with more nodes if others took those that were ready."""
    cdef int error, tries
    for tries in range(CHARGE_TRIES):
        error = mapping_add_folio(seg, number, folio, index, flags, writing)
        if error != -ENOMEM or hint_u32(&seg.pool.header.nr_spare) >= <uint32_t>NODES_SPARE or not nodes_refill(seg):
            break
    return error


# -- records of objects ------------------------------------------------------------------------------------------------

cdef inline bint records_ensure(Segment* seg) noexcept nogil:
    """Sees to it that a record may be taken (`mapping_alloc`). Returns whether it may. No lock is held."""
    cdef uint32_t had = load_acquire_u32(&seg.header.nr_record_pages), touched, limit, nr
    cdef uint32_t first, nr_beside
    touched = hint_u32(&seg.header.nr_mappings_touched)
    limit = touched + RECORDS_SPARE if touched + RECORDS_SPARE < seg.header.nr_mappings else seg.header.nr_mappings
    if pages_of(<uint64_t>limit * sizeof(Mapping)) <= had:
        return True
    limit = pages_of(<uint64_t>seg.header.nr_mappings * sizeof(Mapping))
    nr = RECORD_PAGES if limit - had > <uint32_t>RECORD_PAGES else limit - had
    first = bucket_pages(had)
    nr_beside = bucket_pages(had + nr) - first
    if not metadata_charge(seg, nr + nr_beside):
        return hint_u32(&seg.header.free_mapping) != NIL or hint_u32(&seg.header.idle_first) != 0
    memory_populate(<char*>seg.mappings + (<uint64_t>had << PAGE_SHIFT), <size_t>nr << PAGE_SHIFT)
    memory_populate(<char*>seg.buckets + (<uint64_t>first << PAGE_SHIFT), <size_t>nr_beside << PAGE_SHIFT)
    if not cas_acq_rel_u32(&seg.header.nr_record_pages, &had, had + nr):
        metadata_uncharge(seg, nr + nr_beside)      # another thread was faster
    return True
