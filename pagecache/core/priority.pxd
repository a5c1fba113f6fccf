"""Priorities of objects and shares of tenants: what leaves before the policy chooses, and what it passes by.

    low      (FADV_NOREUSE) pages stand on the list FIRST and leave before anything else, in the order they came; of
             what was read ahead first what was used already.
    normal   the policy decides.
    high     the policy passes them by while something else may leave.
    keep     pages stand on the list LAST while the cache has room, and on FIRST when it is full: what is there stays, so
             that reading an object once an epoch in random order hits for the part of it that fits. No order of
             eviction does better there, and any that follows recency does worse.

A tenant is a group of mappings with a share of the budget.  It may have more while no other needs it.  As long as it
has no more than its share, the policy passes its pages by while others have some: what is borrowed goes back first
(memory.low of Linux's control groups).

What is passed by moves to the head of its list, so that it is met once in a round of the list.  Only an allocation that
finds nothing else breaks into what is high, kept, or within a share; readahead and background reclaim never do.
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport hint_u32, load_relaxed_u32, load_relaxed_u64
from pagecache.core.config cimport SWAP_CLUSTER_MAX
from pagecache.core.folio cimport FOLIO_EVICT_FIRST, FOLIO_EVICT_LAST, folio_mapping
from pagecache.core.segment cimport (POLICY_KERNEL, PRIORITY_HIGH, PRIORITY_KEEP, PRIORITY_LOW, Folio, Mapping, Segment,
                                     segment_budget)

cdef enum:
    BATCH_PART = 128                # of the frames: what is reclaimed at once, 32 pages at most


cdef inline uint32_t reclaim_batch(Segment* seg, uint32_t nr) noexcept nogil:
    """Pages to reclaim for a caller that needs nr: more, so that not every one has to; of a small cache a small part."""
    cdef uint32_t batch = SWAP_CLUSTER_MAX
    if seg.header.policy != POLICY_KERNEL and segment_budget(seg) // BATCH_PART < SWAP_CLUSTER_MAX:
        batch = segment_budget(seg) // BATCH_PART
    return nr if nr > batch else batch


cdef inline uint32_t priority_flags(Segment* seg, const Mapping* mapping) noexcept nogil:
    """The flag of a folio that enters a mapping now: FIRST, LAST or none. The cache is full when no more is free than
    reclaim leaves free."""
    cdef uint32_t priority = load_relaxed_u32(&mapping.priority)
    if priority == PRIORITY_LOW:
        return FOLIO_EVICT_FIRST
    if priority != PRIORITY_KEEP:
        return 0
    if load_relaxed_u32(&seg.header.nr_free) >= hint_u32(&seg.header.watermark_high) + reclaim_batch(seg, 1):
        return FOLIO_EVICT_LAST
    return FOLIO_EVICT_FIRST


cdef inline bint folio_is_protected(Segment* seg, const Folio* folio) noexcept nogil:
    """Whether the policy passes a folio by while something else may leave."""
    cdef Mapping* mapping = &seg.mappings[folio_mapping(folio)]
    cdef uint32_t tenant
    if load_relaxed_u32(&mapping.priority) == PRIORITY_HIGH:
        return True
    tenant = load_relaxed_u32(&mapping.tenant)
    return tenant != 0 and (load_relaxed_u64(&seg.header.tenants[tenant].nr_pages)
                            <= load_relaxed_u64(&seg.header.tenants[tenant].share_pages))
