"""How a range of an object is read from a file system of fsspec that has coroutines, but no conditional requests."""

from typing import Any

from pagecache.stores.call_options import takes
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_sync import SyncRanges, fresh_options, put_range
from pagecache.stores.validators import Version


class AsyncRanges(SyncRanges):
    """File systems with coroutines."""

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the file system says about the object now."""
        fs, path = store.fs, store.path
        return store.run(fs._info(path, **fresh_options(fs, fs._info, path), **store.options))

    def cat(self, store: Any, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of the object, as the file system brings them."""
        data: bytes = store.run(store.fs._cat_file(store.path, start=start, end=end, **store.options))
        return data

    def cat_whole(self, store: Any) -> bytes:
        """Return all of the object."""
        data: bytes = store.run(store.fs._cat_file(store.path, **store.options))
        return data

    @staticmethod
    def _reads_ranges(store: Any) -> bool:
        """Whether `_cat_file` takes the options of the store."""
        return takes(store.template._cat_file, store.options)

    def read(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination from byte `start`; whether the bytes are known to be of this version."""
        if not self._reads_ranges(store):
            return super().read(store, version, start, destination)
        return bool(store.run(self._fetch(store, version, start, destination), destination))

    async def _fetch(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        end = start + destination.wanted
        put_range(await store.fs._cat_file(store.path, start=start, end=end, **store.options), version, destination)
        return False
