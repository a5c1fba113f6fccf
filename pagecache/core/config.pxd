"""Every limit and tunable of the engine, with its unit."""

cdef enum:
    PAGE_SHIFT = 12                 # bytes of a page as a power of two
    PAGE_SIZE = 4096                # bytes
    MAX_ORDER = 9                   # largest folio: 2**9 pages = 2 MiB
    NR_ORDERS = 10
    FRAME_ALIGNMENT = 2097152       # bytes; frames start on a huge-page boundary
    BLOCK_FRAMES = 512              # of a huge page
    MAX_FRAMES = 0x10000000         # 2**28 frames = 1 TiB: what an index entry can address

    SWAP_CLUSTER_MAX = 32           # folios a reclaim scan isolates at once
    DEF_PRIORITY = 12               # reclaim scans list size >> priority, from here down to 0
    BATCH_PAGES = 512               # most folios one batch (a readahead window piece, a truncation step) holds
    STAT_SHARDS = 16                # counter lines, PC_THREAD_SLOTS of them; one of them for all threads beyond

cdef enum:
    NIL = 0xFFFFFFFF                # "no such index" in every 32-bit link
