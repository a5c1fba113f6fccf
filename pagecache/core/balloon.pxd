"""The balloon: frames that may not be used, because their memory belongs to the system or to metadata.

The budget is a number of pages (`Header.budget`). The segment has frames and descriptors for the largest budget that
there may ever be, and metadata beside them: descriptors, index nodes, records of objects. What is resident of all that
together stays within the budget and 1.8 %:

    wanted  = frames beyond the budget + touched pages of metadata beyond their allowance (1.8 % of the budget)
    present = frames that may not be opened + frames in the balloon's lists

and present >= wanted whenever metadata are about to be touched (charge.pxd).

    opened      frames [0, nr_opened): have been in the free lists; their descriptors were populated before
    free        frames [nr_opened, open_limit): count as free; opened block by block when the lists have nothing that fits
    out         frames [open_limit, nr_frames): in the balloon at no cost, as nothing of them was ever touched
    ballooned   BALLOON | order in the descriptor of the head of some frames, refcount and mapping 0; linked by order,
                merged with their buddies; 512 frames are a block that is out: without descriptors (block.pxd)

    free -> ballooned   taken from the free lists, as by an allocation; the memory is given back to the system without a
                        lock; linked under buddy_lock
    ballooned -> free   unlinked and merged with free buddies under buddy_lock; the memory comes when it is touched
A reader without a reference that copies from such a frame meanwhile reads zeros: `seq` has changed before the frame
could be taken, so it throws the copy away.

Benefits: one mechanism for charging and for resizing; nothing on the hit path; whole huge pages go first.
Costs: a hole within a huge page splits it; such blocks stay split until the balloon is empty. What is charged is rounded
up to a block (`balloon_chunk`), so that huge pages stay whole: 0.2 % of the budget at most.

The floor: a cache of less than about 80 MiB has more metadata than 1.8 %: header, probes, descriptors and FLOOR_PAGES are
always allowed, so that caches of 1, 2, 3 frames keep them all. Descriptors come and go by blocks, so those of the block
that the last frame lies in are allowed as a whole: else a cache that was large could not pay for its first frame.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport (add_acq_rel_u32, hint_u32, load_acquire_u32, load_relaxed_u32, pc_u32,
                                    store_relaxed_u32, store_release_u32, sub_acq_rel_u32)
from pagecache.core.block cimport (BLOCK_DESCRIBED, BLOCK_PAGES, FIRST_SEQ, block_advise_small, block_enter, block_leave,
                                   descriptors_begin, descriptors_populate, frames_give_back)
from pagecache.core.buddy cimport (FOLIO_ORDER_SHIFT, buddy_alloc, buddy_free, buddy_merge, buddy_open, memory_event)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport BLOCK_FRAMES, FRAME_ALIGNMENT, MAX_ORDER, NIL, PAGE_SHIFT, PAGE_SIZE
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.memory cimport memory_advise_huge, memory_populate
from pagecache.core.segment cimport (POLICY_ADAPTIVE, Adaptive, Block, Folio, Header, Mapping, Segment, segment_budget,
                                     segment_nr_blocks)
from pagecache.core.xa_node cimport XaGroup
from pagecache.core.xa_pool cimport GROUP_PAGES

cdef enum:
    FOLIO_BALLOON = 1 << 22         # head of a block in the balloon; beside the order the only bit set then
    FLOOR_PAGES = 38                # of metadata that every cache may have: five groups of index nodes, and 48 records
    CHUNK_PART = 512                # of the budget: what is charged at once


# -- how much is wanted ------------------------------------------------------------------------------------------------

cdef inline uint32_t pages_of(uint64_t nbytes) noexcept nogil:
    return <uint32_t>((nbytes + PAGE_SIZE - 1) >> PAGE_SHIFT)


cdef inline uint32_t bucket_pages(uint32_t nr_record_pages) noexcept nogil:
    """Pages of the directory's table that so many pages of records need: a bucket a record."""
    return pages_of(<uint64_t>nr_record_pages * (PAGE_SIZE // sizeof(Mapping)) * sizeof(pc_u32))


cdef inline uint32_t records_pages(Segment* seg) noexcept nogil:
    """Pages of records, and of the directory's table, that are charged."""
    cdef uint32_t nr = load_relaxed_u32(&seg.header.nr_record_pages)
    return nr + bucket_pages(nr)


cdef inline uint32_t fixed_pages(Segment* seg) noexcept nogil:
    """Pages of what every cache has: the header, the blocks, and the probes of the adaptive policy."""
    cdef uint32_t nr = pages_of(sizeof(Header)) + pages_of(segment_nr_blocks(seg.nr_frames) * sizeof(Block))
    return nr + pages_of(sizeof(Adaptive)) if seg.header.policy == <uint32_t>POLICY_ADAPTIVE else nr


cdef inline uint64_t descriptor_bytes(Segment* seg) noexcept nogil:
    """Bytes of descriptors that are in memory, without the rest of the last page."""
    cdef uint64_t nr_out = <uint64_t>load_relaxed_u32(&seg.header.nr_out) * BLOCK_FRAMES
    return (load_relaxed_u32(&seg.header.nr_opened) - nr_out) * sizeof(Folio)


cdef inline uint32_t descriptor_pages(Segment* seg) noexcept nogil:
    """Pages of descriptors that are in memory."""
    return (pages_of(<uint64_t>load_relaxed_u32(&seg.header.nr_opened) * sizeof(Folio))
            - load_relaxed_u32(&seg.header.nr_out) * BLOCK_PAGES)


cdef inline uint32_t node_pages(Segment* seg) noexcept nogil:
    """Pages of index nodes, and of what is known of their groups, that are in memory."""
    cdef uint32_t nr_groups = hint_u32(&seg.pool.header.nr_groups)
    return (nr_groups - hint_u32(&seg.pool.header.nr_away)) * GROUP_PAGES + pages_of(nr_groups * sizeof(XaGroup))


cdef inline uint32_t metadata_allowance(Segment* seg) noexcept nogil:
    """Pages of metadata that cost no frame."""
    cdef uint32_t budget = segment_budget(seg)
    cdef uint32_t part = <uint32_t>(<uint64_t>budget * 18 // 1000)
    cdef uint32_t described = (budget + BLOCK_FRAMES - 1) & ~<uint32_t>(BLOCK_FRAMES - 1), floor
    described = described if described < seg.nr_frames else seg.nr_frames
    floor = fixed_pages(seg) + pages_of(<uint64_t>described * sizeof(Folio)) + FLOOR_PAGES
    return part if part > floor else floor


cdef inline uint32_t balloon_wanted(Segment* seg) noexcept nogil:
    """Frames that must not be used, for the budget and the metadata that there are."""
    cdef uint32_t nr = load_acquire_u32(&seg.header.nr_metadata), allowance = metadata_allowance(seg)
    cdef uint32_t wanted = seg.nr_frames - segment_budget(seg) + (nr - allowance if nr > allowance else 0)
    return wanted if wanted < seg.nr_frames else seg.nr_frames


cdef inline uint32_t balloon_present(Segment* seg) noexcept nogil:
    return seg.nr_frames - load_acquire_u32(&seg.header.open_limit) + load_acquire_u32(&seg.header.nr_balloon)


cdef inline uint32_t balloon_missing(Segment* seg) noexcept nogil:
    cdef uint32_t wanted = balloon_wanted(seg), present = balloon_present(seg)
    return wanted - present if wanted > present else 0


cdef inline uint32_t balloon_chunk(Segment* seg) noexcept nogil:
    """Order of the blocks that charges are rounded up to."""
    cdef uint32_t order = 0
    while order < MAX_ORDER and segment_budget(seg) // CHUNK_PART >= <uint32_t>2 << order:
        order += 1
    return order


# -- opening -----------------------------------------------------------------------------------------------------------

cdef inline uint32_t balloon_take_unopened(Segment* seg, uint32_t nr) noexcept nogil:
    """Takes up to nr frames that were never used. Returns how many."""
    cdef uint32_t left
    futex_lock(&seg.header.buddy_lock)
    left = load_relaxed_u32(&seg.header.open_limit) - load_relaxed_u32(&seg.header.nr_opened)
    nr = nr if nr < left else left
    store_release_u32(&seg.header.open_limit, load_relaxed_u32(&seg.header.open_limit) - nr)
    store_relaxed_u32(&seg.header.nr_free, load_relaxed_u32(&seg.header.nr_free) - nr)
    futex_unlock(&seg.header.buddy_lock)
    return nr


cdef inline bint frames_open(Segment* seg) noexcept nogil:
    """Opens the next block of frames. Returns whether there is something to look at in the lists now. No lock is held: the
    descriptors are populated, and paid for with frames that are not opened yet, before they are touched."""
    cdef uint32_t first = load_relaxed_u32(&seg.header.nr_opened)
    cdef uint32_t end = (first & ~<uint32_t>(BLOCK_FRAMES - 1)) + BLOCK_FRAMES
    cdef uint32_t limit = load_acquire_u32(&seg.header.open_limit), nr_pages, missing
    cdef bint opened
    if first >= limit:
        return False
    end = end if end < limit else limit
    nr_pages = pages_of(<uint64_t>end * sizeof(Folio)) - pages_of(<uint64_t>first * sizeof(Folio))
    add_acq_rel_u32(&seg.header.nr_metadata, nr_pages)
    missing = balloon_missing(seg)
    if missing > 0:
        balloon_take_unopened(seg, missing if missing < nr_pages else nr_pages)
    descriptors_populate(seg, first, end)
    if first & (BLOCK_FRAMES - 1) or end & (BLOCK_FRAMES - 1):
        block_advise_small(seg, first)      # what lies behind the end is not the cache's
    futex_lock(&seg.header.buddy_lock)
    limit = load_relaxed_u32(&seg.header.open_limit)
    end = end if end < limit else limit
    opened = load_relaxed_u32(&seg.header.nr_opened) == first and first < end
    if opened:
        nr_pages -= pages_of(<uint64_t>end * sizeof(Folio)) - pages_of(<uint64_t>first * sizeof(Folio))
        descriptors_begin(seg, first, end, FIRST_SEQ)
        buddy_open(seg, first, end)
    futex_unlock(&seg.header.buddy_lock)
    sub_acq_rel_u32(&seg.header.nr_metadata, nr_pages)      # of what another thread has opened, or the balloon taken
    return opened or load_relaxed_u32(&seg.header.nr_opened) != first


# -- filling -----------------------------------------------------------------------------------------------------------

cdef inline void balloon_link(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    """Puts frames, fewer than a block, into the lists. buddy_lock is held."""
    cdef Folio* head = &seg.folios[frame]
    cdef uint32_t first = seg.header.balloon_first[order]
    head.lru_prev = NIL
    head.lru_next = first
    if first != NIL:
        seg.folios[first].lru_prev = frame
    seg.header.balloon_first[order] = frame
    store_release_u32(&head.state, <uint32_t>FOLIO_BALLOON | (order << FOLIO_ORDER_SHIFT))


cdef inline void balloon_unlink(Segment* seg, uint32_t frame, uint32_t order) noexcept nogil:
    cdef Folio* head = &seg.folios[frame]
    if head.lru_prev == NIL:
        seg.header.balloon_first[order] = head.lru_next
    else:
        seg.folios[head.lru_prev].lru_next = head.lru_next
    if head.lru_next != NIL:
        seg.folios[head.lru_next].lru_prev = head.lru_prev
    store_release_u32(&head.state, 0)


cdef inline bint balloon_merge(Segment* seg, uint32_t* frame, uint32_t order) noexcept nogil:
    """Puts frames into the lists, merged with their buddies there. True when they are a block now, which is in no list,
    `frame` being its first. buddy_lock is held."""
    cdef uint32_t k = order, buddy
    while k < MAX_ORDER:
        buddy = frame[0] ^ (<uint32_t>1 << k)
        if (buddy + (<uint32_t>1 << k) > load_relaxed_u32(&seg.header.nr_opened)
                or load_relaxed_u32(&seg.folios[buddy].state) != (<uint32_t>FOLIO_BALLOON | (k << FOLIO_ORDER_SHIFT))):
            balloon_link(seg, frame[0], k)
            return False
        balloon_unlink(seg, buddy, k)
        frame[0] = frame[0] & ~(<uint32_t>1 << k)
        k += 1
    return True


cdef inline void balloon_put_out(Segment* seg, uint32_t frame) noexcept nogil:
    """Takes a block whose frames' memory is gone. It counts as being in the balloon."""
    if block_leave(seg, frame):
        add_acq_rel_u32(&seg.header.nr_out, 1)
        sub_acq_rel_u32(&seg.header.nr_metadata, BLOCK_PAGES)
    futex_lock(&seg.header.buddy_lock)
    seg.blocks[frame // BLOCK_FRAMES].next = seg.header.balloon_first[<int>MAX_ORDER]
    seg.header.balloon_first[<int>MAX_ORDER] = frame
    futex_unlock(&seg.header.buddy_lock)


cdef inline bint balloon_add(Segment* seg, uint32_t frame, uint32_t order, bint must_return) noexcept nogil:
    """Takes frames that are the caller's, as `buddy_alloc` gives them. must_return: they are freed instead if the system
    does not take their memory. Returns whether they are in the balloon."""
    cdef bint returned = frames_give_back(seg, frame, order), is_block
    if not returned and must_return:
        buddy_free(seg, frame, order)
        return False
    if not returned:
        add_acq_rel_u32(&seg.header.nr_unreturned, <uint32_t>1 << order)
    futex_lock(&seg.header.buddy_lock)
    is_block = balloon_merge(seg, &frame, order)
    store_release_u32(&seg.header.nr_balloon, load_relaxed_u32(&seg.header.nr_balloon) + (<uint32_t>1 << order))
    futex_unlock(&seg.header.buddy_lock)
    if is_block:
        balloon_put_out(seg, frame)
    return True


cdef inline uint32_t balloon_take_free(Segment* seg, uint32_t nr, bint must_return, bint* refused) noexcept nogil:
    """Takes up to nr free frames, the largest blocks first. Returns how many. refused: set when the system does not take
    memory."""
    cdef uint32_t left = nr, frame
    cdef int order = MAX_ORDER
    while left > 0 and order >= 0:
        if left < <uint32_t>1 << order:
            order -= 1
            continue
        frame = buddy_alloc(seg, <uint32_t>order)
        if frame == NIL:
            order -= 1
        elif balloon_add(seg, frame, <uint32_t>order, must_return):
            left -= <uint32_t>1 << order
        else:
            refused[0] = True
            break
    return nr - left


# -- emptying ----------------------------------------------------------------------------------------------------------

cdef inline void frames_free(Segment* seg, uint32_t frame, uint32_t order, uint32_t nr) noexcept nogil:
    """Frees the first nr of 2**order frames that were in the balloon, and puts the others back. buddy_lock is held."""
    while nr < <uint32_t>1 << order:
        order -= 1
        if nr > <uint32_t>1 << order:
            buddy_merge(seg, frame, order)
            frame += <uint32_t>1 << order
            nr -= <uint32_t>1 << order
        else:
            balloon_link(seg, frame + (<uint32_t>1 << order), order)
    buddy_merge(seg, frame, order)


cdef inline void balloon_count_given(Segment* seg, uint32_t nr) noexcept nogil:
    """buddy_lock is held."""
    store_release_u32(&seg.header.nr_balloon, load_relaxed_u32(&seg.header.nr_balloon) - nr)
    store_relaxed_u32(&seg.header.nr_free, load_relaxed_u32(&seg.header.nr_free) + nr)


cdef inline uint32_t balloon_give_frames(Segment* seg, uint32_t nr) noexcept nogil:
    """Frees up to nr frames that have descriptors. Returns how many; 0: there are none."""
    cdef int order = MAX_ORDER - 1
    cdef uint32_t frame
    futex_lock(&seg.header.buddy_lock)
    while order >= 0 and seg.header.balloon_first[order] == NIL:
        order -= 1
    if order < 0:
        futex_unlock(&seg.header.buddy_lock)
        return 0
    frame = seg.header.balloon_first[order]
    balloon_unlink(seg, frame, <uint32_t>order)
    nr = nr if nr < <uint32_t>1 << order else <uint32_t>1 << order
    frames_free(seg, frame, <uint32_t>order, nr)
    balloon_count_given(seg, nr)
    futex_unlock(&seg.header.buddy_lock)
    return nr


cdef inline uint32_t balloon_give_block(Segment* seg, uint32_t nr) noexcept nogil:
    """Frees up to nr frames of a block that was out. Returns how many; 0: there is none. Its descriptors are charged."""
    cdef uint32_t frame
    futex_lock(&seg.header.buddy_lock)
    frame = seg.header.balloon_first[<int>MAX_ORDER]
    if frame != NIL:
        seg.header.balloon_first[<int>MAX_ORDER] = seg.blocks[frame // BLOCK_FRAMES].next
    futex_unlock(&seg.header.buddy_lock)
    if frame == NIL:
        return 0
    if not load_relaxed_u32(&seg.blocks[frame // BLOCK_FRAMES].seq) & <uint32_t>BLOCK_DESCRIBED:
        add_acq_rel_u32(&seg.header.nr_metadata, BLOCK_PAGES)
        sub_acq_rel_u32(&seg.header.nr_out, 1)
    block_enter(seg, frame)
    nr = nr if nr < <uint32_t>BLOCK_FRAMES else <uint32_t>BLOCK_FRAMES
    if nr < <uint32_t>BLOCK_FRAMES:
        block_advise_small(seg, frame)      # the others stay in the balloon
    futex_lock(&seg.header.buddy_lock)
    frames_free(seg, frame, MAX_ORDER, nr)
    balloon_count_given(seg, nr)
    futex_unlock(&seg.header.buddy_lock)
    return nr


cdef inline uint32_t balloon_give_unopened(Segment* seg, uint32_t nr) noexcept nogil:
    """Lets up to nr frames be opened. Returns how many."""
    cdef uint32_t limit
    futex_lock(&seg.header.buddy_lock)
    limit = load_relaxed_u32(&seg.header.open_limit)
    nr = nr if nr < seg.nr_frames - limit else seg.nr_frames - limit
    store_release_u32(&seg.header.open_limit, limit + nr)
    store_relaxed_u32(&seg.header.nr_free, load_relaxed_u32(&seg.header.nr_free) + nr)
    futex_unlock(&seg.header.buddy_lock)
    return nr


cdef inline void balloon_is_empty(Segment* seg) noexcept nogil:
    """Huge pages may be whole again."""
    store_relaxed_u32(&seg.header.nr_unreturned, 0)
    if seg.header.has_data and <uint64_t>seg.nr_frames << PAGE_SHIFT >= FRAME_ALIGNMENT:
        memory_advise_huge(seg.frames, <size_t>seg.nr_frames << PAGE_SHIFT)
        block_advise_small(seg, load_relaxed_u32(&seg.header.nr_opened))


cdef inline uint32_t balloon_excess(Segment* seg) noexcept nogil:
    """Frames that need not be in the balloon, but for what a charge is rounded up to."""
    cdef uint32_t wanted = balloon_wanted(seg), present = balloon_present(seg)
    cdef uint32_t kept = (<uint32_t>1 << balloon_chunk(seg)) - 1 if wanted > seg.nr_frames - segment_budget(seg) else 0
    return present - wanted - kept if present > wanted + kept else 0


cdef inline uint32_t block_cost(Segment* seg) noexcept nogil:
    """Frames that the descriptors of one more block would cost."""
    cdef uint32_t nr = load_acquire_u32(&seg.header.nr_metadata), allowance = metadata_allowance(seg)
    nr = nr + BLOCK_PAGES - allowance if nr + BLOCK_PAGES > allowance else 0
    return nr if nr < <uint32_t>BLOCK_PAGES else <uint32_t>BLOCK_PAGES


cdef inline void balloon_give_excess(Segment* seg) noexcept nogil:
    """Lets the frames be used that need not be in the balloon: those first that have descriptors. No lock is held."""
    cdef uint32_t excess = balloon_excess(seg), given = 0
    cdef bint gave = False
    while excess > 0:
        given = balloon_give_frames(seg, excess)
        if given == 0 and excess > block_cost(seg):
            given = balloon_give_block(seg, excess - block_cost(seg))
        if given == 0:
            break
        gave = True
        excess = balloon_excess(seg)
    if gave and load_relaxed_u32(&seg.header.nr_balloon) == 0:
        balloon_is_empty(seg)
    excess = balloon_excess(seg)
    if excess > 0:
        gave = balloon_give_unopened(seg, excess) > 0 or gave
    if gave:
        memory_event(seg)


cdef inline void metadata_uncharge(Segment* seg, uint32_t nr_pages) noexcept nogil:
    """Pages are not touched any more: their memory is the system's again."""
    sub_acq_rel_u32(&seg.header.nr_metadata, nr_pages)
    balloon_give_excess(seg)


# -- the beginning -----------------------------------------------------------------------------------------------------

cdef inline void balloon_init(Segment* seg, uint32_t budget) noexcept nogil:
    """Gives a new segment its size: the frames beyond it are out. What is touched under locks is populated."""
    cdef uint32_t nr_fixed = fixed_pages(seg)
    memory_populate(seg.base, <size_t>pages_of(sizeof(Header)) << PAGE_SHIFT)
    memory_populate(seg.blocks, <size_t>pages_of(segment_nr_blocks(seg.nr_frames) * sizeof(Block)) << PAGE_SHIFT)
    if seg.header.policy == <uint32_t>POLICY_ADAPTIVE:
        memory_populate(seg.adaptive, <size_t>pages_of(sizeof(Adaptive)) << PAGE_SHIFT)
    store_relaxed_u32(&seg.header.nr_metadata, nr_fixed)
    store_relaxed_u32(&seg.header.nr_opened, 0)
    store_relaxed_u32(&seg.header.open_limit, budget)
    store_relaxed_u32(&seg.header.nr_free, budget)
    pc_assert(budget <= seg.nr_frames)
