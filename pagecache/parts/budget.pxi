def set_budget(Segment segment not None, uint32_t nr_pages):
    """Sets how many pages the cache may hold: what may be used again is free at once; what is too much leaves by
    `fill_balloon`.

    nr_pages: 1 to `max_frames`.
    """
    if not 1 <= nr_pages <= segment.seg.nr_frames:
        raise ValueError(f"the budget must be 1..{segment.seg.nr_frames} pages, not {nr_pages}")
    with nogil:
        header_set_budget(segment.seg.header, nr_pages)
        nodes_trim(&segment.seg)
        balloon_give_excess(&segment.seg)


def balloon_frames(Segment segment not None):
    """(frames in the balloon, frames that budget and metadata want in it)"""
    return balloon_present(&segment.seg), balloon_wanted(&segment.seg)


def fill_balloon(Segment segment not None):
    """One step of bringing the balloon to what is wanted, which evicts what may leave.

    Returns the frames taken, 0 when none could be had now, -1 when the system does not take their memory.
    Context: releases the GIL; does not wait.
    """
    cdef uint32_t taken = 0, missing
    cdef bint refused = False
    with nogil:
        missing = balloon_missing(&segment.seg)
        if missing > 0:
            taken = balloon_fill(&segment.seg, missing, True, &refused)
            balloon_give_excess(&segment.seg)
    return -1 if refused and taken == 0 else taken


def fail_advice(Segment segment not None, uint32_t times):
    """Has the system refuse memory that is given back so many times. Context: for tests."""
    store_release_u32(&segment.seg.header.fail_advice, times)


def memory_of(Segment segment not None):
    """Where the memory of a segment is: bytes by name.

    Frames: `pages` (cached), `held` (in use, and not cached: views of what left the cache, copies), `free`, `balloon`, of
    which `unreturned` are resident. Metadata in memory: `descriptors`, `nodes` (of which `shadows` hold nothing but what
    was evicted), `records`, `tables` (header and probes). `allowance`: of metadata that cost no frame.
    Context: sums over threads, so not one instant's picture.
    """
    cdef CSegment* seg = &segment.seg
    cdef Header* header = seg.header
    cdef uint64_t pages = <uint64_t>counted(seg, <int>NR_FILE_PAGES), nr_free = load_relaxed_u32(&header.nr_free)
    cdef uint64_t present = balloon_present(seg)
    cdef int64_t held = <int64_t>(seg.nr_frames - present - nr_free - pages)
    return {
        "pages": pages * PAGE_SIZE,
        "held": max(held, 0) * PAGE_SIZE,
        "free": nr_free * PAGE_SIZE,
        "balloon": present * PAGE_SIZE,
        "unreturned": load_relaxed_u32(&header.nr_unreturned) * PAGE_SIZE,
        "descriptors": descriptor_pages(seg) * PAGE_SIZE,
        "nodes": node_pages(seg) * PAGE_SIZE,
        "shadows": <uint64_t>hint_u32(&header.pool.nr_shadow_nodes) * sizeof(XaNode),
        "records": <uint64_t>records_pages(seg) * PAGE_SIZE,
        "tables": fixed_pages(seg) * PAGE_SIZE,
        "allowance": metadata_allowance(seg) * PAGE_SIZE,
    }


def watch_locks(bint watches):
    """Begins or ends counting the page faults that threads meet while they hold an engine lock.

    Returns how many there were since it began; -1 in builds without checks. Context: for tests, with no lock held.
    """
    return lock_watch_set(watches)
