"""A file that looks whether its object was replaced, before reads of cached bytes too, and may go on with the new one."""

import copy
import errno
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pagecache._core import Mutex, VersionedCore
from pagecache.buffers import Buffer
from pagecache.files import aio
from pagecache.files.file import File
from pagecache.files.inode import Inode
from pagecache.files.reopening import Reduced, reduced
from pagecache.stores.base import BackingStore
from pagecache.stores.validators import Version

CHANGES_MAX = 8  # replacements during one read call after which it gives up
AHEAD_BYTES = 64 * 1024  # of lines that iteration takes after one look with recheck=True, as from a buffer
AHEAD_S = 1.0  # and for how long
_Result = TypeVar("_Result")


class VersionedFile(VersionedCore):
    """An open file with `recheck` or `on_change` of its own; otherwise a File.

    file: open on the present version. reopen: opens the version there is then, instead of a file that is open. max_age_s:
    what is known of the version may be so old when a read begins (seconds; 0: the store is asked before each read call;
    None: it is not asked). reloads: a replaced object is read on as a whole, with nothing cached of the old one; else reads
    raise ESTALE.

    Each read call is served by one version from its first to its last byte. Two calls may see two versions.
    Context: as File; asking the store waits for it.
    """

    def __init__(
        self, file: File, reopen: Callable[[File], File], *, max_age_s: float | None = None, reloads: bool = False
    ):
        self._file = file
        self._reopen = reopen
        self._max_age_s = max_age_s
        self._reloads = reloads
        self._change_lock = Mutex()
        self._checked_at = time.monotonic()

    # -- versions ------------------------------------------------------------------------------------------------------

    def with_one_version(self, call: Callable[[File], _Result]) -> _Result:
        """Call with the plain File of one version; once more, from the start, with the next one if that is gone."""
        error: OSError | None = None
        for _ in range(CHANGES_MAX):
            file = self._file
            try:
                self._check_version(file)
                return call(file)
            except ValueError:  # closed under this call, because another thread has moved on
                if file is self._file:
                    raise
            except OSError as failed:
                if failed.errno != errno.ESTALE or not self._reloads:
                    raise
                error = failed
                self._move_on(file)
        raise error or OSError(errno.ESTALE, f"{self.name} is being replaced again and again")

    def _check_version(self, file: File) -> None:
        """Ask the store for its version, if what is known is too old. Raises OSError (ESTALE) if it is another one."""
        if self._max_age_s is None or file.closed:
            return
        store, now = file.inode.store, time.monotonic()
        if self._max_age_s and now - self._last_look(file) < self._max_age_s:
            return
        refresh = getattr(store, "refresh", None)
        if refresh is not None:
            refresh()
        file.inode.raise_if_changed(0)
        self._checked_at = now

    def _last_look(self, file: File) -> float:
        """Return when the version of a file was last asked for, by this file or another one (monotonic clock, seconds)."""
        known = getattr(file.inode.store, "version", None)
        return max(known.checked_at, self._checked_at) if isinstance(known, Version) else self._checked_at

    def _move_on(self, old: File) -> None:
        """Open the present version, unless another thread has."""
        with self._change_lock.held():
            if self._file is old and not old.closed:
                self._replace(old)

    def _replace(self, old: File) -> None:
        """Context: the change lock is held."""
        file = self._reopen(old)
        file.take_advice_of(old)
        self._file = file
        self._checked_at = time.monotonic()
        old.close()

    def invalidate(self, offset: int = 0, length: int = 0, *, discard: bool = False) -> None:
        """Drop the cached pages of a byte range; with no range go on with the present version of the object.

        discard: as `File.invalidate`.
        """
        if offset or length:
            self._file.invalidate(offset, length, discard=discard)
            return
        with self._change_lock.held():
            old = self._file
            if discard:
                old.invalidate(discard=True)
            self._replace(old)

    # -- reads -----------------------------------------------------------------------------------------------------------

    def pread(self, nbytes: int, offset: int) -> bytes:
        """As File.pread."""
        return self.with_one_version(lambda file: file.pread(nbytes, offset))

    def preadinto(self, buffer: Buffer, offset: int) -> int:
        """As File.preadinto."""
        return self.with_one_version(lambda file: file.preadinto(buffer, offset))

    def pread_cached(self, nbytes: int, offset: int) -> bytes | None:
        """As File.pread_cached; None also when the store would have to be asked for its version."""
        file = self._file
        is_known = self._max_age_s is None or time.monotonic() - self._checked_at < self._max_age_s
        return file.pread_cached(nbytes, offset) if is_known or file.closed else None

    def view(self, nbytes: int, offset: int) -> memoryview:
        """As File.view."""
        return self.with_one_version(lambda file: file.view(nbytes, offset))

    def iter_views(self, nbytes: int, offset: int) -> Iterator[memoryview]:
        """As File.iter_views, all of one version: a change half way raises OSError (ESTALE)."""
        views = self.with_one_version(lambda file: _begun(file.iter_views(nbytes, offset)))
        yield from views

    def preadv_many(self, ranges: Sequence[tuple[int, int]], *, hole_size: int | None = None) -> list[bytes]:
        """As File.preadv_many."""
        return self.with_one_version(lambda file: file.preadv_many(ranges, hole_size=hole_size))

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """As File.get_byte_ranges."""
        return self.with_one_version(lambda file: file.get_byte_ranges(offsets, sizes))

    async def pread_async(self, nbytes: int, offset: int) -> bytes:
        """As File.pread_async; asking for the version waits as a miss does."""
        data = self.pread_cached(nbytes, offset)
        return data if data is not None else await aio.read(self._file.inode, self.pread, nbytes, offset)

    async def preadinto_async(self, buffer: Buffer, offset: int) -> int:
        """As File.preadinto_async."""
        return await aio.read(self._file.inode, self.preadinto, buffer, offset)

    # -- at the position -------------------------------------------------------------------------------------------------

    def _at_position(self, call: Callable[[File], _Result]) -> _Result:
        """Have the plain File read, with one version, from the position on."""
        return self._from_position(lambda placed: self.with_one_version(placed), call)

    def _from_position(
        self, serve: Callable[[Callable[[File], tuple[_Result, int]]], tuple[_Result, int]], call: Callable[[File], _Result]
    ) -> _Result:
        def placed(file: File) -> tuple[_Result, int]:
            file.seek(start)
            return call(file), file.tell()

        with self._position_lock.held():
            own = self._position.own()
            start = self._position.shared() if own is None else own
            result, end = serve(placed)
            self._position.move(own is not None, end)
        return result

    def _hold_look(self, file: File, age_s: float, lines: tuple[int, int] | None = None) -> None:
        """Say how long reads at the position need no look, after one that is so old; lines: for iteration only."""
        if self._max_age_s is None:
            self._look_holds(file, math.inf)
        elif self._max_age_s:
            self._look_holds(file, self._max_age_s - age_s)
        elif lines is not None:
            self._look_holds(file, AHEAD_S - age_s, lines=lines)

    def _age_of_look(self, file: File) -> float:
        return 0.0 if self._max_age_s is None else time.monotonic() - self._last_look(file)

    def _read_after_look(self, size: int) -> bytes:
        """Read as `read` does."""

        def read(file: File) -> bytes:
            age_s = self._age_of_look(file)
            data = file.read(size)
            self._hold_look(file, age_s)
            return data

        own = self._position.own()
        if own is None or size < 0:
            return self._at_position(read)
        data = self.pread(size, own)
        self._position.move(True, own + len(data))
        return data

    def _line_after_look(self, size: int, iterates: bool) -> bytes:
        """Read the next line, or `size` bytes of it. With recheck=True the look serves what iteration takes next, too, as
        iteration over other files takes lines from a buffer."""

        def read(file: File) -> bytes:
            age_s, start = self._age_of_look(file), file.tell()
            line = file.readline(size)
            self._hold_look(file, age_s, (start, start + AHEAD_BYTES) if iterates else None)
            return line

        return self._at_position(read)

    def readall(self) -> bytes:
        """As File.readall."""
        return self._at_position(lambda file: file.readall())

    def readinto(self, buffer: Buffer, /) -> int:
        """As File.readinto."""
        own = self._position.own()
        if own is None:
            got = self._at_position(lambda file: file.readinto(buffer))
        else:
            got = self.preadinto(buffer, own)
            self._position.move(True, own + got)
        return got

    def read_buffer(self, size: int | None = -1, /) -> bytes | memoryview:
        """As File.read_buffer."""
        return self._at_position(lambda file: file.read_buffer(size))

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """As File.readlines."""
        return self._at_position(lambda file: file.readlines(hint))

    def __iter__(self) -> Iterator[bytes]:
        self._file.tell()
        return self

    def write(self, data: Buffer, /) -> int:
        """As File.write: what others have changed is not written over, with on_change="reload" neither."""
        return self._from_position(lambda placed: placed(self._file), lambda file: file.write(data))

    def writelines(self, lines: Iterable[Buffer], /) -> None:
        """As File.writelines."""
        self._file._check_writable()
        for line in lines:
            self.write(line)

    def truncate(self, size: int | None = None, /) -> int:
        """As File.truncate."""
        self._file._check_writable()
        return self._file.truncate(self.tell() if size is None else size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As File.seek."""
        self._file.tell()
        if self._position.is_by_thread:
            return self._position.seek(offset, whence, self._file.size)
        with self._position_lock.held():
            return self._position.seek(offset, whence, self._file.size)

    def tell(self) -> int:
        """Return the position (bytes)."""
        self._file.tell()
        return self._position.tell()

    @property
    def seeks_by_thread(self) -> bool:
        """As File.seeks_by_thread."""
        return self._position.seeks_by_thread

    @seeks_by_thread.setter
    def seeks_by_thread(self, value: bool) -> None:
        self._position.seeks_by_thread = value

    # -- everything else is the file's of the present version (`_OfFile`) -------------------------------------------------

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _is_closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Close the file; its pages stay cached. Closing again does nothing."""
        with self._change_lock.held():
            self._file.close()

    def __enter__(self) -> "VersionedFile":
        self._file.tell()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> "VersionedFile":
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        await aio.in_worker(self.close)

    def __reduce__(self) -> Reduced:
        on_change = "reload" if self._reloads else "error"
        recheck = True if self._max_age_s == 0 else "open" if self._max_age_s is None else self._max_age_s
        return reduced(self._file, self._position.tell(), {"recheck": recheck, "on_change": on_change})

    def __repr__(self) -> str:
        return f"<Versioned{repr(self._file)[1:]}"


def copy_of_store(inode: Inode) -> BackingStore:
    """Return a copy of the store that serves an object, which is open: its own copy may need that."""
    while True:
        store = inode.store
        try:
            return cast(BackingStore, copy.copy(store))
        except Exception:
            if inode.store is store:  # else it was closed meanwhile, because another one serves
                raise


def _begun(views: Iterator[memoryview]) -> Iterator[memoryview]:
    """Take the first of the views, so that an error comes now."""
    first = next(views, None)
    return iter(()) if first is None else _continued(first, views)


def _continued(first: memoryview, views: Iterator[memoryview]) -> Iterator[memoryview]:
    yield first
    yield from views


class _OfFile:
    """An attribute of the plain File of the present version: had from it, and set on it."""

    def __init__(self, name: str):
        self._name = name
        self.__doc__ = getattr(getattr(File, name, None), "__doc__", None)

    def __get__(self, file: VersionedFile | None, owner: type | None = None) -> Any:
        return self if file is None else getattr(file._file, self._name)

    def __set__(self, file: VersionedFile, value: Any) -> None:
        setattr(file._file, self._name, value)


for _name in {*dir(File), "inode", "cache", "mode", "durability", "no_reuse"} - {*dir(VersionedFile)}:
    if not _name.startswith("__"):
        setattr(VersionedFile, _name, _OfFile(_name))
io.RawIOBase.register(VersionedFile)
