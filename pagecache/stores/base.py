"""What a backing store has to be, and the hints it may give."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pagecache.units import MAX_FOLIO_ORDER, PAGE_SIZE

_ENDS_OF_A_NAME = re.compile("[/#]")  # what follows a "#" in a key says how the object of that name is read


def is_within(key: str, roots: Collection[str]) -> bool:
    """Whether a key, or a path, is one of these, or below one of them, or names one of them with options."""
    return key in roots or any(key[: end.start()] in roots for end in _ENDS_OF_A_NAME.finditer(key))


class NoRangesError(Exception):
    """A store has found out that its object can only be read from the beginning; it has filled nothing."""


@runtime_checkable
class BackingStore(Protocol):
    """Anything that reads a range of one object.

    A writable store adds `writev`, `truncate` and `sync`, and may add `punch_hole`.  Hints are optional attributes; see
    `StoreHints` for their names and defaults.

    A store whose object can only be read from the beginning says so with an attribute `serves_ranges` that is False: then
    the object is read whole by its first miss if it takes no more than half the cache, else by one request after the other.
    A store that finds it out while it reads has a `readv_in_ranges` besides `readv`, which raises NoRangesError then, once.
    What such a store brought and threw away is counted if it has `take_surplus_bytes`, which returns how many bytes that
    was since it was last called.

    Context: all methods are called from several threads, the cache's own among them, and at the same time: `readv` of one
    store up to `parallel_requests` times at once, `validator` and `size` beside it. A store whose reads must not overlap
    says parallel_requests = 1; one that shares something with other stores, or with its user, guards it with a lock of its
    own; one that only its user's threads may enter says background_reads = False as well, and is not written through.
    """

    key: str

    def size(self) -> int:
        """Return the size of the object (bytes)."""
        ...

    def validator(self) -> str | None:
        """Return what changes whenever the bytes do (etag, time and size, generation), or None if nothing is known."""
        ...

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers in order with the bytes at `offset`; return how many: fewer only at the end of the object.

        The buffers may not be kept: their memory is the cache's.
        """
        ...

    def close(self) -> None:
        """Release what the store holds; it is not used afterwards."""
        ...


@runtime_checkable
class WritableStore(BackingStore, Protocol):
    """A store whose object can be changed; it may add `punch_hole(offset, nbytes)`, and an attribute `writable` that is
    False while it cannot."""

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Write the buffers in order at `offset`, behind the end too; return how many bytes were taken.

        The buffers may not be kept nor changed: their memory is the cache's.
        """
        ...

    def truncate(self, size: int) -> None:
        """Cut the object, or extend it with zeros, to a size (bytes)."""
        ...

    def sync(self, datasync: bool = False) -> None:
        """Make durable what was written; datasync: without metadata that reading it back does not need."""
        ...


@dataclass(frozen=True)
class StoreHints:
    """What a store says about itself, with the defaults for those that say nothing.

    preferred_request, max_request: bytes of one read. parallel_requests: reads of the object that may run at once;
    readahead_requests: how many of those readahead keeps busy (0: all), so that many small ranges can go at once without
    windows that are as wide.
    background_reads: whether threads of the cache's own may call `readv`; if not, only threads that read or prefetch do,
    while they wait: readahead then costs the reader the time that it takes.
    latency: "local" (the system below reads ahead itself), "device" (it does not), or "remote" (milliseconds a request).
    stable_writes: bytes must not change while `writev` has them; a write to such a page then waits.
    request_boundary: bytes, whole pages; no request crosses a multiple of it (0: any may).
    folio_order: pages come and go in runs of 2**folio_order, and no larger ones (-1: as large as readahead wants).
    whole_up_to: bytes; an object no larger than this, and than half the cache, is read whole by its first miss, in one
    request however large (0: none is).
    """

    preferred_request: int = 128 * 1024
    max_request: int = 16 * 1024 * 1024
    parallel_requests: int = 8
    latency: str = "remote"
    stable_writes: bool = False
    readahead_requests: int = 0
    folio_order: int = -1
    whole_up_to: int = 0
    request_boundary: int = 0
    background_reads: bool = True


def hints_of(store: BackingStore) -> StoreHints:
    """Return a store's hints, checked."""
    defaults = StoreHints()
    values = {name: getattr(store, name, getattr(defaults, name)) for name in StoreHints.__dataclass_fields__}
    for name in ("preferred_request", "max_request", "parallel_requests"):
        if not isinstance(values[name], int) or values[name] < 1:
            raise ValueError(f"{name} of store {store.key!r} must be a positive int, not {values[name]!r}")
    if not isinstance(values["readahead_requests"], int) or values["readahead_requests"] < 0:
        raise ValueError(f"readahead_requests of store {store.key!r} must be an int, not {values['readahead_requests']!r}")
    boundary = values["request_boundary"]
    if not isinstance(boundary, int) or boundary < 0 or boundary % PAGE_SIZE:
        raise ValueError(f"request_boundary of store {store.key!r} must be whole pages, not {boundary!r}")
    if not isinstance(values["whole_up_to"], int) or values["whole_up_to"] < 0:
        raise ValueError(f"whole_up_to of store {store.key!r} must be an int (bytes), not {values['whole_up_to']!r}")
    if not isinstance(values["background_reads"], bool):
        raise ValueError(f"background_reads of store {store.key!r} must be a bool, not {values['background_reads']!r}")
    if not isinstance(values["folio_order"], int) or not -1 <= values["folio_order"] <= MAX_FOLIO_ORDER:
        raise ValueError(f"folio_order of store {store.key!r} must be in -1..9, not {values['folio_order']!r}")
    values["readahead_requests"] = min(values["readahead_requests"], values["parallel_requests"])
    return StoreHints(**values)


def is_writable(store: BackingStore | None) -> bool:
    """Whether a store can be changed."""
    return store is not None and hasattr(store, "writev") and bool(getattr(store, "writable", True))


def key_scope_of(store: BackingStore) -> str:
    """Return where the key of a store names its object: in this "process", on this "machine", or "everywhere"."""
    return str(getattr(store, "key_scope", "machine" if getattr(store, "latency", "remote") == "local" else "everywhere"))
