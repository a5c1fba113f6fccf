"""The segment: one mapped region that holds all engine state.

    header | mappings | directory | xarray nodes | folio descriptors (one per frame) | blocks | probes | page frames

It has frames for the largest size that the cache may get; how many may be used now is the balloon's (balloon.pxd).

Every link inside is a 32-bit number of a slot in one of these arrays, so that the region works at any address; a
`Segment` is one process's view of it (absolute addresses, computed once).  Every array is type-stable: a descriptor
slot is always a descriptor, and so on, so a reader without a lock that follows a stale number still reads a valid
object of the right type, and then validates it.

Benefits: no epochs or hazard pointers, sharing between processes and survival of a restart stay possible.
Costs: arrays are sized for the worst case (virtual memory only: pages of the region are touched as they are used).

Folio descriptor (64 bytes, one cache line)
    state     flags (folio.pxd) in bits 0..27, order in bits 28..31: a reader validates all with one load
    refcount  references; 0 = free or frozen
    seq       even; changes with every removal, replacement and split, odd during a write into the folio
    mapping   number of the mapping, 0 when not in the page cache
    index     page index of the first page; kept after removal, truncation relies on it
Descriptors of frames inside a larger folio or a larger free block stay {state 0, refcount 0, mapping 0}: what a frame
is, is said by the head of the block it lies in.
"""
from libc.errno cimport EINVAL, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from pagecache.core.atomic cimport (pc_u32, pc_u64, add_relaxed_u64, load_relaxed_u32, load_relaxed_u64, set_hint_u32,
                                    store_relaxed_u32, store_relaxed_u64)
from pagecache.core.config cimport (BLOCK_FRAMES, FRAME_ALIGNMENT, MAX_FRAMES, NIL, NR_ORDERS, PAGE_SHIFT, PAGE_SIZE,
                                    STAT_SHARDS)
from pagecache.core.lock cimport RwSem, FutexLock
from pagecache.core.memory cimport memory_advise_huge, memory_advise_nodump, memory_map, memory_poison, memory_unmap
from pagecache.core.thread cimport thread_slot
from pagecache.core.xa_entry cimport XA_NODES_MAX
from pagecache.core.xa_node cimport XaGroup, XaNode, XaPool, XaPoolHeader, XArray
from pagecache.core.xa_pool cimport GROUP_NODES, pool_nr_groups, xa_pool_init

cdef enum:
    SEGMENT_MAGIC = 0x50434853      # "PCHS"
    SEGMENT_VERSION = 8
    DIRTY_PART = 5                  # a fifth of the frames may be dirty, a tenth starts the flusher
    BACKGROUND_PART = 10
    IDLE_KEPT_MIN = 16              # mappings without pages that are kept however small the budget is
    IDLE_KEPT_PART = 64             # and one for so many of its pages: 0.2 % of the bytes

cdef enum:
    MAPPING_STABLE_WRITES = 1       # Mapping.flags: the store needs bytes that stay as they are while it writes them

cdef extern from *:
    """
    #define PC_ALL_ON_DISK UINT64_MAX
    """
    const uint64_t ALL_ON_DISK "PC_ALL_ON_DISK"

cdef enum LruList:
    LRU_INACTIVE = 0
    LRU_ACTIVE = 1
    LRU_UNEVICTABLE = 2
    LRU_AHEAD = 3                   # brought in, and not used when last looked at
    LRU_FIRST = 4                   # leaves before anything else (priority.pxd)
    LRU_LAST = 5                    # leaves when nothing else can
    NR_LRU_LISTS = 6

cdef enum PolicyNumber:             # Header.policy
    POLICY_KERNEL = 0
    POLICY_S3FIFO = 1
    POLICY_SIEVE = 2
    POLICY_LIRS = 3
    POLICY_ADAPTIVE = 4
    NR_POLICIES = 5

cdef enum PriorityNumber:           # Mapping.priority
    PRIORITY_NORMAL = 0
    PRIORITY_LOW = 1
    PRIORITY_HIGH = 2
    PRIORITY_KEEP = 3
    NR_PRIORITIES = 4

cdef enum:
    NR_TENANTS = 64                 # number 0 means "none"

cdef enum:
    PROBE_FOLIOS = 255              # most folios a probe holds (probe.pxd)
    NR_PROBES = 5

cdef enum Counter:                  # per shard, summed on reading; gauges go up and down
    NR_FILE_PAGES
    NR_FILE_HUGEPAGES               # pages in folios of order > 0
    NR_DIRTY
    NR_WRITEBACK
    NR_PINNED                       # pages held by views and page tables
    NR_SHADOWS
    HITS
    MISSES
    PGFAULT
    PGMAJFAULT
    PGACTIVATE
    PGDEACTIVATE
    PGREFILL
    PGSCAN_DIRECT
    PGSCAN_KSWAPD
    PGSTEAL_DIRECT
    PGSTEAL_KSWAPD
    PGROTATED
    ALLOCSTALL
    WORKINGSET_REFAULT
    WORKINGSET_ACTIVATE
    WORKINGSET_RESTORE
    WORKINGSET_NODERECLAIM
    NR_DIRTIED
    NR_THROTTLED_WRITTEN            # pages whose writers had to wait
    WRITEBACK_ERRORS                # requests
    NR_WRITTEN
    READAHEAD_PAGES
    READAHEAD_HITS
    READAHEAD_WASTED                # readahead pages evicted or dropped before they were used
    READAHEAD_ERRORS
    STORE_READS
    STORE_READ_BYTES
    STORE_WRITES
    STORE_WRITE_BYTES
    BYTES_ASKED
    DROP_PAGECACHE
    OPTIMISTIC_RETRIES
    NR_COUNTERS

ctypedef struct CounterShard:
    pc_u64[48] counts               # NR_COUNTERS of them; 6 cache lines, so no line is shared

ctypedef struct LruHead:
    uint32_t first                  # most recently added
    uint32_t last
    uint64_t nr_pages

ctypedef struct Tenant:             # some mappings that share a part of the budget
    pc_u64 nr_pages                 # cached, of its mappings
    pc_u64 share_pages              # that are passed by as long as others have some (priority.pxd)

ctypedef struct Folio:
    pc_u32 state
    pc_u32 refcount
    pc_u32 seq
    pc_u32 mapping
    pc_u64 index
    uint32_t lru_prev               # lru_lock; in a free block: buddy lock
    uint32_t lru_next
    uint32_t policy_data            # owned by the eviction policy, under lru_lock
    pc_u32 nr_pins                  # views and page tables among the references
    pc_u64 dirtied_at_ns            # under the folio lock
    pc_u64 private_data
    uint64_t ghosts                 # lru_lock: four evicted folios whose hash leads here (ghost.pxd); outlives the folio

ctypedef struct QueueRules:         # how the two queues work (queues.pxd)
    uint32_t small_permille         # of the pages: what the small queue is entitled to
    uint32_t by_recency             # 1: what enters the main queue must beat its tail (LIRS); 0: what was used again
    uint32_t memory_percent         # of the pages: how many admissions ago an eviction may be to count

ctypedef struct ProbeEntry:
    uint32_t key                    # hash of the folio
    uint32_t stamp
    uint16_t previous
    uint16_t next
    uint16_t chain
    uint8_t queue
    uint8_t uses

ctypedef struct Probe:              # a small cache that is only simulated
    QueueRules rules
    uint32_t capacity               # folios
    uint32_t clock                  # admissions
    uint32_t misses                 # decayed
    uint16_t[2] first
    uint16_t[2] last
    uint16_t[2] nr
    uint16_t free
    uint16_t nr_touched
    ProbeEntry[256] entries
    uint16_t[512] buckets
    uint64_t[256] ghosts

ctypedef struct Sample:             # a resident folio whose uses are watched
    uint32_t frame
    uint32_t key

ctypedef struct Adaptive:           # all of it: lru_lock
    uint32_t current                # probe whose rules the cache follows
    uint32_t shift                  # one of 2**shift folios is watched
    uint32_t nr_samples
    uint32_t last_tick              # policy_clock
    uint32_t nr_fed                 # since the last decision
    uint32_t nr_weighed             # decayed
    uint32_t nr_switches
    uint32_t ready
    Sample[1024] samples
    Probe[5] probes                 # NR_PROBES of them

ctypedef struct Mapping:
    XArray pages                    # the folio index; pages.lock is xa_lock
    RwSem invalidate_lock
    pc_u64 size                     # i_size, bytes
    pc_u64 nrpages                  # cached pages, shadows not counted; written under xa_lock
    pc_u32 nr_truncations                  # changes when i_size has become smaller, before anything is truncated
    pc_u32 flags
    pc_u32 wb_err                   # errseq
    pc_u32 in_use
    uint32_t next_free              # mapping_lock
    pc_u32 nr_inflight              # background requests
    uint64_t writeback_index        # page; racy by design
    pc_u64[2] key_hash              # mmh3 of the store key; fixed while in the directory
    RwSem inode_lock                # i_rwsem: writers and truncation, one at a time
    pc_u32 own_writes               # writes to the store under way: its stamp says nothing meanwhile (stamp.pxd)
    pc_u32 stamp_seq                # changes with the stamp
    pc_u64 stamp_mtime_ns           # of the file whose bytes are cached
    pc_u64 stamp_ctime_ns
    pc_u64 stamp_size
    pc_u64 disk_size                # bytes the store has of the object; ALL_ON_DISK: as many as i_size
    pc_u64 dirtied_when_ns          # when the mapping, clean before, became dirty
    pc_u64 nr_misses                # reads that were not served from the cache alone, since the mapping was taken
    pc_u64 missed_bytes             # what those were given after they had missed
    pc_u64 store_reads              # requests
    pc_u64 store_read_bytes
    pc_u64 readahead_pages          # brought in before they were asked for
    pc_u64 readahead_wasted         # of those: left the cache before they were used
    pc_u32 priority                 # PriorityNumber
    pc_u32 tenant                   # written under xa_lock
    pc_u32 generation               # odd: not in the directory, or its text changes (directory.pxd)
    pc_u32 hash_next                # next record of the bucket, 0: none; mapping_lock
    pc_u32 holding                  # Holding; mapping_lock
    uint32_t idle_prev              # mapping_lock
    uint32_t idle_next
    uint32_t unused                 # for the member that holds it
    pc_u64 text_sizes               # bytes of key, validator and name, and flags
    pc_u64[32] text                 # TEXT_WORDS of them

ctypedef struct Block:              # of 512 frames (block.pxd)
    pc_u32 seq                      # 0: its descriptors are in use, or were never
    uint32_t next                   # buddy_lock: in the balloon's list of whole blocks

ctypedef struct Header:
    uint32_t magic
    uint32_t version
    uint64_t total_bytes
    uint64_t mappings_offset
    uint64_t buckets_offset
    uint64_t nodes_offset
    uint64_t folios_offset
    uint64_t frames_offset
    uint64_t groups_offset
    uint64_t blocks_offset
    uint64_t adaptive_offset
    uint32_t nr_frames
    uint32_t nr_nodes
    uint32_t nr_mappings
    uint32_t nr_buckets_max
    uint32_t has_data               # 0: descriptors only, for running access traces
    uint64_t layout_sum             # of everything above, which never changes
    FutexLock buddy_lock             # guards the free lists
    uint32_t[16] free_first         # NR_ORDERS of them
    uint32_t[16] balloon_first      # buddy_lock: what is in the balloon, NR_ORDERS lists; whole blocks are linked in Block
    pc_u32 nr_free                  # frames; written under buddy_lock
    pc_u32 nr_balloon               # frames of blocks in the balloon; written under buddy_lock
    pc_u32 nr_opened                # frames that were ever used, those before it; written under buddy_lock
    pc_u32 open_limit               # frames that may be: from nr_opened to here they are free; written under buddy_lock
    pc_u32 budget                   # pages: the size of the cache now
    pc_u32 nr_metadata              # pages of everything but frames that were ever touched
    pc_u32 nr_record_pages          # of mappings: charged and populated
    pc_u32 nr_out                   # blocks whose descriptors are the system's
    pc_u32 nr_unreturned            # frames in the balloon whose memory the system did not take
    pc_u32 fail_advice              # fault injection: so many times from now on the system takes no memory
    pc_u32 nr_waiting_for_memory
    pc_u32 memory_event             # changes whenever memory may have become free
    FutexLock lru_lock               # guards the lists
    LruHead[6] lru                  # NR_LRU_LISTS of them
    pc_u64 nonresident_age          # pages
    pc_u64 nr_refault_activated     # since the beginning
    uint64_t refault_activated_seen # lru_lock
    uint32_t policy                 # PolicyNumber; fixed when the segment is made
    uint32_t policy_clock           # lru_lock: pages admitted
    uint32_t policy_pages           # lru_lock: pages on the lists when reclaim last began
    uint32_t nr_listed              # lru_lock: folios on the policy's lists
    uint32_t sieve_hand             # lru_lock: folio to look at next, or NIL
    QueueRules rules                # lru_lock
    FutexLock mapping_lock           # guards the free list of mappings, the directory, and who holds a mapping
    uint32_t free_mapping
    uint32_t nr_mappings_touched    # mappings ever used; those beyond were never touched
    uint32_t nr_mappings_used
    pc_u32 nr_buckets               # of the directory; those beyond were never touched
    uint32_t nr_known               # mappings in the directory
    uint32_t nr_idle_mappings       # without a holder
    uint32_t nr_listed_mappings     # of those: without pages, so that they may be reused
    uint32_t idle_first             # longest without pages
    uint32_t idle_last
    uint32_t idle_kept              # mappings without pages that are kept before one of them is reused
    XaPoolHeader pool
    uint32_t watermark_low          # frames: background reclaim starts below
    uint32_t watermark_high         # frames: and stops above
    pc_u32 kswapd_word              # 0 asleep, 1 asked to run, 2 asked to end
    uint32_t max_nodes              # shadows are given up above this many nodes
    pc_u32 nr_dirty_charged         # pages that are dirty or under write-back: never above dirty_limit
    uint32_t dirty_limit            # pages: writers wait
    uint32_t dirty_background       # pages: the flusher starts
    pc_u32 flusher_word             # changes when the flusher is asked to look
    Tenant[64] tenants              # NR_TENANTS of them
    CounterShard[16] shards         # STAT_SHARDS of them

ctypedef struct Segment:
    char* base
    Header* header
    Mapping* mappings
    pc_u32* buckets                 # first record of each bucket of the directory, 0: none
    XaPool pool
    Folio* folios
    Block* blocks
    Adaptive* adaptive
    char* frames
    uint32_t nr_frames
    bint dead                       # set in the child of a fork: nothing here may be used
    bint poisons                    # free frames are poisoned (AddressSanitizer): they are not used at another address
    bint is_shared                  # the region is a memory file
    bint is_pinned                  # the frames are registered with io_uring: their memory stays
    uint64_t total_bytes


cdef inline uint64_t round_up(uint64_t value, uint64_t alignment) noexcept nogil:
    return (value + alignment - 1) // alignment * alignment


cdef inline uint32_t segment_nr_nodes(uint32_t nr_frames) noexcept nogil:
    """Nodes for the worst case, every cached page alone in its branch, plus the paths above; as many as there can be."""
    cdef uint64_t nr_nodes = <uint64_t>nr_frames * 5 + 4096
    if nr_nodes > <uint64_t>XA_NODES_MAX:
        nr_nodes = XA_NODES_MAX
    return <uint32_t>(nr_nodes // GROUP_NODES * GROUP_NODES)


cdef inline uint32_t segment_nr_blocks(uint32_t nr_frames) noexcept nogil:
    return (nr_frames + BLOCK_FRAMES - 1) // BLOCK_FRAMES


cdef inline uint64_t segment_layout(Header* out, uint32_t nr_frames, uint32_t nr_mappings, bint has_data) noexcept nogil:
    """Fills in the offsets; returns the size of the region in bytes."""
    cdef uint64_t at = round_up(sizeof(Header), PAGE_SIZE)
    out.nr_frames = nr_frames
    out.nr_nodes = segment_nr_nodes(nr_frames)
    out.nr_mappings = nr_mappings
    out.nr_buckets_max = nr_mappings
    out.has_data = has_data
    out.mappings_offset = at
    at = round_up(at + <uint64_t>nr_mappings * sizeof(Mapping), PAGE_SIZE)
    out.buckets_offset = at
    at = round_up(at + <uint64_t>out.nr_buckets_max * sizeof(pc_u32), PAGE_SIZE)
    out.nodes_offset = at
    at = round_up(at + <uint64_t>out.nr_nodes * sizeof(XaNode), PAGE_SIZE)
    out.groups_offset = at
    at = round_up(at + <uint64_t>pool_nr_groups(out.nr_nodes) * sizeof(XaGroup), PAGE_SIZE)
    out.folios_offset = at
    at = round_up(at + <uint64_t>nr_frames * sizeof(Folio), PAGE_SIZE)
    out.blocks_offset = at
    at = round_up(at + <uint64_t>segment_nr_blocks(nr_frames) * sizeof(Block), PAGE_SIZE)
    out.adaptive_offset = at
    at = round_up(at + sizeof(Adaptive), FRAME_ALIGNMENT)
    out.frames_offset = at
    if has_data:
        at += <uint64_t>nr_frames * PAGE_SIZE
    out.total_bytes = round_up(at, PAGE_SIZE)
    return out.total_bytes


cdef inline void segment_view(Segment* seg, char* base, const Header* layout) noexcept nogil:
    """Points a view at a mapped and initialised region of a known layout."""
    seg.base = base
    seg.header = <Header*>base
    seg.mappings = <Mapping*>(base + layout.mappings_offset)
    seg.buckets = <pc_u32*>(base + layout.buckets_offset)
    seg.pool.header = &seg.header.pool
    seg.pool.nodes = <XaNode*>(base + layout.nodes_offset)
    seg.pool.groups = <XaGroup*>(base + layout.groups_offset)
    seg.folios = <Folio*>(base + layout.folios_offset)
    seg.blocks = <Block*>(base + layout.blocks_offset)
    seg.adaptive = <Adaptive*>(base + layout.adaptive_offset)
    seg.frames = base + layout.frames_offset
    seg.nr_frames = layout.nr_frames
    seg.total_bytes = layout.total_bytes
    seg.dead = False
    seg.poisons = False
    seg.is_shared = False
    seg.is_pinned = False


cdef inline uint64_t header_layout_sum(const Header* header) noexcept nogil:
    """Checksum (FNV-1a) of the fields before it."""
    cdef const uint8_t* at = <const uint8_t*>header
    cdef const uint8_t* end = <const uint8_t*>&header.layout_sum
    cdef uint64_t total = 0xCBF29CE484222325
    while at < end:
        total = (total ^ at[0]) * <uint64_t>0x100000001B3
        at += 1
    return total


cdef inline void header_set_dirty_limits(Header* header, uint32_t limit, uint32_t background) noexcept nogil:
    """Pages; at least one page may be dirty, and write-back begins below the limit."""
    limit = limit if limit > 0 else 1
    set_hint_u32(&header.dirty_limit, limit)
    set_hint_u32(&header.dirty_background, background if background < limit else limit // 2)


cdef inline void header_set_budget(Header* header, uint32_t nr_pages) noexcept nogil:
    """Sets how large the cache shall be, and what follows from that but the limits of what is dirty."""
    store_relaxed_u32(&header.budget, nr_pages)
    set_hint_u32(&header.max_nodes, nr_pages // 36 + 8)
    set_hint_u32(&header.idle_kept, IDLE_KEPT_MIN + nr_pages // IDLE_KEPT_PART)
    set_hint_u32(&header.watermark_low, nr_pages // 128 if nr_pages >= 1024 else 0)
    set_hint_u32(&header.watermark_high, nr_pages // 64 if nr_pages >= 1024 else 0)


cdef inline uint32_t segment_budget(Segment* seg) noexcept nogil:
    """Pages of the cache's size."""
    return load_relaxed_u32(&seg.header.budget)


cdef inline void segment_init_header(Header* header) noexcept nogil:
    cdef uint32_t i
    header.magic = SEGMENT_MAGIC
    header.version = SEGMENT_VERSION
    for i in range(NR_ORDERS):
        header.free_first[i] = NIL
        header.balloon_first[i] = NIL
    for i in range(NR_LRU_LISTS):
        header.lru[i].first = NIL
        header.lru[i].last = NIL
    header.sieve_hand = NIL
    header.policy_pages = header.nr_frames
    header.free_mapping = NIL
    header.nr_mappings_touched = 1          # number 0 means "no mapping"
    store_relaxed_u32(&header.nr_buckets, 1)
    xa_pool_init(&header.pool, header.nr_nodes, False)
    header_set_budget(header, header.nr_frames)
    header_set_dirty_limits(header, header.nr_frames // DIRTY_PART, header.nr_frames // BACKGROUND_PART)
    header.layout_sum = header_layout_sum(header)


cdef inline int segment_create(Segment* seg, uint32_t nr_frames, uint32_t nr_mappings, bint has_data,
                               int fd, uint64_t total_bytes) noexcept nogil:
    """Maps and initialises a new region (from fd, which has total_bytes, or anonymous). Returns 0 or -errno."""
    cdef Header layout
    cdef char* base
    memset(&layout, 0, sizeof(Header))
    segment_layout(&layout, nr_frames, nr_mappings, has_data)
    if fd >= 0 and total_bytes < layout.total_bytes:
        return -EINVAL
    base = <char*>memory_map(layout.total_bytes, FRAME_ALIGNMENT, fd)
    if base == NULL:
        return -errno if errno else -ENOMEM
    (<Header*>base)[0] = layout
    segment_init_header(<Header*>base)
    segment_view(seg, base, &layout)
    seg.poisons = has_data and fd < 0
    seg.is_shared = fd >= 0
    if seg.poisons:
        memory_poison(seg.frames, <size_t>nr_frames << PAGE_SHIFT)
    if has_data:
        memory_advise_nodump(seg.frames, <size_t>nr_frames << PAGE_SHIFT)
        if <uint64_t>nr_frames << PAGE_SHIFT >= FRAME_ALIGNMENT:
            memory_advise_huge(seg.frames, <size_t>nr_frames << PAGE_SHIFT)
    return 0


cdef inline bint header_layout_ok(const Header* header, uint64_t file_bytes) noexcept nogil:
    """Whether the fixed part of a header that came from outside describes a segment of this size and version."""
    cdef Header expected
    memset(&expected, 0, sizeof(Header))
    return (header.magic == SEGMENT_MAGIC and header.version == SEGMENT_VERSION
            and header.layout_sum == header_layout_sum(header) and 0 < header.nr_frames <= MAX_FRAMES
            and 0 < header.nr_mappings <= MAX_FRAMES and header.has_data <= 1
            and segment_layout(&expected, header.nr_frames, header.nr_mappings, header.has_data) == file_bytes
            and expected.mappings_offset == header.mappings_offset and expected.buckets_offset == header.buckets_offset
            and expected.nr_buckets_max == header.nr_buckets_max and expected.nodes_offset == header.nodes_offset
            and expected.folios_offset == header.folios_offset and expected.frames_offset == header.frames_offset
            and expected.groups_offset == header.groups_offset and expected.blocks_offset == header.blocks_offset
            and expected.adaptive_offset == header.adaptive_offset
            and header.total_bytes == file_bytes and header.nr_nodes == expected.nr_nodes)


cdef inline bint link_ok(uint32_t link, uint32_t nr) noexcept nogil:
    return link < nr or link == NIL


cdef inline bint header_links_ok(const Header* header) noexcept nogil:
    """Whether every number in the changing part of a header stays inside its array."""
    cdef const XaPoolHeader* pool = &header.pool
    cdef int i
    for i in range(NR_ORDERS):
        if not (link_ok(header.free_first[i], header.nr_frames) and link_ok(header.balloon_first[i], header.nr_frames)):
            return False
    for i in range(NR_LRU_LISTS):
        if not (link_ok(header.lru[i].first, header.nr_frames) and link_ok(header.lru[i].last, header.nr_frames)):
            return False
    return (load_relaxed_u32(&header.nr_free) <= header.nr_frames
            and load_relaxed_u32(&header.nr_opened) <= load_relaxed_u32(&header.open_limit) <= header.nr_frames
            and 0 < load_relaxed_u32(&header.budget) <= header.nr_frames
            and link_ok(header.free_mapping, header.nr_mappings)
            and header.policy < NR_POLICIES and link_ok(header.sieve_hand, header.nr_frames)
            and 0 < header.nr_mappings_touched <= header.nr_mappings and header.nr_mappings_used < header.nr_mappings
            and 0 < load_relaxed_u32(&header.nr_buckets) <= header.nr_buckets_max
            and header.idle_first < header.nr_mappings and header.idle_last < header.nr_mappings
            and pool.nr_nodes == header.nr_nodes and pool.nr_groups <= pool_nr_groups(pool.nr_nodes)
            and pool.nr_used <= pool.nr_nodes and link_ok(pool.partial_first, pool_nr_groups(pool.nr_nodes))
            and link_ok(pool.partial_last, pool_nr_groups(pool.nr_nodes))
            and link_ok(pool.empty_first, pool_nr_groups(pool.nr_nodes))
            and link_ok(pool.away_first, pool_nr_groups(pool.nr_nodes))
            and link_ok(pool.shadow_head, pool.nr_nodes) and link_ok(pool.shadow_tail, pool.nr_nodes))


cdef inline int segment_attach(Segment* seg, int fd, uint64_t file_bytes) noexcept nogil:
    """Maps an existing region again. Its header is not trusted: it is copied once, and the copy checked and used."""
    cdef Header copy
    cdef char* base
    if file_bytes < sizeof(Header):
        return -EINVAL
    base = <char*>memory_map(file_bytes, FRAME_ALIGNMENT, fd)
    if base == NULL:
        return -errno if errno else -ENOMEM
    copy = (<Header*>base)[0]
    if header_layout_ok(&copy, file_bytes) and header_links_ok(&copy):
        segment_view(seg, base, &copy)
        seg.is_shared = True
        return 0
    memory_unmap(base, file_bytes)
    return -EINVAL


cdef inline void count(Segment* seg, Counter which, int64_t by) noexcept nogil:
    """Adds to a counter on the calling thread's shard. A thread that has one of its own needs no atomic add."""
    cdef uint32_t slot = thread_slot()
    cdef pc_u64* cell
    if slot < STAT_SHARDS:
        cell = &seg.header.shards[slot].counts[<int>which]
        store_relaxed_u64(cell, load_relaxed_u64(cell) + <uint64_t>by)
    else:
        add_relaxed_u64(&seg.header.shards[0].counts[<int>which], <uint64_t>by)


cdef inline void count_store_read(Segment* seg, Mapping* mapping, uint64_t nbytes) noexcept nogil:
    """Counts a request to the store of a mapping and what it brought."""
    count(seg, STORE_READS, 1)
    count(seg, STORE_READ_BYTES, <int64_t>nbytes)
    add_relaxed_u64(&mapping.store_reads, 1)
    add_relaxed_u64(&mapping.store_read_bytes, nbytes)


cdef inline int64_t counted(Segment* seg, int which) noexcept nogil:
    """The sum over all shards."""
    cdef uint64_t total = 0
    cdef int shard
    for shard in range(STAT_SHARDS):
        total += load_relaxed_u64(&seg.header.shards[shard].counts[which])
    return <int64_t>total


cdef inline uint32_t folio_number(Segment* seg, Folio* folio) noexcept nogil:
    return <uint32_t>(folio - seg.folios)


cdef inline char* frame_address(Segment* seg, uint32_t frame) noexcept nogil:
    return seg.frames + (<uint64_t>frame << PAGE_SHIFT)
