"""Pages that another process holds as well, so that here they need not stay: what a store's `replicate` says of them.

"all": they are kept as all others.  "hot": when they have been read to their end they go to the tail of the inactive list,
where they are the next to leave; used once more before that, they are pages like others.  "none": they leave at once.
Until then they carry the DROPBEHIND flag, which keeps them off the hit path of the engine.

A store has `replicate` and `is_copy(offset)`, or neither.
"""


from typing import Protocol, cast

from pagecache._core import FolioBatch
from pagecache.requests.backing import BackedMapping
from pagecache.stores.base import BackingStore
from pagecache.units import PAGE_SHIFT


class ReplicatingStore(BackingStore, Protocol):
    """A store that knows which of its pages are copies."""

    replicate: str

    def is_copy(self, offset: int) -> bool:
        """Whether another process holds the page at `offset` as well."""
        ...


def replicate_of(store: BackingStore) -> str:
    """Return what becomes of a store's pages that are copies."""
    return str(getattr(store, "replicate", "all"))


def mark_replicas(mapping: BackedMapping, batch: FolioBatch) -> None:
    """Mark those folios of a batch that is being read which are copies. Context: folios locked."""
    store = cast(ReplicatingStore, mapping.host)
    for position in range(len(batch)):
        folio = batch.folio(position)
        folio.set_dropbehind(store.is_copy(folio.index << PAGE_SHIFT))
        folio.put()


def leave_replicas(mapping: BackedMapping, batch: FolioBatch, end: int) -> None:
    """Let go of those folios of a batch that are copies and that have been read up to byte `end`."""
    keep_unread(mapping, batch, end)
    if mapping.backing.replicate == "none":
        batch.drop_behind()
        return
    for position in range(len(batch)):
        folio = batch.folio(position)
        if folio.dropbehind:
            folio.set_dropbehind(False)
            folio.deactivate()
        folio.put()


def keep_unread(mapping: BackedMapping, batch: FolioBatch, end: int) -> None:
    """Take out of a batch the folio that has been read up to byte `end` and not to its own end or that of the file: it
    would be brought again for the next bytes."""
    if len(batch) and end < mapping.size and _end_of(batch) > end:
        batch.drop_last()


def _end_of(batch: FolioBatch) -> int:
    last = batch.last()
    end = (last.index + last.nr_pages) << PAGE_SHIFT
    last.put()
    return end
