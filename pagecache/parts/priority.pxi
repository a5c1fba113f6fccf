_PRIORITIES = ("normal", "low", "high", "keep")     # in the order of PriorityNumber


def set_priority(AddressSpace mapping not None, str priority):
    """Sets the priority of an object: "low", "normal", "high" or "keep". It holds for what is passed by from now on, and
    for the list on which pages stand that enter from now on. Raises ValueError for another."""
    if priority not in _PRIORITIES:
        raise ValueError(f"unknown priority {priority!r}: use one of {', '.join(_PRIORITIES)}")
    store_relaxed_u32(&mapping.m.priority, _PRIORITIES.index(priority))


def priority_of(AddressSpace mapping not None):
    """The priority of an object."""
    return _PRIORITIES[load_relaxed_u32(&mapping.m.priority)]


def set_tenant(AddressSpace mapping not None, uint32_t tenant):
    """Makes an object, with what it has cached, one of a tenant's (1..63), or no tenant's (0)."""
    if tenant >= NR_TENANTS:
        raise ValueError(f"tenant must be below {NR_TENANTS}, not {tenant}")
    mapping_set_tenant(mapping.seg, mapping.m, tenant)


def set_share(Segment segment not None, uint32_t tenant, uint64_t share_pages):
    """Sets the pages that are passed by while a tenant has no more."""
    if not 0 < tenant < NR_TENANTS:
        raise ValueError(f"tenant must be in 1..{NR_TENANTS - 1}, not {tenant}")
    store_relaxed_u64(&segment.seg.header.tenants[tenant].share_pages, share_pages)


def tenant_pages(Segment segment not None, uint32_t tenant):
    """The pages that the objects of a tenant have cached (a number of some moment)."""
    if not 0 < tenant < NR_TENANTS:
        raise ValueError(f"tenant must be in 1..{NR_TENANTS - 1}, not {tenant}")
    return load_relaxed_u64(&segment.seg.header.tenants[tenant].nr_pages)
