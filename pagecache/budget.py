"""The memory of a cache: a segment as large as its budget, and what becomes of segments in a child of fork()."""

import errno
import logging
import os
import resource

from pagecache._core import Segment
from pagecache.units import MAX_BUDGET_BYTES, PAGE_SIZE, format_size, memory_limit, parse_size
from pagecache.weak_members import WeakMembers

logger = logging.getLogger("pagecache")
_segments: WeakMembers[Segment] = WeakMembers()  # those of closed caches too: something may still hold them


def make_segment(size: int | str, policy: str) -> Segment:
    """Return a segment for a budget. size: as for `PageCache`.

    Raises ValueError for a budget that is too small or too large, and OSError (ENOMEM) where the process may not have as
    many addresses. A budget of more memory than there is is warned of in the log: pages that are touched would be swapped.
    """
    nbytes = parse_size(size)
    if nbytes < PAGE_SIZE:
        raise ValueError(f"a budget of {nbytes} bytes holds no page; give {PAGE_SIZE} bytes or more")
    if nbytes > MAX_BUDGET_BYTES:
        most = format_size(MAX_BUDGET_BYTES)
        raise ValueError(f"a budget of {format_size(nbytes)} is too large: one cache has {most} at most")
    if nbytes > memory_limit():
        logger.warning(
            "a cache of %s was made where this process may use %s of memory: when it fills, the system swaps or ends it",
            format_size(nbytes), format_size(memory_limit()),
        )  # fmt: skip
    try:
        segment = Segment(nbytes // PAGE_SIZE, policy=policy)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        remedy = "give less" if limit == resource.RLIM_INFINITY else f"give less, or raise RLIMIT_AS ({format_size(limit)})"
        reason = f"a budget of {format_size(nbytes)} needs more addresses than there are: {remedy}"
        raise OSError(error.errno, reason) from error
    adopt(segment)
    return segment


def adopt(segment: Segment) -> None:
    """Have a segment known as the parent's in a child of fork()."""
    _segments.add(segment)


def _after_fork_in_child() -> None:
    """A child has none of the parent's threads, and perhaps its locks: every inherited cache is unusable in it."""
    for segment in list(_segments):
        segment.mark_dead()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
