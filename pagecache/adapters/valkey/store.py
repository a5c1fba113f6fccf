"""A store over another one, with a second level between: each read takes from the server what is there, and from the
origin the rest, which it offers to the server.

The server holds whole extents, each with a checksum of all of it, so a part is never read for itself: a reader of a page
of an extent receives all of it, and one that misses fetches all of it.  Several threads that miss one extent wait for
one request; windows of readahead, whose ends lie anywhere, so fetch nothing twice.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pagecache.adapters.layered import LayeredStore
from pagecache.adapters.valkey.extents import ObjectVersion
from pagecache.adapters.valkey.level import SecondLevel, level_of
from pagecache.adapters.valkey.reading import TieredRead
from pagecache.stores.base import BackingStore, hints_of, key_scope_of
from pagecache.stores.validators import Version

COUNTS = (
    "store_reads", "store_read_bytes", "second_level_hits", "second_level_bytes", "second_level_misses",
    "second_level_mismatches", "second_level_failures", "second_level_joined", "origin_requests", "origin_bytes",
)  # fmt: skip
MAX_REQUEST = 4 * 1024 * 1024
OF_WRITES = ("writev", "truncate", "punch_hole")  # each changes the object
_Result = TypeVar("_Result")


class TieredStore(LayeredStore):
    """One object, read from a second level where it is there, else from the origin.

    origin: a BackingStore; it is closed with this, and written through this if it can be written. second_level: a
    SecondLevel, or its URL. key: what names the object in all processes that share the server; None: the origin's key. It
    is needed where that says something in this process or on this machine only, as for a local file.

    What has no validator is never put on the server. Once something was written through this store, all is read from the
    origin: the next that open the object find its new version.
    Raises ValueError.
    """

    of_origin = (*LayeredStore.of_origin, "name", "modified_s", "writable", "sync")

    def __init__(self, origin: BackingStore, second_level: SecondLevel | str, *, key: str | None = None):
        super().__init__(origin, COUNTS)
        self.second_level = level_of(second_level) if isinstance(second_level, str) else second_level
        self._given_key = key
        scope = key_scope_of(origin)
        if key is None and scope != "everywhere":
            raise ValueError(
                f"the key {self.key!r} says something in this {scope} only: give TieredStore a key that names the object "
                "in all processes that share the server"
            )
        hints = hints_of(origin)
        extent_bytes = self.second_level.extent_bytes
        self.max_request = max(min(hints.max_request, MAX_REQUEST), extent_bytes)
        self.preferred_request = min(max(hints.preferred_request, extent_bytes), self.max_request)
        self.stable_writes = hints.stable_writes
        self.request_boundary = hints.request_boundary
        self.origin_max_request = hints.max_request
        self.is_written = False
        self._version: tuple[tuple[str, int], ObjectVersion] | None = None
        self._is_open = True
        self.second_level.attach()

    # -- what the origin says of the object ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        return self._changing(getattr(self.origin, name)) if name in OF_WRITES else super().__getattr__(name)

    def _changing(self, method: Callable[..., _Result]) -> Callable[..., _Result]:
        def call(*args: Any) -> _Result:
            self.is_written = True
            return method(*args)

        return call

    def shared_validator(self) -> str | None:
        """Return the validator under which extents may be shared; None: they may not."""
        if self.is_written or self.second_level.is_closed:
            return None
        validator = self.validator()
        version = getattr(self.origin, "version", None) if getattr(self.origin, "is_immutable", False) else None
        if isinstance(version, Version) and version.validator is None:
            return None  # a promise that it never changes says nothing about what others call so
        return validator

    # -- reading -------------------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled. Raises as the origin."""
        self.count(store_reads=1)
        validator = self.shared_validator()
        total = min(sum(map(len, buffers)), max(0, self.size() - offset))
        if validator is None or total <= 0:
            got = self.read_origin(offset, list(buffers))
        else:
            got = TieredRead(self, self._version_of(validator), offset, buffers, total).run()
        self.count(store_read_bytes=got)
        return got

    def _version_of(self, validator: str) -> ObjectVersion:
        wanted, known = (validator, self.size()), self._version
        if known is None or known[0] != wanted:
            known = (wanted, self.second_level.version(self._given_key or self.key, *wanted))
            self._version = known
        return known[1]

    def read_origin(self, offset: int, buffers: list[memoryview]) -> int:
        """Ask the origin once. Returns the bytes it brought."""
        got = int(self.origin.readv(offset, buffers))
        self.count(origin_requests=1, origin_bytes=got)
        return got

    def count(self, **counts: int) -> None:
        """Add to the counts."""
        with self.second_level.lock.held():
            for name, number in counts.items():
                self._counts[name] += number

    def source_counts(self) -> dict[str, int]:
        """Return where the bytes came from so far: extents and bytes of the second level, requests and bytes of the
        origin; what was missing there (misses), was not right (mismatches), could not be asked for (failures), or was just
        being fetched by another thread (joined)."""
        with self.second_level.lock.held():
            return dict(self._counts)

    # -- life ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the origin; the second level goes on with its other stores."""
        if self._is_open:
            self._is_open = False
            self.second_level.detach()
        super().close()

    def __copy__(self) -> "TieredStore":
        again = TieredStore(copy.copy(self.origin), self.second_level, key=self._given_key)
        again.is_written = self.is_written
        return again

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.origin, self.second_level, self._given_key)

    def __repr__(self) -> str:
        return f"<TieredStore {getattr(self.origin, 'name', self.key)} over {self.second_level!r}>"


def _open_again(origin: BackingStore, second_level: SecondLevel, key: str | None) -> TieredStore:
    return TieredStore(origin, second_level, key=key)


SecondLevel.store_type = TieredStore
