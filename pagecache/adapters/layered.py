"""A store over another one, the origin, which it asks for what it does not find elsewhere."""

from typing import Any

from pagecache.stores.base import BackingStore, hints_of

PARALLEL_REQUESTS = 16
READAHEAD_REQUESTS = 8


class LayeredStore:
    """What stores over an origin have in common: the object is what the origin says.

    origin: a BackingStore; it is closed with this. counts: the names of what is counted.
    A subclass names in `of_origin` the attributes that it has if the origin has them.
    """

    latency = "device"  # some answers come from near and some from far: a fixed window fits both
    of_origin: tuple[str, ...] = ("version", "refresh", "recheck", "is_immutable", "known_version")

    def __init__(self, origin: BackingStore, counts: tuple[str, ...]):
        self.origin = origin
        self.key = str(origin.key)
        hints = hints_of(origin)
        self.parallel_requests = max(PARALLEL_REQUESTS, hints.parallel_requests) if hints.parallel_requests > 1 else 1
        self.readahead_requests = min(READAHEAD_REQUESTS, self.parallel_requests)
        self.background_reads = hints.background_reads
        self._counts = dict.fromkeys(counts, 0)

    def size(self) -> int:
        """Return the size of the object (bytes)."""
        return int(self.origin.size())

    def validator(self) -> str | None:
        """Return the origin's validator."""
        return self.origin.validator()

    def __getattr__(self, name: str) -> Any:
        if name in type(self).of_origin:
            return getattr(self.origin, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "known_version":
            setattr(self.origin, name, value)
        else:
            super().__setattr__(name, value)

    def close(self) -> None:
        """Close the origin."""
        self.origin.close()
