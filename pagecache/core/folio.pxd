"""Folios: flags, references, the lock with waiters and hand-off, the sequence counter.

State word (32 bits)
    0 LOCKED   1 WAITERS  2 HANDOFF  3 GRANTED          the lock
    4 UPTODATE 5 DIRTY    6 WRITEBACK                   what the data is
    7 REFERENCED 8 ACCESSED 9 ACTIVE 10 WORKINGSET 11 LRU  what reclaim uses
    12 READAHEAD (= RECLAIM while under writeback)  13 DROPBEHIND  14 UNEVICTABLE  15 ALLOCATED  16 UNUSED_READAHEAD
    17 MAPPED  18 AHEAD  19 FIRST  20 FREE (buddy.pxd)  21 LAST   28..31 order
`ACCESSED` is the second access of a referenced folio: activation is left to reclaim, so that a hot hit, which finds
both bits set, writes nothing.

Lock
    trylock    LOCKED by fetch-or (acquire).
    unlock     one xor clears LOCKED and says whether WAITERS was set (release); only then the slow path wakes all.
    end_read   one xor clears LOCKED and sets UPTODATE (release): no thread sees an unlocked folio that was read well and
               is not uptodate; the data written before is visible to a thread that loads the flag with acquire.
    waiting    sets WAITERS, looks again, sleeps on the state word while it is unchanged. Woken threads compete.
    hand-off   a waiter that lost UNFAIRNESS_LIMIT races becomes the one designated waiter (HANDOFF, by
               compare-and-swap). The unlocker then keeps LOCKED, turns HANDOFF into GRANTED and wakes; only the
               designated waiter clears GRANTED, and so owns the lock. One that gives up (a signal) takes HANDOFF
               back in the same word, or, if it was granted meanwhile, unlocks: a granted lock is never lost.
    A sleeper holds no reference: descriptors are type-stable, a reused one only wakes it for nothing, and `seq`
    shows that the folio is another.

References
    try_get    increment unless zero; then the caller validates mapping and index again.
    freeze     exactly n -> 0 by compare-and-swap, which proves to the remover that there is no other reference.
    The page cache holds one reference a page (so 2**order), a lookup or a view one.

Sequence counter
    reader     s = seq (acquire, even); validate; copy; acquire fence; seq still s, else the copy is thrown away.
    remover    seq += 2 (release) after `mapping` is cleared, before the frame can be reused; the allocation that reuses
               it has a release fence before anything is stored in it.
    writer     seq += 1 (odd), release fence, store data, seq += 1 (release); under the folio lock, so one at a time.
"""
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport (add_acq_rel_u32, and_acq_rel_u32, cas_acq_rel_u32, cas_relaxed_u32,
                                    exchange_acq_rel_u32, fence_release, load_acquire_u32, load_relaxed_u32,
                                    load_relaxed_u64, or_acq_rel_u32, store_relaxed_u32, store_relaxed_u64,
                                    store_release_u32)
from pagecache.core.balloon cimport frames_open
from pagecache.core.buddy cimport FOLIO_FREE, FOLIO_ORDER_SHIFT, buddy_alloc, buddy_free, memory_event
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport NIL, PAGE_SHIFT
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.lock cimport WAIT_SLICE_NS, WAKE_ALL
from pagecache.core.memory cimport memory_poison, memory_unpoison
from pagecache.core.segment cimport Folio, Segment, frame_address, folio_number

cdef enum FolioFlag:
    FOLIO_LOCKED = 1 << 0
    FOLIO_WAITERS = 1 << 1
    FOLIO_HANDOFF = 1 << 2
    FOLIO_GRANTED = 1 << 3
    FOLIO_UPTODATE = 1 << 4
    FOLIO_DIRTY = 1 << 5
    FOLIO_WRITEBACK = 1 << 6
    FOLIO_REFERENCED = 1 << 7
    FOLIO_ACCESSED = 1 << 8
    FOLIO_ACTIVE = 1 << 9
    FOLIO_WORKINGSET = 1 << 10
    FOLIO_LRU = 1 << 11
    FOLIO_READAHEAD = 1 << 12
    FOLIO_DROPBEHIND = 1 << 13
    FOLIO_UNEVICTABLE = 1 << 14
    FOLIO_ALLOCATED = 1 << 15
    FOLIO_UNUSED = 1 << 16          # brought in by readahead and not yet asked for
    FOLIO_MAPPED = 1 << 17          # a page table may translate to it
    FOLIO_AHEAD = 1 << 18           # on the list of what has not been used yet (lru_lock)
    FOLIO_EVICT_FIRST = 1 << 19           # leaves before anything else; fixed when it enters
    FOLIO_EVICT_LAST = 1 << 21            # leaves when nothing else can; fixed when it enters

cdef enum:
    FOLIO_ORDER_MASK = 0xF0000000
    UNFAIRNESS_LIMIT = 5            # lost races before a waiter asks for hand-off

ctypedef struct FolioWaiter:        # on the stack of the waiting thread
    uint32_t nr_lost                # races
    bint designated                 # this waiter set HANDOFF


# -- flags ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t folio_state(const Folio* folio) noexcept nogil:
    return load_acquire_u32(&folio.state)

cdef inline bint folio_test(const Folio* folio, uint32_t flag) noexcept nogil:
    return (load_acquire_u32(&folio.state) & flag) != 0

cdef inline bint folio_test_set(Folio* folio, uint32_t flag) noexcept nogil:
    return (or_acq_rel_u32(&folio.state, flag) & flag) != 0

cdef inline bint folio_test_clear(Folio* folio, uint32_t flag) noexcept nogil:
    return (and_acq_rel_u32(&folio.state, ~flag) & flag) != 0

cdef inline void folio_set(Folio* folio, uint32_t flag) noexcept nogil:
    or_acq_rel_u32(&folio.state, flag)

cdef inline void folio_clear(Folio* folio, uint32_t flag) noexcept nogil:
    and_acq_rel_u32(&folio.state, ~flag)

cdef inline uint32_t state_order(uint32_t state) noexcept nogil:
    return state >> FOLIO_ORDER_SHIFT

cdef inline uint32_t folio_order(const Folio* folio) noexcept nogil:
    return load_relaxed_u32(&folio.state) >> FOLIO_ORDER_SHIFT

cdef inline uint32_t folio_nr_pages(const Folio* folio) noexcept nogil:
    return <uint32_t>1 << folio_order(folio)

cdef inline uint64_t folio_index(const Folio* folio) noexcept nogil:
    return load_relaxed_u64(&folio.index)

cdef inline uint32_t folio_mapping(const Folio* folio) noexcept nogil:
    return load_acquire_u32(&folio.mapping)

cdef inline char* folio_address(Segment* seg, Folio* folio) noexcept nogil:
    return frame_address(seg, folio_number(seg, folio))


cdef inline void folio_mark_accessed(Folio* folio) noexcept nogil:
    """Notes an access: first REFERENCED, then ACCESSED; a folio with both is not written. A reader without a reference
    may come when the folio is free again: by compare-and-swap, so that a free descriptor is never written."""
    cdef uint32_t state = load_relaxed_u32(&folio.state), noted
    while True:
        if (state & (FOLIO_REFERENCED | FOLIO_ACCESSED | FOLIO_UNUSED)) == (FOLIO_REFERENCED | FOLIO_ACCESSED):
            return
        if state & FOLIO_DROPBEHIND or not state & FOLIO_ALLOCATED:
            return
        noted = state & ~<uint32_t>FOLIO_UNUSED
        if not state & FOLIO_REFERENCED:
            noted |= FOLIO_REFERENCED
        else:
            noted |= FOLIO_ACCESSED
        if noted == state or cas_relaxed_u32(&folio.state, &state, noted):
            return


# -- allocation and references ---------------------------------------------------------------------------------------

cdef inline Folio* folio_alloc_nowait(Segment* seg, uint32_t order) noexcept nogil:
    """A folio of free frames: one reference (the caller's), in no mapping, not locked. NULL when there is none."""
    cdef uint32_t frame = buddy_alloc(seg, order)
    cdef Folio* folio
    while frame == NIL and frames_open(seg):
        frame = buddy_alloc(seg, order)
    if frame == NIL:
        return NULL
    folio = &seg.folios[frame]
    pc_assert(load_relaxed_u32(&folio.refcount) == 0)
    pc_assert(load_relaxed_u32(&folio.mapping) == 0)
    fence_release()                 # a reader of bytes that are stored from now on also sees the seq of the last removal
    memory_unpoison(folio_address(seg, folio), <size_t>1 << (order + PAGE_SHIFT))
    folio.lru_prev = NIL
    folio.lru_next = NIL
    folio.policy_data = 0
    store_relaxed_u32(&folio.nr_pins, 0)
    store_relaxed_u64(&folio.dirtied_at_ns, 0)
    store_release_u32(&folio.state, <uint32_t>FOLIO_ALLOCATED | (order << FOLIO_ORDER_SHIFT))
    store_release_u32(&folio.refcount, 1)
    return folio


cdef inline bint folio_try_get(Folio* folio) noexcept nogil:
    """Takes a reference unless there is none left. The caller validates afterwards what it got."""
    cdef uint32_t refcount = 1          # what most have; if not, the comparison shows it
    while refcount != 0:
        if cas_acq_rel_u32(&folio.refcount, &refcount, refcount + 1):
            return True
    return False


cdef inline void folio_ref_add(Folio* folio, uint32_t nr) noexcept nogil:
    cdef uint32_t before = add_acq_rel_u32(&folio.refcount, nr)
    pc_assert(before != 0)


cdef inline bint folio_ref_freeze(Folio* folio, uint32_t expected) noexcept nogil:
    return cas_acq_rel_u32(&folio.refcount, &expected, 0)


cdef inline void folio_ref_unfreeze(Folio* folio, uint32_t nr) noexcept nogil:
    store_release_u32(&folio.refcount, nr)


cdef inline void folio_release_frames(Segment* seg, Folio* folio) noexcept nogil:
    """Gives the frames of a folio back: no references, in no mapping, on no list."""
    cdef uint32_t order = folio_order(folio)
    pc_assert(load_relaxed_u32(&folio.refcount) == 0)
    pc_assert(load_relaxed_u32(&folio.mapping) == 0)
    pc_assert(not (load_relaxed_u32(&folio.state) & (FOLIO_LRU | FOLIO_LOCKED | FOLIO_WRITEBACK | FOLIO_FREE)))
    if seg.poisons:
        memory_poison(folio_address(seg, folio), <size_t>1 << (order + PAGE_SHIFT))
    if exchange_acq_rel_u32(&folio.state, 0) & FOLIO_WAITERS:      # they need no reference, so they may still be there
        futex_wake(&folio.state, WAKE_ALL)
    buddy_free(seg, folio_number(seg, folio), order)


# -- lock ------------------------------------------------------------------------------------------------------------

cdef inline bint folio_trylock(Folio* folio) noexcept nogil:
    return not folio_test_set(folio, FOLIO_LOCKED)


cdef inline void folio_wake(Segment* seg, Folio* folio, uint32_t before) noexcept nogil:
    """After LOCKED or WRITEBACK was cleared, together with WAITERS: `before` is the state seen by that operation."""
    if before & FOLIO_WAITERS:
        futex_wake(&folio.state, WAKE_ALL)
    memory_event(seg)


cdef inline bint folio_grant(Folio* folio) noexcept nogil:
    """Hands the held lock to the designated waiter, if there is one."""
    cdef uint32_t state = load_relaxed_u32(&folio.state)
    while state & FOLIO_HANDOFF:
        pc_assert(state & FOLIO_LOCKED)
        if cas_acq_rel_u32(&folio.state, &state,
                           (state | FOLIO_GRANTED) & ~<uint32_t>(FOLIO_HANDOFF | FOLIO_WAITERS)):
            futex_wake(&folio.state, WAKE_ALL)
            return True
    return False


cdef inline void folio_end_locked(Segment* seg, Folio* folio, uint32_t also_set) noexcept nogil:
    """Sets flags and clears LOCKED in one step, or hands the lock over. A designated waiter may come and go between
    two looks, but only one exists at a time, so the loop ends."""
    cdef uint32_t state = load_relaxed_u32(&folio.state)
    pc_assert(state & FOLIO_LOCKED)
    while True:
        if state & FOLIO_HANDOFF:
            if also_set:
                or_acq_rel_u32(&folio.state, also_set)
            if folio_grant(folio):
                return
            state = load_relaxed_u32(&folio.state)
        elif cas_acq_rel_u32(&folio.state, &state, (state | also_set) & ~<uint32_t>(FOLIO_LOCKED | FOLIO_WAITERS)):
            folio_wake(seg, folio, state)
            return


cdef inline void folio_unlock(Segment* seg, Folio* folio) noexcept nogil:
    folio_end_locked(seg, folio, 0)


cdef inline void folio_end_read(Segment* seg, Folio* folio, bint success) noexcept nogil:
    """Ends a read into a locked folio: on success it becomes uptodate and unlocked in one step."""
    pc_assert(not folio_test(folio, FOLIO_UPTODATE))
    folio_end_locked(seg, folio, <uint32_t>FOLIO_UPTODATE if success else 0)


cdef inline bint folio_seq_is(Folio* folio, const uint32_t* seq) noexcept nogil:
    """Whether a folio still has a seq, where there is one to compare."""
    return seq == NULL or load_acquire_u32(&folio.seq) == seq[0]


cdef inline int folio_wait_slice(Folio* folio, uint32_t flag, const uint32_t* seq) noexcept nogil:
    """Sleeps for one slice at most while `flag` (LOCKED or WRITEBACK) is set in a folio. Returns 0 when it is not, -EINTR
    after a signal, -EAGAIN otherwise.

    seq: for a caller without a reference, the folio's, whose change ends the wait too: it may be another. One with such a
    flag is not free, so the bit set here never lands in a free descriptor. NULL for a caller with a reference: seq changes
    with each write as well, which ends neither a lock nor a write-back."""
    cdef uint32_t state = load_acquire_u32(&folio.state)
    cdef int r
    while state & flag and folio_seq_is(folio, seq):
        if state & FOLIO_WAITERS or cas_acq_rel_u32(&folio.state, &state, state | FOLIO_WAITERS):
            r = futex_wait(&folio.state, state | FOLIO_WAITERS, WAIT_SLICE_NS)
            if not folio_test(folio, flag) or not folio_seq_is(folio, seq):
                return 0
            return -EINTR if r == -EINTR else -EAGAIN
    return 0


cdef inline bint folio_lock_designate(Folio* folio) noexcept nogil:
    """Asks for hand-off; False when another waiter already has, or when the lock is free."""
    cdef uint32_t state = load_relaxed_u32(&folio.state)
    while state & FOLIO_LOCKED and not state & (FOLIO_HANDOFF | FOLIO_GRANTED):
        if cas_acq_rel_u32(&folio.state, &state, state | FOLIO_HANDOFF | FOLIO_WAITERS):
            return True
    return False


cdef inline int folio_lock_slice(Folio* folio, FolioWaiter* waiter) noexcept nogil:
    """Tries to lock, sleeping for one slice at most; needs a reference. Start with a zeroed waiter and call again
    until 0, or `folio_lock_cancel`. Returns 0 (locked), -EINTR after a signal, -EAGAIN."""
    cdef uint32_t state
    cdef int r
    if waiter.designated:
        if folio_test_clear(folio, FOLIO_GRANTED):
            waiter.designated = False
            return 0
    elif folio_trylock(folio):
        return 0
    elif waiter.nr_lost >= UNFAIRNESS_LIMIT:
        waiter.designated = folio_lock_designate(folio)
    state = or_acq_rel_u32(&folio.state, FOLIO_WAITERS) | FOLIO_WAITERS
    if waiter.designated:
        r = 0 if state & FOLIO_GRANTED else futex_wait(&folio.state, state, WAIT_SLICE_NS)
        if folio_test_clear(folio, FOLIO_GRANTED):
            waiter.designated = False
            return 0
    else:
        r = futex_wait(&folio.state, state, WAIT_SLICE_NS) if state & FOLIO_LOCKED else 0
        if folio_trylock(folio):
            return 0
        waiter.nr_lost += 1
    return -EINTR if r == -EINTR else -EAGAIN


cdef inline void folio_lock_cancel(Segment* seg, Folio* folio, FolioWaiter* waiter) noexcept nogil:
    """Gives up waiting. A lock that was handed over meanwhile is released."""
    cdef uint32_t state
    if not waiter.designated:
        return
    waiter.designated = False
    state = load_relaxed_u32(&folio.state)
    while True:
        if state & FOLIO_GRANTED:
            folio_clear(folio, FOLIO_GRANTED)
            folio_unlock(seg, folio)
            return
        pc_assert(state & FOLIO_HANDOFF)
        if cas_acq_rel_u32(&folio.state, &state, state & ~<uint32_t>FOLIO_HANDOFF):
            return


cdef inline void folio_lock_uninterruptible(Folio* folio) noexcept nogil:
    """Locks without looking for signals: for holders that are known to be brief."""
    cdef FolioWaiter waiter
    waiter.nr_lost = 0
    waiter.designated = False
    while folio_lock_slice(folio, &waiter) != 0:
        pass


# -- sequence counter --------------------------------------------------------------------------------------------------

cdef inline void folio_seq_bump(Folio* folio) noexcept nogil:
    """The folio is no longer what a reader validated."""
    add_acq_rel_u32(&folio.seq, 2)


cdef inline void folio_write_begin(Folio* folio) noexcept nogil:
    """Opens a store into an uptodate folio; the folio lock is held."""
    cdef uint32_t before = add_acq_rel_u32(&folio.seq, 1)
    pc_assert(not before & 1)
    fence_release()


cdef inline void folio_write_end(Folio* folio) noexcept nogil:
    cdef uint32_t before = add_acq_rel_u32(&folio.seq, 1)
    pc_assert(before & 1)
