"""What a chained file system leaves to its target, on the target's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import fsspec.asyn

from pagecache.adapters.fsspec_target import Target
from pagecache.files.aio import blocking
from pagecache.stores.fsspec_instances import Instance
from pagecache.stores.fsspec_kinds import is_asynchronous


class WrittenFile:
    """A file of the target that is written: once it is closed, nothing that was cached of its path counts any more."""

    def __init__(self, file: Any, on_close: Callable[[], None], turn: Callable[[], Any]):
        self._file = file
        self._on_close = on_close
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        if name in ("_file", "_on_close", "_turn"):
            raise AttributeError(name)
        return getattr(self._file, name)

    def write(self, data: Any) -> Any:
        """Write bytes. Returns how many."""
        with self._turn():
            return self._file.write(data)

    def flush(self, *args: Any, **kwargs: Any) -> Any:
        """Write what waits."""
        with self._turn():
            return self._file.flush(*args, **kwargs)

    def close(self) -> None:
        """Close the file."""
        if not self._file.closed:
            try:
                with self._turn():
                    self._file.close()
            finally:
                self._on_close()

    def __enter__(self) -> "WrittenFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)


class Delegation:
    """Methods of an asynchronous file system that call its target, whose paths they share."""

    fs: Any
    _strip_protocol: Any
    invalidate_cache: Any

    @property
    def target(self) -> Target:
        """What objects are read from, and what everything else is asked of."""
        raise NotImplementedError

    @property
    def instance(self) -> Instance:
        """The way that objects are read."""
        return self.target.instance

    async def _blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        """Await a call that reads: in a worker, unless only the caller's thread may read from the target."""
        return await blocking(self.instance.background_reads, fsspec.asyn.loop[0], function, *args)

    def _in_turn(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a blocking method of the target."""
        with self.target.turn() as target:
            return getattr(target, name)(*args, **kwargs)

    async def _on_target(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a coroutine method of the target on its loop, or the blocking method as `_blocking` does."""
        if not is_asynchronous(self.instance.template):
            return await self._blocking(lambda: self._in_turn(name[1:], *args, **kwargs))
        target = self.fs
        coroutine = getattr(target, name)(*args, **kwargs)
        if target.loop is asyncio.get_running_loop():
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, target.loop))

    async def _info(self, path: str, **kwargs: Any) -> Any:
        return await self._on_target("_info", self._strip_protocol(path), **kwargs)

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        return await self._on_target("_ls", self._strip_protocol(path), detail=detail, **kwargs)

    async def _exists(self, path: str, **kwargs: Any) -> Any:
        return await self._on_target("_exists", self._strip_protocol(path), **kwargs)

    async def _isfile(self, path: str, **kwargs: Any) -> Any:
        return await self._on_target("_isfile", self._strip_protocol(path), **kwargs)

    async def _isdir(self, path: str, **kwargs: Any) -> Any:
        return await self._on_target("_isdir", self._strip_protocol(path), **kwargs)

    async def _find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        return await self._on_target("_find", path, maxdepth=maxdepth, withdirs=withdirs, **kwargs)

    async def _glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        return await self._on_target("_glob", self._strip_protocol(path), maxdepth=maxdepth, **kwargs)

    async def _walk(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        from fsspec.asyn import AsyncFileSystem

        async for found in AsyncFileSystem._walk(self, path, maxdepth=maxdepth, **kwargs):
            yield found

    async def _mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> Any:
        return await self._on_target("_mkdir", self._strip_protocol(path), create_parents=create_parents, **kwargs)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> Any:
        return await self._on_target("_makedirs", self._strip_protocol(path), exist_ok=exist_ok)

    async def _get_file(self, rpath: str, lpath: Any, **kwargs: Any) -> Any:
        return await self._on_target("_get_file", self._strip_protocol(rpath), lpath, **kwargs)

    # -- changes: what was cached of the path is forgotten, whether they succeed or not ----------------------------------

    async def _changing(self, name: str, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._on_target(name, *args, **kwargs)
        finally:
            self.invalidate_cache(path)

    async def _pipe_file(self, path: str, value: bytes, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        return await self._changing("_pipe_file", path, path, value, **kwargs)

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> Any:
        rpath = self._strip_protocol(rpath)
        return await self._changing("_put_file", rpath, lpath, rpath, **kwargs)

    async def _cp_file(self, path1: str, path2: str, **kwargs: Any) -> Any:
        path2 = self._strip_protocol(path2)
        return await self._changing("_cp_file", path2, self._strip_protocol(path1), path2, **kwargs)

    async def _rm_file(self, path: str, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        return await self._changing("_rm_file", path, path, **kwargs)

    def _open_written(self, path: str, mode: str, *args: Any, **kwargs: Any) -> WrittenFile:
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        file = self._in_turn("open", path, mode, **kwargs)
        return WrittenFile(file, lambda: self.invalidate_cache(path), self.target.turn)

    # -- blocking methods that have no coroutine -------------------------------------------------------------------------

    def created(self, path: str) -> Any:
        """Return when the target says the path was made."""
        return self._in_turn("created", self._strip_protocol(path))

    def modified(self, path: str) -> Any:
        """Return when the target says the path was changed."""
        return self._in_turn("modified", self._strip_protocol(path))

    def checksum(self, path: str) -> Any:
        """Return the target's checksum of the path."""
        return self._in_turn("checksum", self._strip_protocol(path))

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> Any:
        """Return a signed URL of the target."""
        return self._in_turn("sign", self._strip_protocol(path), expiration=expiration, **kwargs)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> Any:
        """Make an empty object, or set its time."""
        try:
            return self._in_turn("touch", self._strip_protocol(path), truncate=truncate, **kwargs)
        finally:
            self.invalidate_cache(path)
