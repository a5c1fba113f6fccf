"""A store that asks the owner of an extent among its peers, and the origin where that is this process or does not answer.

It is a store like any other: what is above it (readahead, folio locks, validators) applies unchanged.  A peer is asked for
bytes of exactly the version that this store is open on, so that all answers are equal.  The origin is asked
as ever, under its own conditions (`If-Match`), whenever no peer has answered.
"""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

from pagecache._core import Mutex
from pagecache.adapters.layered import LayeredStore
from pagecache.adapters.peers import protocol
from pagecache.adapters.peers.client import PeerFailedError, PeerRefusedError
from pagecache.adapters.peers.membership import object_digest
from pagecache.requests import fill
from pagecache.stores.base import BackingStore, hints_of

COUNTS = (
    "store_reads", "store_read_bytes", "peer_hits", "peer_bytes", "peer_failures", "peer_refusals", "origin_requests",
    "origin_bytes",
)  # fmt: skip
OF_ENGINE = ("store_reads", "store_read_bytes")


class Group(Protocol):
    """What a store asks of its group: a `PeerGroup`."""

    extent_bytes: int
    request_bytes: int
    replicate: str

    @property
    def wire_epoch(self) -> int:
        """The number of the membership as it is sent."""
        ...

    def note_own(self, origin: BackingStore) -> None:
        """Note an object that this process reads."""
        ...

    def may_serve(self, key: str, validator: str, name: str) -> bool:
        """Whether peers may be asked for an object."""
        ...

    def source(self, key: str, digest: bytes, offset: int, nbytes: int) -> Any:
        """Return the member to ask for a range, None for the origin."""
        ...

    def fetch(self, member: Any, request: Any, buffers: Any) -> None:
        """Fill buffers from a member."""
        ...

    def keeps(self, digest: bytes, offset: int) -> bool:
        """Whether this process owns the extent at an offset."""
        ...


class PeerStore(LayeredStore):
    """One object, read from the group's memory where it is there, else from the origin.

    origin: a BackingStore that is open for reading; it is closed with this. group: a PeerGroup. An origin without a
    validator is read without peers: nothing could tell their bytes from those of another version.
    """

    def __init__(self, origin: BackingStore, group: Group):
        super().__init__(origin, COUNTS)
        self.group = group
        self.name = str(getattr(origin, "name", origin.key))
        hints = hints_of(origin)
        self.max_request = min(hints.max_request, group.request_bytes)
        self.preferred_request = min(hints.preferred_request, self.max_request)
        self.request_boundary = group.extent_bytes  # pages that wait for one owner wait for no other
        self._digest: tuple[str | None, bytes] = (None, b"")
        self._lock = Mutex()
        if self.background_reads:
            group.note_own(origin)  # what peers ask for is read by threads that are not the user's

    # -- reading -------------------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled. Raises as the origin."""
        validator = self.origin.validator()
        total = min(sum(map(len, buffers)), max(0, self.size() - offset))
        self._count(store_reads=1)
        if validator is None or not self.group.may_serve(self.key, validator, self.name):
            return self._read_origin(offset, fill.pieces(list(buffers), 0, total))
        if self._digest[0] != validator:
            self._digest = (validator, object_digest(self.key, validator))
        done = 0
        while done < total:
            start = offset + done
            nbytes = min(total - done, self.group.extent_bytes - start % self.group.extent_bytes)
            got = self._read_extent(validator, self._digest[1], start, nbytes, fill.pieces(list(buffers), done, nbytes))
            done += got
            if got < nbytes:
                break
        return done

    def _read_extent(self, validator: str, digest: bytes, offset: int, nbytes: int, buffers: list[memoryview]) -> int:
        """Read a range of one extent. Returns the bytes filled."""
        try:
            source = self.group.source(self.key, digest, offset, nbytes)
            if source is not None and self._read_peer(source, validator, offset, nbytes, buffers):
                return nbytes
            return self._read_origin(offset, buffers)
        finally:
            fill.release(buffers)

    def _read_peer(self, source: Any, validator: str, offset: int, nbytes: int, buffers: list[memoryview]) -> bool:
        """Ask a peer, once. Returns whether it has answered; else the buffers hold anything."""
        flags = protocol.MAY_ASK_OWNER if source.may_ask_owner else 0
        request = protocol.Request(
            0, flags, self.group.wire_epoch, offset, nbytes, self.key, validator, self.name
        )  # fmt: skip
        try:
            self.group.fetch(source.member, request, buffers)
        except PeerRefusedError:
            self._count(peer_refusals=1)
            return False
        except PeerFailedError:
            self._count(peer_failures=1)
            return False
        self._count(peer_hits=1, peer_bytes=nbytes, store_read_bytes=nbytes)
        return True

    def _read_origin(self, offset: int, buffers: list[memoryview]) -> int:
        try:
            got = int(self.origin.readv(offset, buffers))
        finally:
            fill.release(buffers)
        self._count(origin_requests=1, origin_bytes=got, store_read_bytes=got)
        return got

    def is_copy(self, offset: int) -> bool:
        """Whether the bytes at `offset` are for this process alone: others have them from another one."""
        validator, digest = self._digest
        return validator is not None and not self.group.keeps(digest, offset)

    @property
    def replicate(self) -> str:
        """What the cache does with such bytes: "all", "hot" or "none"."""
        return self.group.replicate

    # -- counting ------------------------------------------------------------------------------------------------------

    def _count(self, **counts: int) -> None:
        with self._lock.held():
            for name, number in counts.items():
                self._counts[name] += number

    def source_counts(self) -> dict[str, int]:
        """Return where the bytes came from so far; what the origin says of itself replaces what is known of it here."""
        with self._lock.held():
            counts = dict(self._counts)
        below = getattr(self.origin, "source_counts", None)
        if below is not None:
            found = {name: number for name, number in below().items() if name not in OF_ENGINE}
            counts |= {"origin_requests": 0, "origin_bytes": 0} | found
        return counts

    # -- life ----------------------------------------------------------------------------------------------------------

    def __copy__(self) -> "PeerStore":
        return PeerStore(copy.copy(self.origin), self.group)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.origin,)  # a group is of one process: another one reads through its own

    def __repr__(self) -> str:
        return f"<PeerStore {self.name}>"


def _same(origin: BackingStore) -> BackingStore:
    return origin
