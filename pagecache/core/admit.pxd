"""Which policy admits a folio that enters the page cache; the policies' start."""
from libc.stdint cimport uint32_t
from pagecache.core.adaptive cimport adaptive_init, rules_of_probe
from pagecache.core.folio cimport folio_index, folio_mapping, folio_set
from pagecache.core.ghost cimport folio_hash
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport lru_link
from pagecache.core.priority cimport priority_flags
from pagecache.core.queues cimport queues_admit
from pagecache.core.segment cimport POLICY_ADAPTIVE, POLICY_KERNEL, POLICY_LIRS, POLICY_S3FIFO, POLICY_SIEVE, Folio, Segment
from pagecache.core.sieve cimport sieve_admit


cdef inline void policy_init(Segment* seg, uint32_t policy) noexcept nogil:
    """Chooses the policy of a segment that is still empty."""
    seg.header.policy = policy
    if policy == POLICY_S3FIFO:
        rules_of_probe(0, &seg.header.rules)
    elif policy == POLICY_LIRS:
        rules_of_probe(1, &seg.header.rules)
    elif policy == POLICY_ADAPTIVE:
        adaptive_init(seg)


cdef inline void lru_admit(Segment* seg, Folio* folio) noexcept nogil:
    """Puts a folio that entered the page cache on its list. The folio is locked."""
    cdef uint32_t key = folio_hash(folio_mapping(folio), folio_index(folio))
    cdef uint32_t flags = priority_flags(seg, &seg.mappings[folio_mapping(folio)])
    futex_lock(&seg.header.lru_lock)
    if flags:
        folio_set(folio, flags)
    if flags or seg.header.policy == POLICY_KERNEL:
        lru_link(seg, folio, False)
    elif seg.header.policy == POLICY_SIEVE:
        sieve_admit(seg, folio)
    else:
        queues_admit(seg, folio, key)
    futex_unlock(&seg.header.lru_lock)
