"""How a range of an object is read from a file system of fsspec that has coroutines, but no conditional requests."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from pagecache.stores.attempts import time_limit_error
from pagecache.stores.call_options import are_read_by_cat_file
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_protocols import AsyncFileSystem, AsyncFileSystemT, FileSystem, FsspecObject
from pagecache.stores.fsspec_sync import SyncRanges, fresh_options, put_range
from pagecache.stores.in_order import PIECE, Take
from pagecache.stores.validators import Version


class AsyncBody:
    """An answer that brings all of an object, read by coroutines on fsspec's loop.

    read: at most so many bytes of it; none at its end. close: gives it up. nr_come: how many bytes have come.
    """

    def __init__(
        self,
        store: FsspecObject[AsyncFileSystem],
        read: Callable[[int], Awaitable[bytes]],
        close: Callable[[], object],
        is_proved: bool,
        nr_come: Callable[[], int] = lambda: 0,
    ):
        self.is_proved = is_proved
        self._store = store
        self._loop = store.fs.loop
        self._pid = os.getpid()
        self._read = read
        self._close: Callable[[], object] | None = close
        self._nr_come = nr_come
        self._nr_given = 0

    def pump(self, take: Take) -> None:
        """Give what comes next. Context: waits on fsspec's loop, where `take` is called."""
        self._store.run(self._pump(take), is_whole=True)

    async def _pump(self, take: Take) -> None:
        while piece := await self._piece():
            self._nr_given += len(piece)
            if not take(piece):
                return

    async def _piece(self) -> bytes:
        timeout_s = self._store.attempts.timeout_s
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._read(PIECE)
        except TimeoutError:
            if limit.expired():
                raise time_limit_error(timeout_s) from None
            raise

    def close(self) -> int:
        """Close the connection, unless all of it has been read. In a child of fork it is the parent's."""
        close, self._close = self._close, None
        if close is not None and self._pid == os.getpid():
            self._loop.call_soon_threadsafe(close)
        return max(0, self._nr_come() - self._nr_given) if close is not None else 0

    def __del__(self) -> None:
        try:
            self.close()
        except RuntimeError:  # the loop is gone, and the connection with it
            pass


class AsyncRanges(SyncRanges[AsyncFileSystemT]):
    """File systems with coroutines."""

    def info(self, store: FsspecObject[AsyncFileSystemT]) -> dict[str, Any]:
        """Return what the file system says about the object now."""
        fs, path = store.fs, store.path
        return store.run(fs._info(path, **fresh_options(fs, fs._info, path), **store.options))

    def cat(self, store: FsspecObject[AsyncFileSystemT], start: int, end: int) -> bytes:
        """Return the bytes [start, end) of the object, as the file system brings them."""
        return store.run(store.fs._cat_file(store.path, start=start, end=end, **store.options))

    def cat_whole(self, store: FsspecObject[AsyncFileSystemT]) -> bytes:
        """Return all of the object."""
        return store.run(store.fs._cat_file(store.path, **store.options))

    @staticmethod
    def reads_ranges(store: FsspecObject[FileSystem]) -> bool:
        """Whether `_cat_file` takes the options of the store."""
        return are_read_by_cat_file(store.template, "_cat_file", store.options)

    def read(self, store: FsspecObject[AsyncFileSystemT], version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination from byte `start`; whether the bytes are known to be of this version."""
        if not self.reads_ranges(store):
            return super().read(store, version, start, destination)
        return store.run(self._fetch(store, version, start, destination), destination)

    async def _fetch(
        self, store: FsspecObject[AsyncFileSystemT], version: Version, start: int, destination: Destination
    ) -> bool:
        end = start + destination.wanted
        put_range(await store.fs._cat_file(store.path, start=start, end=end, **store.options), version, destination)
        return False
