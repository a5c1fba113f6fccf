"""Where the bytes of stores came from: a store that has more than one source may offer `source_counts()`.

It returns a dict of numbers that only grow: `peer_hits`, `peer_bytes`, `peer_failures`, `second_level_hits`,
`second_level_bytes`, `second_level_failures`, `origin_requests`, `origin_bytes`, and, so that they are not counted twice,
`store_reads` and `store_read_bytes`: the requests that the store was asked, and the bytes that it brought.  All that a
store without it brings comes from its origin.
"""

from collections.abc import Iterable, Mapping

from pagecache._core import Mutex
from pagecache.stores.base import BackingStore

SOURCES = (
    "peer_hits", "peer_bytes", "peer_failures", "second_level_hits", "second_level_bytes", "second_level_failures",
    "origin_requests", "origin_bytes",
)  # fmt: skip


def counts_of(store: object) -> dict[str, int]:
    """Return the counts of a store, complete; none if it offers none."""
    offered = getattr(store, "source_counts", None)
    if offered is None:
        return {}
    counts = dict.fromkeys(SOURCES, 0) | {str(name): int(number) for name, number in offered().items()}
    requests = counts["peer_hits"] + counts["second_level_hits"] + counts["origin_requests"]
    counts.setdefault("store_reads", requests)
    counts.setdefault("store_read_bytes", counts["peer_bytes"] + counts["second_level_bytes"] + counts["origin_bytes"])
    return counts


def add_counts(total: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add counts to a total."""
    for name, number in counts.items():
        total[name] = total.get(name, 0) + number


def shown_counts(counts: Mapping[str, int], store_reads: int, store_read_bytes: int) -> dict[str, int]:
    """Return the counts that are shown: those of stores that count, and as the origin's what the others brought.

    store_reads, store_read_bytes: of all stores, as the engine counts them.
    """
    shown = dict.fromkeys(SOURCES, 0) | dict(counts)
    shown["origin_requests"] += max(0, store_reads - shown.pop("store_reads", 0))
    shown["origin_bytes"] += max(0, store_read_bytes - shown.pop("store_read_bytes", 0))
    return shown


class SourceTotals:
    """The counts of the stores of a cache: of those that are open, and of those that were closed."""

    def __init__(self) -> None:
        self.lock = Mutex()  # held while a store turns from open to closed
        self._closed: dict[str, int] = {}

    def close(self, store: BackingStore, stores: list[BackingStore], closed: dict[str, int]) -> None:
        """Take what a store has counted so far, which leaves the list of those that are open; closed: of its object."""
        with self.lock.held():
            if store in stores:
                stores.remove(store)
                counts = counts_of(store)
                add_counts(self._closed, counts)
                add_counts(closed, counts)

    def total(self, stores: Iterable[object]) -> dict[str, int]:
        """Return the sum over stores that are open and all that were closed. Context: self.lock held."""
        total = dict(self._closed)
        for store in stores:
            add_counts(total, counts_of(store))
        return total
