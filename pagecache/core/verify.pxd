"""Proof of every invariant, for a segment at rest: what every randomised test ends with.

    * each frame is in exactly one place: a free block, a folio, or inside one of them;
    * free lists, lists of the eviction policy, indexes and counters agree;
    * records of objects are found by their keys, and counted by what holds them;
    * the balloon holds what the budget and the charged metadata want;
    * marks and flags agree; no lock is held, no thread waits; references are the page cache's and the pins.

A finding names the broken invariant by number (the boundary has the words), the place, and the two values.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from pagecache.core.atomic cimport load_relaxed_u32, load_relaxed_u64
from pagecache.core.balloon cimport (FOLIO_BALLOON, balloon_missing, balloon_present, balloon_wanted, descriptor_pages,
                                     fixed_pages, node_pages, pages_of, records_pages)
from pagecache.core.block cimport BLOCK_DESCRIBED, block_is_out
from pagecache.core.buddy cimport FOLIO_FREE
from pagecache.core.config cimport BLOCK_FRAMES, MAX_ORDER, NIL, NR_ORDERS, PAGE_SHIFT, PAGE_SIZE
from pagecache.core.directory cimport HOLDING_IDLE, HOLDING_LISTED, HOLDING_NONE, bucket_of
from pagecache.core.folio cimport (FOLIO_ALLOCATED, FOLIO_DIRTY, FOLIO_GRANTED, FOLIO_HANDOFF, FOLIO_LOCKED, FOLIO_LRU,
                                   FOLIO_UPTODATE, FOLIO_WRITEBACK, folio_address, folio_index, folio_mapping,
                                   folio_nr_pages, folio_order, folio_state)
from pagecache.core.lock cimport futex_is_locked
from pagecache.core.lru cimport folio_lru_list
from pagecache.core.mapping cimport MARK_DIRTY, MARK_WRITEBACK, entry_frame, entry_order
from pagecache.core.segment cimport (NR_DIRTY, NR_FILE_PAGES, NR_LRU_LISTS, NR_TENANTS, NR_WRITEBACK, Folio, LruHead,
                                     Mapping, Segment, counted, segment_nr_blocks)
from pagecache.core.stamp cimport own_write_active
from pagecache.core.xa_check cimport xa_check
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer
from pagecache.core.xa_find cimport xas_find
from pagecache.core.xa_multi cimport xas_get_order
from pagecache.core.xa_node cimport XaPoolHeader
from pagecache.core.xa_pool cimport GROUP_NODES
from pagecache.core.xa_state cimport XaState, xas_get_mark, xas_init
from pagecache.core.xa_walk cimport xa_load

cdef enum:
    BAD_FREE_BLOCK = 1
    BAD_FREE_COUNT
    BAD_FRAME
    BAD_TAIL
    BAD_LRU_LINK
    BAD_LRU_FLAGS
    BAD_LRU_COUNT
    BAD_INDEX
    BAD_ENTRY
    BAD_NRPAGES
    BAD_MARK
    BAD_LOCK
    BAD_REFCOUNT
    BAD_COUNTER
    BAD_NODES
    BAD_MEMBERSHIP
    BAD_SEQ
    BAD_CHARGE
    BAD_BEHIND_END
    BAD_TENANT
    BAD_BALLOON
    BAD_METADATA
    BAD_BUDGET
    BAD_DIRECTORY
    BAD_IDLE_LIST
    BAD_HOLDING

ctypedef struct Finding:
    int what                        # 0: nothing is wrong
    uint64_t where                  # frame, mapping or list
    int64_t expected
    int64_t found


cdef inline bint fail(Finding* out, int what, uint64_t where, int64_t expected, int64_t found) noexcept nogil:
    out.what = what
    out.where = where
    out.expected = expected
    out.found = found
    return False


cdef inline bint verify_free_lists(Segment* seg, Finding* out) noexcept nogil:
    cdef uint32_t order, number, previous
    cdef uint64_t total = 0, steps
    cdef Folio* head
    for order in range(NR_ORDERS):
        previous = NIL
        number = seg.header.free_first[order]
        steps = 0
        while number != NIL:
            if number >= seg.nr_frames or steps > seg.nr_frames:
                return fail(out, BAD_FREE_BLOCK, number, order, -1)
            head = &seg.folios[number]
            if folio_state(head) != (<uint32_t>FOLIO_FREE | (order << 28)) or head.lru_prev != previous:
                return fail(out, BAD_FREE_BLOCK, number, order, folio_state(head))
            total += <uint64_t>1 << order
            previous = number
            number = head.lru_next
            steps += 1
    total += load_relaxed_u32(&seg.header.open_limit) - load_relaxed_u32(&seg.header.nr_opened)
    if total != load_relaxed_u32(&seg.header.nr_free):
        return fail(out, BAD_FREE_COUNT, 0, total, load_relaxed_u32(&seg.header.nr_free))
    return True


cdef inline uint32_t metadata_pages(Segment* seg) noexcept nogil:
    """Pages of everything but frames that are in memory, array by array."""
    return fixed_pages(seg) + descriptor_pages(seg) + node_pages(seg) + records_pages(seg)


cdef inline uint32_t blocks_out(Segment* seg) noexcept nogil:
    cdef uint32_t i, seq, nr = 0
    for i in range(segment_nr_blocks(load_relaxed_u32(&seg.header.nr_opened))):
        seq = load_relaxed_u32(&seg.blocks[i].seq)
        nr += 1 if seq != 0 and not seq & <uint32_t>BLOCK_DESCRIBED else 0
    return nr


cdef inline bint verify_balloon(Segment* seg, Finding* out) noexcept nogil:
    """Its lists, its size, and that it is large enough for what is charged; that what was touched is charged."""
    cdef uint32_t order, number, previous
    cdef uint64_t total = 0, steps
    cdef Folio* head
    for order in range(MAX_ORDER):
        previous = NIL
        number = seg.header.balloon_first[order]
        steps = 0
        while number != NIL:
            if number >= load_relaxed_u32(&seg.header.nr_opened) or steps > seg.nr_frames:
                return fail(out, BAD_BALLOON, number, order, -1)
            head = &seg.folios[number]
            if folio_state(head) != (<uint32_t>FOLIO_BALLOON | (order << 28)) or head.lru_prev != previous:
                return fail(out, BAD_BALLOON, number, order, folio_state(head))
            total += <uint64_t>1 << order
            previous = number
            number = head.lru_next
            steps += 1
    number = seg.header.balloon_first[<int>MAX_ORDER]
    steps = 0
    while number != NIL:
        if number >= load_relaxed_u32(&seg.header.nr_opened) or steps > seg.nr_frames or not block_is_out(seg, number):
            return fail(out, BAD_BALLOON, number, <int>MAX_ORDER, -1)
        total += BLOCK_FRAMES
        number = seg.blocks[number // BLOCK_FRAMES].next
        steps += 1
    if total != load_relaxed_u32(&seg.header.nr_balloon):
        return fail(out, BAD_BALLOON, 0, total, load_relaxed_u32(&seg.header.nr_balloon))
    if blocks_out(seg) != load_relaxed_u32(&seg.header.nr_out):
        return fail(out, BAD_BALLOON, 2, blocks_out(seg), load_relaxed_u32(&seg.header.nr_out))
    total = pages_of(<uint64_t>seg.header.nr_mappings_touched * sizeof(Mapping))
    if seg.header.nr_mappings_touched > 1 and total > load_relaxed_u32(&seg.header.nr_record_pages):
        return fail(out, BAD_METADATA, 1, <int64_t>total, load_relaxed_u32(&seg.header.nr_record_pages))
    if metadata_pages(seg) != load_relaxed_u32(&seg.header.nr_metadata):
        return fail(out, BAD_METADATA, 0, metadata_pages(seg), load_relaxed_u32(&seg.header.nr_metadata))
    if balloon_missing(seg) != 0:
        return fail(out, BAD_BUDGET, 0, balloon_wanted(seg), balloon_present(seg))
    return True


cdef inline bint verify_folio(Segment* seg, Folio* folio, uint32_t number, Finding* out) noexcept nogil:
    """One allocated folio at rest."""
    cdef uint32_t state = folio_state(folio)
    cdef int64_t expected = load_relaxed_u32(&folio.nr_pins)
    if state & (FOLIO_LOCKED | FOLIO_HANDOFF | FOLIO_GRANTED):
        return fail(out, BAD_LOCK, number, 0, state)
    if load_relaxed_u32(&folio.seq) & 1:
        return fail(out, BAD_SEQ, number, 0, load_relaxed_u32(&folio.seq))
    if folio_mapping(folio) != 0:
        expected += folio_nr_pages(folio)
        if not state & FOLIO_LRU:
            return fail(out, BAD_LRU_FLAGS, number, 1, 0)
    if load_relaxed_u32(&folio.refcount) != expected:
        return fail(out, BAD_REFCOUNT, number, expected, load_relaxed_u32(&folio.refcount))
    return True


cdef inline bint verify_frames(Segment* seg, Finding* out) noexcept nogil:
    """Walks all frames from the first: each block head, then the descriptors inside the block."""
    cdef uint32_t number = 0, order, i
    cdef uint32_t nr_opened = load_relaxed_u32(&seg.header.nr_opened)
    cdef uint64_t nr_free = load_relaxed_u32(&seg.header.open_limit) - nr_opened, nr_cached = 0, nr_balloon = 0
    cdef Folio* folio
    while number < nr_opened:
        if block_is_out(seg, number):
            nr_balloon += BLOCK_FRAMES
            number += BLOCK_FRAMES
            continue
        folio = &seg.folios[number]
        order = folio_order(folio)
        if number & ((<uint32_t>1 << order) - 1) or number + (<uint32_t>1 << order) > nr_opened:
            return fail(out, BAD_FRAME, number, 0, folio_state(folio))
        if folio_state(folio) & FOLIO_FREE:
            nr_free += <uint64_t>1 << order
        elif folio_state(folio) & FOLIO_BALLOON:
            nr_balloon += <uint64_t>1 << order
        elif not folio_state(folio) & FOLIO_ALLOCATED:
            return fail(out, BAD_FRAME, number, FOLIO_ALLOCATED, folio_state(folio))
        elif not verify_folio(seg, folio, number, out):
            return False
        elif folio_mapping(folio) != 0:
            nr_cached += <uint64_t>1 << order
        for i in range(1, <uint32_t>1 << order):
            if (load_relaxed_u32(&folio[i].state) | load_relaxed_u32(&folio[i].refcount)
                    | load_relaxed_u32(&folio[i].mapping)) != 0:
                return fail(out, BAD_TAIL, number + i, 0, load_relaxed_u32(&folio[i].state))
        number += <uint32_t>1 << order
    if nr_free != load_relaxed_u32(&seg.header.nr_free):
        return fail(out, BAD_FREE_COUNT, 1, nr_free, load_relaxed_u32(&seg.header.nr_free))
    if nr_balloon != load_relaxed_u32(&seg.header.nr_balloon):
        return fail(out, BAD_BALLOON, 1, nr_balloon, load_relaxed_u32(&seg.header.nr_balloon))
    if <int64_t>nr_cached != counted(seg, <int>NR_FILE_PAGES):
        return fail(out, BAD_COUNTER, <int>NR_FILE_PAGES, nr_cached, counted(seg, <int>NR_FILE_PAGES))
    return True


cdef inline bint verify_lru(Segment* seg, Finding* out) noexcept nogil:
    cdef int which
    cdef uint32_t number, previous
    cdef uint64_t pages, steps
    cdef LruHead* head
    cdef Folio* folio
    for which in range(NR_LRU_LISTS):
        head = &seg.header.lru[which]
        previous = NIL
        number = head.first
        pages = 0
        steps = 0
        while number != NIL:
            if number >= seg.nr_frames or steps > seg.nr_frames:
                return fail(out, BAD_LRU_LINK, number, which, -1)
            folio = &seg.folios[number]
            if folio.lru_prev != previous:
                return fail(out, BAD_LRU_LINK, number, previous, folio.lru_prev)
            if not folio_state(folio) & FOLIO_LRU or folio_lru_list(folio) != which:
                return fail(out, BAD_LRU_FLAGS, number, which, folio_state(folio))
            pages += folio_nr_pages(folio)
            previous = number
            number = folio.lru_next
            steps += 1
        if head.last != previous:
            return fail(out, BAD_LRU_LINK, previous, previous, head.last)
        if head.nr_pages != pages:
            return fail(out, BAD_LRU_COUNT, which, pages, head.nr_pages)
    return True


cdef inline bint verify_entry(Segment* seg, uint32_t mapping, XaState* xas, xa_entry entry, Finding* out) noexcept nogil:
    """One folio entry against its descriptor."""
    cdef uint32_t frame = entry_frame(entry)
    cdef uint32_t order = entry_order(entry)
    cdef Folio* folio
    if frame >= seg.nr_frames:
        return fail(out, BAD_ENTRY, frame, mapping, entry)
    folio = &seg.folios[frame]
    if folio_mapping(folio) != mapping or folio_order(folio) != order or xas_get_order(xas) != order:
        return fail(out, BAD_ENTRY, frame, mapping, folio_mapping(folio))
    if folio_index(folio) != (xas.index & ~((<uint64_t>1 << order) - 1)):
        return fail(out, BAD_ENTRY, frame, <int64_t>xas.index, <int64_t>folio_index(folio))
    if folio_state(folio) & FOLIO_DIRTY and not xas_get_mark(xas, MARK_DIRTY):
        return fail(out, BAD_MARK, frame, MARK_DIRTY, 0)
    if ((folio_state(folio) & FOLIO_WRITEBACK) != 0) != xas_get_mark(xas, MARK_WRITEBACK):
        return fail(out, BAD_MARK, frame, MARK_WRITEBACK, xas_get_mark(xas, MARK_WRITEBACK))
    return True


cdef inline bint verify_behind_end(Segment* seg, uint32_t number, Finding* out) noexcept nogil:
    """What the folio of the last, partial page holds behind the end is zeros: that is what an extension shows."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef uint64_t size = load_relaxed_u64(&mapping.size)
    cdef xa_entry entry = xa_load(&mapping.pages, &seg.pool, size >> PAGE_SHIFT)
    cdef Folio* folio
    cdef uint64_t at, end
    if not seg.header.has_data or not size & (PAGE_SIZE - 1) or not xa_is_pointer(entry):
        return True
    folio = &seg.folios[entry_frame(entry)]
    if not folio_state(folio) & FOLIO_UPTODATE:
        return True
    at = size - (folio_index(folio) << PAGE_SHIFT)
    end = <uint64_t>folio_nr_pages(folio) << PAGE_SHIFT
    while at < end:
        if folio_address(seg, folio)[at] != 0:
            return fail(out, BAD_BEHIND_END, number, <int64_t>size, <int64_t>((folio_index(folio) << PAGE_SHIFT) + at))
        at += 1
    return True


cdef inline bint verify_mapping(Segment* seg, uint32_t number, uint64_t* nr_nodes, uint64_t* nr_pages,
                                int64_t* nr_dirty, int64_t* nr_writeback, int64_t* nr_charged,
                                Finding* out) noexcept nogil:
    cdef Mapping* mapping = &seg.mappings[number]
    cdef XaState xas
    cdef xa_entry entry
    cdef uint64_t pages = 0, nodes = 0
    cdef int64_t bad
    if futex_is_locked(&mapping.pages.lock) or load_relaxed_u32(&mapping.invalidate_lock.word) != 0:
        return fail(out, BAD_LOCK, number, 0, load_relaxed_u32(&mapping.invalidate_lock.word))
    if load_relaxed_u32(&mapping.inode_lock.word) != 0 or own_write_active(mapping):
        return fail(out, BAD_LOCK, number, 0, load_relaxed_u32(&mapping.own_writes))
    if not verify_behind_end(seg, number, out):
        return False
    bad = xa_check(&mapping.pages, &seg.pool, &nodes)
    if bad != 0:
        return fail(out, BAD_INDEX, number, 0, bad)
    nr_nodes[0] += nodes
    xas_init(&xas, &mapping.pages, &seg.pool, 0, 0)
    entry = xas_find(&xas, <uint64_t>-1)
    while entry != 0:
        if xa_is_pointer(entry):
            if not verify_entry(seg, number, &xas, entry, out):
                return False
            pages += <uint64_t>1 << entry_order(entry)
            if folio_state(&seg.folios[entry_frame(entry)]) & FOLIO_DIRTY:
                nr_dirty[0] += <int64_t>1 << entry_order(entry)
            if folio_state(&seg.folios[entry_frame(entry)]) & FOLIO_WRITEBACK:
                nr_writeback[0] += <int64_t>1 << entry_order(entry)
            if folio_state(&seg.folios[entry_frame(entry)]) & (FOLIO_DIRTY | FOLIO_WRITEBACK):
                nr_charged[0] += <int64_t>1 << entry_order(entry)
        entry = xas_find(&xas, <uint64_t>-1)
    if pages != load_relaxed_u64(&mapping.nrpages):
        return fail(out, BAD_NRPAGES, number, pages, load_relaxed_u64(&mapping.nrpages))
    nr_pages[0] += pages
    return True


cdef inline bint verify_tenants(Segment* seg, Finding* out) noexcept nogil:
    """What is counted for a tenant is what its mappings have."""
    cdef uint64_t[64] pages
    cdef uint32_t number
    for number in range(NR_TENANTS):
        pages[number] = 0
    for number in range(1, seg.header.nr_mappings_touched):
        if load_relaxed_u32(&seg.mappings[number].in_use) != 0:
            pages[load_relaxed_u32(&seg.mappings[number].tenant)] += load_relaxed_u64(&seg.mappings[number].nrpages)
    for number in range(1, NR_TENANTS):
        if pages[number] != load_relaxed_u64(&seg.header.tenants[number].nr_pages):
            return fail(out, BAD_TENANT, number, <int64_t>pages[number],
                        <int64_t>load_relaxed_u64(&seg.header.tenants[number].nr_pages))
    return True


cdef inline bint verify_groups(Segment* seg, Finding* out) noexcept nogil:
    """Free nodes are counted, in their groups and all together; each group is on the list that they say."""
    cdef XaPoolHeader* header = &seg.pool.header[0]
    cdef uint32_t number = header.partial_first, nr_free = 0, nr_partial = 0, nr_empty = 0, nr_away = 0, previous = NIL
    while number != NIL and nr_partial <= header.nr_groups:
        if seg.pool.groups[number].prev != previous or not 0 < seg.pool.groups[number].nr_free < <uint32_t>GROUP_NODES:
            return fail(out, BAD_NODES, number, 1, seg.pool.groups[number].nr_free)
        nr_free += seg.pool.groups[number].nr_free
        nr_partial += 1
        previous = number
        number = seg.pool.groups[number].next
    number = header.empty_first
    while number != NIL and nr_empty <= header.nr_groups:
        nr_free += seg.pool.groups[number].nr_free
        nr_empty += 1
        number = seg.pool.groups[number].next
    number = header.away_first
    while number != NIL and nr_away <= header.nr_groups:
        nr_away += 1
        number = seg.pool.groups[number].next
    if nr_free != header.nr_spare or nr_empty != header.nr_empty or nr_away != header.nr_away:
        return fail(out, BAD_NODES, NIL, nr_free, header.nr_spare)
    if (header.nr_groups - nr_away) * GROUP_NODES != header.nr_used + header.nr_spare:
        return fail(out, BAD_NODES, NIL, (header.nr_groups - nr_away) * GROUP_NODES, header.nr_used + header.nr_spare)
    return True


cdef inline bint verify_idle_list(Segment* seg, Finding* out) noexcept nogil:
    """What may be reused is on the list, once, and without pages."""
    cdef uint32_t number = seg.header.idle_first, previous = 0, nr = 0
    while number != 0:
        if (number >= seg.header.nr_mappings_touched or nr > seg.header.nr_listed_mappings
                or load_relaxed_u32(&seg.mappings[number].holding) != HOLDING_LISTED
                or load_relaxed_u64(&seg.mappings[number].nrpages) != 0 or seg.mappings[number].idle_prev != previous):
            return fail(out, BAD_IDLE_LIST, number, previous, load_relaxed_u32(&seg.mappings[number].holding))
        previous = number
        number = seg.mappings[number].idle_next
        nr += 1
    if nr != seg.header.nr_listed_mappings or seg.header.idle_last != previous:
        return fail(out, BAD_IDLE_LIST, previous, seg.header.nr_listed_mappings, nr)
    return True


cdef inline bint verify_directory(Segment* seg, Finding* out) noexcept nogil:
    """Each record of the directory is in the bucket of its hash, once; who holds it says why it is there."""
    cdef uint32_t bucket, number, nr_buckets = load_relaxed_u32(&seg.header.nr_buckets)
    cdef uint32_t nr = 0, nr_even = 0, nr_idle = 0, holding
    for bucket in range(nr_buckets):
        number = load_relaxed_u32(&seg.buckets[bucket])
        while number != 0:
            nr += 1
            if (number >= seg.header.nr_mappings_touched or nr > seg.header.nr_known
                    or load_relaxed_u32(&seg.mappings[number].generation) & 1
                    or bucket_of(load_relaxed_u64(&seg.mappings[number].key_hash[0]), nr_buckets) != bucket):
                return fail(out, BAD_DIRECTORY, number, bucket, nr)
            number = load_relaxed_u32(&seg.mappings[number].hash_next)
    for number in range(1, seg.header.nr_mappings_touched):
        holding = load_relaxed_u32(&seg.mappings[number].holding)
        nr_even += not load_relaxed_u32(&seg.mappings[number].generation) & 1
        nr_idle += holding >= <uint32_t>HOLDING_IDLE
        if ((holding == HOLDING_NONE) != (load_relaxed_u32(&seg.mappings[number].in_use) == 0)
                or (holding == HOLDING_IDLE and load_relaxed_u64(&seg.mappings[number].nrpages) == 0)
                or (holding >= <uint32_t>HOLDING_IDLE and load_relaxed_u32(&seg.mappings[number].generation) & 1)):
            return fail(out, BAD_HOLDING, number, load_relaxed_u32(&seg.mappings[number].in_use), holding)
    if nr != seg.header.nr_known or nr_even != nr:
        return fail(out, BAD_DIRECTORY, 0, seg.header.nr_known, nr if nr != seg.header.nr_known else nr_even)
    if nr_idle != seg.header.nr_idle_mappings:
        return fail(out, BAD_HOLDING, 0, seg.header.nr_idle_mappings, nr_idle)
    return verify_idle_list(seg, out)


cdef inline bint verify_mappings(Segment* seg, Finding* out) noexcept nogil:
    cdef uint64_t nr_nodes = 0, nr_pages = 0
    cdef int64_t nr_dirty = 0, nr_writeback = 0, nr_charged = 0
    cdef uint32_t number
    for number in range(1, seg.header.nr_mappings_touched):
        if load_relaxed_u32(&seg.mappings[number].in_use) == 0:
            continue
        if not verify_mapping(seg, number, &nr_nodes, &nr_pages, &nr_dirty, &nr_writeback, &nr_charged, out):
            return False
    if not verify_tenants(seg, out) or not verify_directory(seg, out):
        return False
    if <int64_t>nr_pages != counted(seg, <int>NR_FILE_PAGES):
        return fail(out, BAD_MEMBERSHIP, 0, counted(seg, <int>NR_FILE_PAGES), nr_pages)
    if nr_dirty != counted(seg, <int>NR_DIRTY):
        return fail(out, BAD_COUNTER, <int>NR_DIRTY, nr_dirty, counted(seg, <int>NR_DIRTY))
    if nr_writeback != counted(seg, <int>NR_WRITEBACK):
        return fail(out, BAD_COUNTER, <int>NR_WRITEBACK, nr_writeback, counted(seg, <int>NR_WRITEBACK))
    if nr_charged != load_relaxed_u32(&seg.header.nr_dirty_charged):
        return fail(out, BAD_CHARGE, 0, nr_charged, load_relaxed_u32(&seg.header.nr_dirty_charged))
    if not verify_groups(seg, out):
        return False
    if nr_nodes != seg.pool.header.nr_used:
        return fail(out, BAD_NODES, 0, nr_nodes, seg.pool.header.nr_used)
    return True


cdef inline bint segment_verify(Segment* seg, Finding* out) noexcept nogil:
    """Checks all of it; the background reclaimer is kept out by the list lock while lists and frames are walked."""
    cdef bint good
    out.what = 0
    out.where = 0
    out.expected = 0
    out.found = 0
    if (futex_is_locked(&seg.header.buddy_lock) or futex_is_locked(&seg.pool.header.lock)
            or futex_is_locked(&seg.header.lru_lock) or futex_is_locked(&seg.header.mapping_lock)):
        return fail(out, BAD_LOCK, 0, 0, 1)
    good = verify_free_lists(seg, out) and verify_balloon(seg, out) and verify_lru(seg, out)
    return good and verify_frames(seg, out) and verify_mappings(seg, out)
