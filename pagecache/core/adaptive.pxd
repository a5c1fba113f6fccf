"""The adaptive policy: two queues that follow the rules which miss least on a sample.

Five probes (probe.pxd) simulate small caches with five sets of rules, on one of 2**shift folios, chosen by hash: what a
cache of a 2**shift-th of the size misses on a 2**shift-th of the folios is what the whole misses.  Every probe sees the
same folios, so their differences show long before any of the miss ratios is known well.

    the probes are fed   at once, when a watched folio enters the cache;
                         every eighth of a cacheful of admissions, with all watched folios that were used since: their
                         flags are collected, so that nothing is added to the hit path
    they are compared    each quarter of a cacheful of uses; misses are halved every 16 cachefuls, so old ones fade
    the rules change     when another probe's lead is more than chance explains

A change moves nothing at once: the queues drift to their new shares.
All of it under lru_lock.  A turn looks at 1,024 descriptors at most.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.folio cimport FOLIO_LRU, folio_index, folio_mapping, folio_test
from pagecache.core.ghost cimport folio_hash
from pagecache.core.policy cimport folio_collect
from pagecache.core.probe cimport probe_feed, probe_init
from pagecache.core.segment cimport (NR_PROBES, PROBE_FOLIOS, Adaptive, Folio, QueueRules, Segment, folio_number,
                                     segment_budget)

cdef enum:
    NR_SAMPLES_MAX = 1024
    SAMPLE_BITS_SHIFT = 10
    TICKS_OF_CAPACITY = 8
    DECISIONS_OF_CAPACITY = 4
    FADE_CAPACITIES = 16
    START_WITH = 1                  # keeps what it has in a loop, which nothing that starts otherwise recovers


cdef inline void rules_set(QueueRules* rules, uint32_t small_permille, uint32_t by_recency,
                           uint32_t memory_percent) noexcept nogil:
    rules.small_permille = small_permille
    rules.by_recency = by_recency
    rules.memory_percent = memory_percent


cdef inline void rules_of_probe(uint32_t number, QueueRules* rules) noexcept nogil:
    """The five sets of rules: S3-FIFO, then LIRS with more and more room for what is recent."""
    if number == 0:
        rules_set(rules, 100, 0, 100)
    elif number == 1:
        rules_set(rules, 10, 1, 400)
    elif number == 2:
        rules_set(rules, 100, 1, 400)
    elif number == 3:
        rules_set(rules, 300, 1, 400)
    else:
        rules_set(rules, 900, 1, 200)


cdef inline void adaptive_reset(Segment* seg, uint32_t nr_folios) noexcept nogil:
    """Empties the probes and fits them to a cache of so many folios."""
    cdef Adaptive* adaptive = seg.adaptive
    cdef QueueRules rules
    cdef uint32_t i, shift = 0
    while nr_folios >> shift > PROBE_FOLIOS:
        shift += 1
    for i in range(NR_PROBES):
        rules_of_probe(i, &rules)
        probe_init(&adaptive.probes[i], &rules, nr_folios >> shift if nr_folios >> shift > 0 else 1)
    adaptive.shift = shift
    adaptive.nr_samples = 0
    adaptive.nr_fed = 0
    adaptive.nr_weighed = 0
    adaptive.last_tick = seg.header.policy_clock


cdef inline void adaptive_init(Segment* seg) noexcept nogil:
    seg.adaptive.current = START_WITH
    rules_of_probe(START_WITH, &seg.header.rules)
    adaptive_reset(seg, segment_budget(seg))


cdef inline void adaptive_fit(Segment* seg) noexcept nogil:
    """Fits the probes again when the folios are fewer or more by a third than they were made for. The cache is full."""
    cdef uint64_t expected = <uint64_t>seg.adaptive.probes[0].capacity << seg.adaptive.shift
    cdef uint64_t nr = seg.header.nr_listed
    if nr > 0 and (nr * 3 < expected * 2 or nr * 2 > expected * 3):
        adaptive_reset(seg, <uint32_t>nr)


cdef inline bint lead_is_certain(uint64_t ours, uint64_t theirs) noexcept nogil:
    """Whether fewer misses are fewer by more than half a percent and than chance: only folios that one probe held and
    another did not differ, about a seventh of the misses."""
    cdef uint64_t lead = ours - theirs
    return theirs + 1 < ours and lead * 200 > ours and lead * lead * 20 > (ours + theirs) * 3


cdef inline void adaptive_decide(Segment* seg) noexcept nogil:
    """Compares the probes, follows the best, and lets the past fade."""
    cdef Adaptive* adaptive = seg.adaptive
    cdef uint32_t i, best = adaptive.current
    for i in range(NR_PROBES):
        if adaptive.probes[i].misses < adaptive.probes[best].misses:
            best = i
    if best != adaptive.current and lead_is_certain(adaptive.probes[adaptive.current].misses,
                                                    adaptive.probes[best].misses):
        adaptive.current = best
        adaptive.nr_switches += 1
        rules_of_probe(best, &seg.header.rules)
    if adaptive.nr_weighed >= FADE_CAPACITIES * adaptive_unit(adaptive):
        adaptive.nr_weighed //= 2
        for i in range(NR_PROBES):
            adaptive.probes[i].misses //= 2


cdef inline uint32_t adaptive_unit(const Adaptive* adaptive) noexcept nogil:
    return adaptive.probes[0].capacity if adaptive.probes[0].capacity > 16 else 16


cdef inline void adaptive_feed(Segment* seg, uint32_t key) noexcept nogil:
    cdef Adaptive* adaptive = seg.adaptive
    cdef uint32_t i
    for i in range(NR_PROBES):
        probe_feed(&adaptive.probes[i], key)
    adaptive.nr_fed += 1
    adaptive.nr_weighed += 1
    if adaptive.nr_fed >= adaptive_unit(adaptive) // DECISIONS_OF_CAPACITY:
        adaptive.nr_fed = 0
        adaptive_decide(seg)


cdef inline void adaptive_collect(Segment* seg) noexcept nogil:
    """Feeds the probes with the watched folios that were used since the last time; forgets those that are gone. One that
    is on no list may be on its way into or out of a mapping: its policy_data is not the policy's."""
    cdef Adaptive* adaptive = seg.adaptive
    cdef uint32_t i = 0, key
    cdef Folio* folio
    while i < adaptive.nr_samples:
        key = adaptive.samples[i].key
        folio = &seg.folios[adaptive.samples[i].frame]
        if folio_mapping(folio) == 0 or folio_hash(folio_mapping(folio), folio_index(folio)) != key:
            adaptive.nr_samples -= 1
            adaptive.samples[i] = adaptive.samples[adaptive.nr_samples]
            continue
        if folio_test(folio, FOLIO_LRU) and folio_collect(folio):
            adaptive_feed(seg, key)
        i += 1


cdef inline void adaptive_admitted(Segment* seg, Folio* folio, uint32_t key) noexcept nogil:
    """A folio enters the cache; it is on no list yet."""
    cdef Adaptive* adaptive = seg.adaptive
    cdef uint32_t tick = seg.header.policy_pages // TICKS_OF_CAPACITY
    if seg.header.policy_clock - adaptive.last_tick >= (tick if tick > 0 else 1):
        adaptive.last_tick = seg.header.policy_clock
        adaptive_collect(seg)
    if (key >> SAMPLE_BITS_SHIFT) & ((<uint32_t>1 << adaptive.shift) - 1):
        return
    adaptive_feed(seg, key)
    if adaptive.nr_samples < NR_SAMPLES_MAX:
        adaptive.samples[adaptive.nr_samples].frame = folio_number(seg, folio)
        adaptive.samples[adaptive.nr_samples].key = key
        adaptive.nr_samples += 1
