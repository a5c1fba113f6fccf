"""Memory of index nodes goes back to the system by groups, as long as metadata cost frames."""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport hint_u32, load_acquire_u32, set_hint_u32
from pagecache.core.balloon cimport metadata_allowance, metadata_uncharge
from pagecache.core.block cimport pages_give_back
from pagecache.core.config cimport NIL, PAGE_SHIFT
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.segment cimport Segment
from pagecache.core.xa_node cimport XaPool, XaPoolHeader
from pagecache.core.xa_pool cimport (GROUP_NODES, GROUP_PAGES, group_open, group_pop_empty, group_put_away, group_size)

cdef enum:
    GROUPS_KEPT = 2                 # empty ones that stay, for what comes next


cdef inline bint group_leave(Segment* seg) noexcept nogil:
    """Gives an empty group back. Returns whether there was one, and the system took it."""
    cdef XaPool* pool = &seg.pool
    cdef XaPoolHeader* header = pool.header
    cdef uint32_t number = NIL
    cdef bint is_away
    futex_lock(&header.lock)
    if header.nr_empty > <uint32_t>GROUPS_KEPT:
        number = group_pop_empty(pool)
        set_hint_u32(&header.nr_spare, header.nr_spare - group_size(pool, number))
    futex_unlock(&header.lock)
    if number == NIL:
        return False
    is_away = pages_give_back(seg, &pool.nodes[number * GROUP_NODES], <size_t>GROUP_PAGES << PAGE_SHIFT)
    futex_lock(&header.lock)
    if is_away:
        group_put_away(pool, number)
    else:
        group_open(pool, number)
    futex_unlock(&header.lock)
    if is_away:
        metadata_uncharge(seg, GROUP_PAGES)
    return is_away


cdef inline void nodes_trim(Segment* seg) noexcept nogil:
    """Gives the memory of nodes back that are not used, as long as it takes the place of pages. No lock is held."""
    while (hint_u32(&seg.pool.header.nr_empty) > <uint32_t>GROUPS_KEPT
           and load_acquire_u32(&seg.header.nr_metadata) > metadata_allowance(seg) and group_leave(seg)):
        pass
