"""Files for coroutines: what `open_async` of the chained file system returns."""

from collections.abc import Callable
from typing import Any

from pagecache.files.aio import in_worker


class ReadStream:
    """An open file whose `read` is awaited: a hit does not suspend, a miss does not block the event loop.

    file: a File or VersionedFile, which is closed with this. Everything else is the file's.
    """

    def __init__(self, file: Any):
        self._file = file

    async def read(self, length: int = -1) -> bytes:
        """Read up to so many bytes at the position, all that are left for a negative number. Raises OSError."""
        position = self._file.tell()
        left = max(0, self._file.size - position)
        data: bytes = await self._file.pread_async(left if length is None or length < 0 else min(length, left), position)
        self._file.seek(position + len(data))
        return data

    async def close(self) -> None:
        """Close the file; its pages stay cached."""
        self._file.close()

    async def __aenter__(self) -> "ReadStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_file":
            raise AttributeError(name)
        return getattr(self._file, name)


class WriteStream:
    """A stream of the target that is written: once it is closed, nothing that was cached of its path counts any more."""

    def __init__(self, stream: Any, on_end: Callable[[], None]):
        self._stream = stream
        self._on_end = on_end

    async def close(self) -> None:
        """Close the stream."""
        try:
            await self._stream.close()
        finally:
            await in_worker(self._on_end)

    async def __aenter__(self) -> "WriteStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_stream", "_on_end"):
            raise AttributeError(name)
        return getattr(self._stream, name)
