_FINDINGS = {
    1: "a block on a free list is not a free block of that order",
    2: "free frames and the count of free frames disagree",
    3: "a frame is in no place",
    4: "a frame inside a block has a live descriptor",
    5: "a link of an eviction list is broken",
    6: "a folio is on the wrong eviction list, or on none",
    7: "the page count of an eviction list is wrong",
    8: "a folio index is malformed",
    9: "an index entry and its folio descriptor disagree",
    10: "a mapping's page count is wrong",
    11: "a mark and its flag disagree",
    12: "a lock is held",
    13: "a folio's reference count is wrong",
    14: "a counter is wrong",
    15: "index nodes are lost",
    16: "a cached folio is in no index",
    17: "a folio's sequence counter is odd",
    18: "pages charged as dirty and those that are disagree",
    19: "a byte behind the end of the object is not zero",
    20: "the pages counted for a tenant are not those of its objects",
    21: "a block in the balloon is none, or their count is wrong",
    22: "touched pages of metadata and those that are charged disagree",
    23: "the balloon holds fewer frames than budget and metadata want",
    24: "a record of the directory is not found by its key, or is found though it is not in it",
    25: "the list of records that may be reused is broken",
    26: "a record is idle, and not counted or kept as one",
}

_COUNTER_NAMES = (
    "nr_file_pages", "nr_file_hugepages", "nr_dirty", "nr_writeback", "nr_pinned", "nr_shadows", "hits", "misses",
    "pgfault", "pgmajfault", "pgactivate", "pgdeactivate", "pgrefill", "pgscan_direct", "pgscan_kswapd",
    "pgsteal_direct", "pgsteal_kswapd", "pgrotated", "allocstall", "workingset_refault_file",
    "workingset_activate_file", "workingset_restore_file", "workingset_nodereclaim", "nr_dirtied",
    "nr_throttled_written", "writeback_errors", "nr_written",
    "readahead_pages", "readahead_hits", "readahead_wasted", "readahead_errors", "store_reads", "store_read_bytes",
    "store_writes", "store_write_bytes", "bytes_asked", "drop_pagecache", "optimistic_retries",
)
cdef enum:
    MAPPINGS_BESIDE_FRAMES = 65536

_POLICIES = ("kernel", "s3fifo", "sieve", "lirs", "adaptive")
_COUNTERS = {name: number for number, name in enumerate(_COUNTER_NAMES)}
if (len(_COUNTER_NAMES) != NR_COUNTERS or NR_COUNTERS > 48 or <int>STAT_SHARDS != <int>PC_THREAD_SLOTS
        or sizeof(CFolio) != 64 or sizeof(CMapping) != 512):
    raise ImportError("the layout of the segment does not add up")


@cython.final
cdef class Segment:
    """One mapped region of page frames and the state of them all.

    nr_frames: page frames (4096 bytes each). max_frames: as many as there may be one day (`set_budget`).
    nr_mappings: records of store objects there is room for; None: one for each
    frame and 65,536 beside, which take memory as they are used. data: False for
    descriptors without frames (running access traces). shared: back the region by a memory file, so that `attach`
    can map it again at another address. policy: what leaves when frames are short: "kernel", "s3fifo", "sieve", "lirs" or
    "adaptive".

    Context: allocated memory is returned when the last object that uses the segment is gone.
    """
    cdef CSegment seg
    cdef pc_thread kswapd
    cdef IoQueue queue
    cdef readonly int fd
    cdef bint begun
    cdef bint mapped
    cdef bint owner
    cdef int maker_pid                      # the process whose threads serve it
    cdef object __weakref__

    def __cinit__(self):
        self.fd = -1
        self.maker_pid = getpid()
        self.mapped = False
        self.owner = False
        self.kswapd.started = False

    def __init__(self, nr_frames, *, max_frames=None, nr_mappings=None, data=True, shared=False, str policy="kernel"):
        cdef Header layout
        cdef int r
        cdef uint64_t total
        with cython.critical_section(self):
            if self.begun:
                raise RuntimeError("a segment is initialised once")
            self.begun = True
        if not 1 <= nr_frames <= MAX_FRAMES:
            raise ValueError(f"nr_frames must be in 1..{MAX_FRAMES}, not {nr_frames}")
        if max_frames is None:
            max_frames = nr_frames
        if not nr_frames <= max_frames <= MAX_FRAMES:
            raise ValueError(f"max_frames must be in {nr_frames}..{MAX_FRAMES}, not {max_frames}")
        if nr_mappings is None:
            nr_mappings = min(max_frames + MAPPINGS_BESIDE_FRAMES, MAX_FRAMES)
        if not 2 <= nr_mappings <= MAX_FRAMES:
            raise ValueError(f"nr_mappings must be in 2..{MAX_FRAMES}, not {nr_mappings}")
        if policy not in _POLICIES:
            raise ValueError(f"unknown policy {policy!r}: use one of {', '.join(_POLICIES)}")
        total = segment_layout(&layout, max_frames, nr_mappings, data)
        if shared:
            self.fd = memory_file(total)
            if self.fd < 0:
                r = self.fd
                self.fd = -1
                raise_errno(r, "cannot make a memory file")
        r = segment_create(&self.seg, max_frames, nr_mappings, data, self.fd, total)
        if r < 0:
            raise_errno(r, f"cannot map a segment of {total} bytes")
        self.mapped = True
        self.owner = True
        self.know_of_forks()
        header_set_budget(self.seg.header, nr_frames)
        policy_init(&self.seg, _POLICIES.index(policy))
        balloon_init(&self.seg, nr_frames)

    @staticmethod
    def attach(int fd):
        """Maps the region of a shared segment a second time.

        fd: descriptor of its memory file. Returns a Segment that shows the same state at another address.
        Raises OSError (EINVAL) when the file holds no segment of this version.
        """
        cdef Segment self = Segment.__new__(Segment)
        cdef int r = segment_attach(&self.seg, fd, _os.fstat(fd).st_size)
        if r < 0:
            raise_errno(r, "cannot attach: not a segment of this version")
        self.mapped = True
        self.know_of_forks()
        self.fd = _os.dup(fd)
        return self

    cdef int know_of_forks(self) except -1:
        if fork_register(&self.seg) < 0:
            raise MemoryError("no memory to remember a segment in")
        segment_keep_from_children(&self.seg)
        return 0

    def __dealloc__(self):
        if not self.seg.dead and self.maker_pid == getpid():    # a forked child has no thread of its parent's to wait for
            with nogil:
                io_queue_end(&self.queue)
                if self.kswapd.started:
                    kswapd_end(&self.seg)
                    thread_join(&self.kswapd)
        if self.mapped:
            fork_unregister(&self.seg)
            memory_unpoison(self.seg.base, self.seg.total_bytes)
            memory_unmap(self.seg.base, self.seg.total_bytes)
        if self.fd >= 0:
            posix_close(self.fd)

    @staticmethod
    def _nr_nodes_for(uint32_t nr_frames):
        """How many index nodes a segment with so many page frames has: what they need at most, as far as entries can
        name them."""
        return segment_nr_nodes(nr_frames)

    def start_kswapd(self):
        """Starts the background reclaimer, if the segment is large enough to have watermarks.

        Context: a thread of the engine that never takes the GIL; it ends with the segment.
        """
        with cython.critical_section(self):
            if hint_u32(&self.seg.header.watermark_low) > 0 and self.owner and not self.kswapd.started:
                thread_start(&self.kswapd, kswapd_main, &self.seg)

    def start_io(self, *, bint ring=True, bint register_frames=False):
        """Prepares background reads; call once, before the first.

        ring: use io_uring for O_DIRECT files where the system allows it. register_frames: register the frames with it.
        Returns the backend that O_DIRECT files get, "io_uring" or "threads".
        Context: threads of the engine that never take the GIL; they end with the segment.
        """
        with cython.critical_section(self):
            if self.queue.seg == NULL:
                io_queue_init(&self.queue, &self.seg, ring, register_frames)
        return "io_uring" if self.queue.backend == IO_RING else "threads"

    @property
    def nr_inflight(self):
        """Background requests that have not ended."""
        return load_acquire_u32(&self.queue.nr_inflight)

    def mark_dead(self):
        """Makes the segment unusable: for the child of a fork, whose locks may be held by threads it does not have."""
        self.seg.dead = True

    @property
    def dead(self):
        """Whether this process may not use the segment."""
        return self.seg.dead

    @property
    def base_address(self):
        """Where the region is mapped (bytes)."""
        return <uint64_t>self.seg.base

    @property
    def nr_frames(self):
        """Page frames of the present budget."""
        return segment_budget(&self.seg)

    @property
    def max_frames(self):
        """Page frames of the largest budget that there may be."""
        return self.seg.nr_frames

    @property
    def mapped_bytes(self):
        """Size of the region."""
        return self.seg.total_bytes

    @property
    def pins_frames(self):
        """Whether the frames are registered with io_uring, which keeps all of them in memory."""
        return bool(self.seg.is_pinned)

    @property
    def has_data(self):
        """Whether there are frames behind the descriptors."""
        return bool(self.seg.header.has_data)

    @property
    def policy(self):
        """The eviction policy's name."""
        return _POLICIES[self.seg.header.policy]

    @property
    def adapted(self):
        """What the adaptive policy follows now, (share of the small queue, whether recency decides), how often that
        changed, and the misses of each of its probes; None for other policies."""
        cdef CAdaptive* adaptive = self.seg.adaptive
        if self.seg.header.policy != <uint32_t>POLICY_ADAPTIVE:
            return None
        return ((self.seg.header.rules.small_permille / 1000, bool(self.seg.header.rules.by_recency)),
                adaptive.nr_switches, [adaptive.probes[i].misses for i in range(NR_PROBES)])

    def counters(self):
        """All counters and gauges by name (pages, events, bytes); sums over threads, so not one instant's picture."""
        cdef int number
        out = {name: counted(&self.seg, number) for number, name in enumerate(_COUNTER_NAMES)}
        cdef Header* header = self.seg.header
        out["nr_inactive_file"] = (hint_u64(&header.lru[<int>LRU_INACTIVE].nr_pages)
                                   + hint_u64(&header.lru[<int>LRU_AHEAD].nr_pages)
                                   + hint_u64(&header.lru[<int>LRU_FIRST].nr_pages))
        out["nr_active_file"] = (hint_u64(&header.lru[<int>LRU_ACTIVE].nr_pages)
                                 + hint_u64(&header.lru[<int>LRU_LAST].nr_pages))
        out["nr_unevictable"] = hint_u64(&header.lru[<int>LRU_UNEVICTABLE].nr_pages)
        out["nr_free_pages"] = load_relaxed_u32(&header.nr_free)
        out["nr_frames"] = self.seg.nr_frames - balloon_present(&self.seg)
        out["nr_dirty_charged"] = dirty_charged(&self.seg)
        out["nr_dirty_threshold"] = hint_u32(&header.dirty_limit)
        out["nr_dirty_background_threshold"] = hint_u32(&header.dirty_background)
        out["nr_mappings"] = header.nr_mappings_used
        out["nr_objects_known"] = hint_u32(&header.nr_known)
        out["nr_objects_idle"] = hint_u32(&header.nr_idle_mappings)
        out["nr_waiting_for_memory"] = load_relaxed_u32(&header.nr_waiting_for_memory)
        out["nr_nodes"] = hint_u32(&header.pool.nr_used)
        out["workingset_nodes"] = hint_u32(&header.pool.nr_shadow_nodes)
        out["nonresident_age"] = load_relaxed_u64(&header.nonresident_age)
        return out

    def add_count(self, str name, int64_t by):
        """Adds to the counter of that name."""
        count(&self.seg, <Counter><int>_COUNTERS[name], by)

    def sizes(self):
        """Sizes of the arrays: bytes of one record, records, and bytes in use, by array."""
        cdef Header* header = self.seg.header
        cdef uint64_t probes = sizeof(CAdaptive) if header.policy == <uint32_t>POLICY_ADAPTIVE else 0
        return {
            "header": (sizeof(Header) + probes, 1, sizeof(Header) + probes),
            "mappings": (sizeof(CMapping), header.nr_mappings, header.nr_mappings_used * sizeof(CMapping)),
            "directory": (4, header.nr_buckets_max, load_relaxed_u32(&header.nr_buckets) * 4),
            "nodes": (320, header.nr_nodes, hint_u32(&header.pool.nr_used) * 320),
            "folios": (sizeof(CFolio), header.nr_frames, descriptor_bytes(&self.seg)),
            "frames": (PAGE_SIZE, header.nr_frames, (self.seg.nr_frames - balloon_present(&self.seg)
                                                      - load_relaxed_u32(&header.nr_free)) * PAGE_SIZE),
        }

    def check(self):
        """Proves every invariant of a segment at rest: no other thread may be in a call.

        Raises AssertionError naming the broken invariant, the place and both values.
        Context: takes no lock; stops the background reclaimer's effects only by being called at rest.
        """
        cdef Finding finding
        cdef bint good = False
        cdef int tries = 0
        memset(&finding, 0, sizeof(Finding))
        while not good and tries < 50:      # the background reclaimer may be at work: a finding must last
            with nogil:
                good = segment_verify(&self.seg, &finding)
                if not good:
                    futex_wait(&self.seg.header.memory_event, load_relaxed_u32(&self.seg.header.memory_event), 2000000)
            tries += 1
        if not good:
            raise AssertionError(f"{_FINDINGS[finding.what]} (at {finding.where}: expected {finding.expected}, "
                                 f"found {finding.found})")

    def alloc_folio(self, unsigned int order=0, bint hard=True):
        """Allocates a folio of 2**order pages, reclaiming if needed.

        hard: try everything; False for an allocation that has something to fall back to.
        Returns a Folio (in no mapping, unlocked), or None when nothing could be freed.
        Context: releases the GIL; never waits.
        """
        cdef CFolio* folio
        if order > MAX_ORDER:
            raise ValueError(f"order must be in 0..{MAX_ORDER}, not {order}")
        with nogil:
            folio = folio_alloc(&self.seg, order, hard)
            if folio != NULL and not nodes_ensure(&self.seg):
                folio_put(&self.seg, folio)
                folio = NULL
        return None if folio == NULL else folio_object(self, folio)

    def wait_for_memory(self, double timeout_s):
        """Sleeps until memory may have become free, at most timeout_s seconds. Context: releases the GIL."""
        cdef uint32_t event
        cdef int64_t timeout_ns = <int64_t>(timeout_s * 1e9)
        cdef int r
        add_acq_rel_u32(&self.seg.header.nr_waiting_for_memory, 1)
        try:
            event = load_acquire_u32(&self.seg.header.memory_event)
            with nogil:
                r = futex_wait(&self.seg.header.memory_event, event, timeout_ns)
            PyErr_CheckSignals()
        finally:
            sub_acq_rel_u32(&self.seg.header.nr_waiting_for_memory, 1)

    # -- what may be dirty -------------------------------------------------------------------------------------------

    def set_dirty_limits(self, uint32_t limit, uint32_t background):
        """Sets how many pages may be dirty or under write-back, and above how many the flusher starts."""
        header_set_dirty_limits(self.seg.header, limit, background)

    @property
    def dirty_limits(self):
        """(pages that may be dirty or under write-back, pages above which the flusher starts)"""
        return hint_u32(&self.seg.header.dirty_limit), hint_u32(&self.seg.header.dirty_background)

    @property
    def nr_dirty_charged(self):
        """Pages that are dirty or under write-back."""
        return dirty_charged(&self.seg)

    @property
    def flusher_word(self):
        """Changes when the flusher is asked to look."""
        return load_acquire_u32(&self.seg.header.flusher_word)

    def wake_flusher(self):
        """Asks the flusher to look."""
        flusher_wake(&self.seg)

    def wait_flusher(self, uint32_t word, double timeout_s):
        """Sleeps until the flusher is asked to look after `flusher_word` was `word`, at most timeout_s seconds.
        Context: releases the GIL."""
        cdef int64_t timeout_ns = <int64_t>(timeout_s * 1e9)
        with nogil:
            futex_wait(&self.seg.header.flusher_word, word, timeout_ns)

    def reclaim(self, uint32_t nr_pages):
        """Reclaims at least nr_pages if it can. Returns the pages freed."""
        cdef uint32_t freed
        with nogil:
            freed = reclaim_pages(&self.seg, nr_pages)
        return freed

    def fail_node_allocation(self, uint32_t nth):
        """Makes the nth coming allocation of an index node fail, once; 0: none. Context: for tests."""
        self.seg.pool.header.fail_countdown = nth

    def trim_shadows(self):
        """Gives up shadow nodes above the limit."""
        with nogil:
            shadow_nodes_trim(&self.seg)
