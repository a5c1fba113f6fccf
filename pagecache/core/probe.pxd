"""A probe: a small cache of up to 255 folios that exists only as numbers, fed with a sample of the uses of the real one.

It works by the same rules as the two queues of `queues.pxd`, so that probes with different rules tell which of them would
miss least.  Folios are keys (hashes); queue 0 is the small one, queue 1 the main one.  Entry 0 means "none".
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset
from pagecache.core.ghost cimport ghost_add, ghost_slot, ghost_take
from pagecache.core.segment cimport Probe, ProbeEntry, QueueRules

cdef enum:
    PROBE_SMALL = 0
    PROBE_MAIN = 1
    PROBE_BUCKETS_MASK = 511
    PROBE_TAIL_STEPS = 8
    PROBE_TRIM_STEPS = 32


cdef inline void probe_init(Probe* probe, const QueueRules* rules, uint32_t capacity) noexcept nogil:
    """Empties a probe. capacity: folios, 1..PROBE_FOLIOS."""
    memset(probe, 0, sizeof(Probe))
    probe.rules = rules[0]
    probe.capacity = capacity


cdef inline uint32_t probe_small(const Probe* probe) noexcept nogil:
    cdef uint32_t nr = (probe.capacity * probe.rules.small_permille + 500) // 1000
    return nr if nr > 0 else 1


cdef inline bint probe_main_has_room(const Probe* probe) noexcept nogil:
    return probe.nr[PROBE_MAIN] + probe_small(probe) < probe.capacity


cdef inline void probe_link(Probe* probe, uint32_t at, uint8_t queue) noexcept nogil:
    cdef ProbeEntry* entry = &probe.entries[at]
    entry.queue = queue
    entry.previous = 0
    entry.next = probe.first[queue]
    if entry.next != 0:
        probe.entries[entry.next].previous = <uint16_t>at
    else:
        probe.last[queue] = <uint16_t>at
    probe.first[queue] = <uint16_t>at
    probe.nr[queue] += 1


cdef inline void probe_unlink(Probe* probe, uint32_t at) noexcept nogil:
    cdef ProbeEntry* entry = &probe.entries[at]
    if entry.previous != 0:
        probe.entries[entry.previous].next = entry.next
    else:
        probe.first[entry.queue] = entry.next
    if entry.next != 0:
        probe.entries[entry.next].previous = entry.previous
    else:
        probe.last[entry.queue] = entry.previous
    probe.nr[entry.queue] -= 1


cdef inline uint32_t probe_find(const Probe* probe, uint32_t key) noexcept nogil:
    cdef uint32_t at = probe.buckets[(key >> 16) & PROBE_BUCKETS_MASK]
    while at != 0 and probe.entries[at].key != key:
        at = probe.entries[at].chain
    return at


cdef inline uint32_t probe_new(Probe* probe, uint32_t key) noexcept nogil:
    """An entry for a key, in its bucket, in no queue."""
    cdef uint16_t* bucket = &probe.buckets[(key >> 16) & PROBE_BUCKETS_MASK]
    cdef uint32_t at = probe.free
    if at != 0:
        probe.free = probe.entries[at].chain
    else:
        probe.nr_touched += 1
        at = probe.nr_touched
    probe.entries[at].key = key
    probe.entries[at].stamp = probe.clock
    probe.entries[at].uses = 0
    probe.entries[at].chain = bucket[0]
    bucket[0] = <uint16_t>at
    return at


cdef inline void probe_evict(Probe* probe, uint32_t at) noexcept nogil:
    """Removes an entry and leaves its ghost."""
    cdef ProbeEntry* entry = &probe.entries[at]
    cdef uint16_t* link = &probe.buckets[(entry.key >> 16) & PROBE_BUCKETS_MASK]
    while link[0] != at:
        link = &probe.entries[link[0]].chain
    link[0] = entry.chain
    probe_unlink(probe, at)
    ghost_add(&probe.ghosts[ghost_slot(entry.key, probe.capacity)], entry.key, entry.stamp, probe.capacity)
    entry.chain = probe.free
    probe.free = <uint16_t>at


cdef inline bint probe_rotate_used(Probe* probe) noexcept nogil:
    """Sends the main tail round if it was used. Returns whether it was."""
    cdef uint32_t tail = probe.last[PROBE_MAIN]
    if probe.entries[tail].uses == 0:
        return False
    probe.entries[tail].uses -= 1
    probe.entries[tail].stamp = probe.clock
    probe_unlink(probe, tail)
    probe_link(probe, tail, PROBE_MAIN)
    return True


cdef inline bint probe_main_admits(Probe* probe, uint32_t stamp) noexcept nogil:
    cdef uint32_t tail
    cdef int step
    if not probe.rules.by_recency or probe_main_has_room(probe):
        return True
    for step in range(PROBE_TAIL_STEPS):
        if probe.last[PROBE_MAIN] == 0 or not probe_rotate_used(probe):
            break
    tail = probe.last[PROBE_MAIN]
    return tail == 0 or (probe.entries[tail].uses == 0 and probe.entries[tail].stamp < stamp)


cdef inline void probe_main_drop(Probe* probe) noexcept nogil:
    cdef uint32_t tail = probe.last[PROBE_MAIN]
    probe_unlink(probe, tail)
    probe_link(probe, tail, PROBE_SMALL)


cdef inline void probe_enter_main(Probe* probe, uint32_t at) noexcept nogil:
    cdef int step
    probe_link(probe, at, PROBE_MAIN)
    if not probe.rules.by_recency:
        return
    for step in range(PROBE_TRIM_STEPS):
        if probe.nr[PROBE_MAIN] == 0 or probe.nr[PROBE_MAIN] + probe_small(probe) <= probe.capacity:
            return
        if not probe_rotate_used(probe):
            probe_main_drop(probe)


cdef inline bint probe_small_step(Probe* probe) noexcept nogil:
    """Evicts the small tail, or moves it on if it was used. Returns whether it left."""
    cdef uint32_t tail = probe.last[PROBE_SMALL]
    cdef bint enters
    if probe.entries[tail].uses == 0:
        probe_evict(probe, tail)
        return True
    enters = probe_main_admits(probe, probe.entries[tail].stamp)
    probe_unlink(probe, tail)
    probe.entries[tail].uses = 0
    probe.entries[tail].stamp = probe.clock
    if enters:
        probe_enter_main(probe, tail)
    else:
        probe_link(probe, tail, PROBE_SMALL)
    return False


cdef inline void probe_make_room(Probe* probe) noexcept nogil:
    """Evicts one entry. Every step clears a use or moves an entry nearer to its end, so it ends."""
    while True:
        if probe.nr[PROBE_SMALL] > 0 and (probe.nr[PROBE_SMALL] >= probe_small(probe) or probe.nr[PROBE_MAIN] == 0):
            if probe_small_step(probe):
                return
        elif not probe_rotate_used(probe):
            if not probe.rules.by_recency:
                probe_evict(probe, probe.last[PROBE_MAIN])
                return
            probe_main_drop(probe)


cdef inline void probe_feed(Probe* probe, uint32_t key) noexcept nogil:
    """One use of a folio."""
    cdef uint32_t at = probe_find(probe, key), stamp = 0
    cdef bint known
    if at != 0:
        if probe.entries[at].uses < 2:
            probe.entries[at].uses += 1
        return
    probe.misses += 1
    probe.clock += 1
    known = ghost_take(&probe.ghosts[ghost_slot(key, probe.capacity)], key, probe.clock, probe.capacity, &stamp)
    if known:
        known = (probe.clock - stamp) * 100 <= probe.capacity * probe.rules.memory_percent
    if probe.nr[PROBE_SMALL] + probe.nr[PROBE_MAIN] >= <int>probe.capacity:
        probe_make_room(probe)
    at = probe_new(probe, key)
    if probe.rules.by_recency and probe_main_has_room(probe):
        probe_link(probe, at, PROBE_MAIN)
    elif known and probe_main_admits(probe, stamp):
        probe_enter_main(probe, at)
    else:
        probe_link(probe, at, PROBE_SMALL)
