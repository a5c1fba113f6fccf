"""What is used of fsspec's file systems, and of an object's store by the ways to read it: types that need no library.

A way to read is for one kind of file system; what only that kind has stands in the module of that way.
"""

from asyncio import AbstractEventLoop
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from pagecache.stores.attempts import Attempts
from pagecache.stores.destination import Destination

_Result = TypeVar("_Result")


class ReadableFile(Protocol):
    """A file that a file system has opened."""

    def seek(self, position: int) -> int: ...

    def read(self, nbytes: int) -> bytes: ...

    def __enter__(self) -> "ReadableFile": ...

    def __exit__(self, *raised: object) -> bool | None: ...


class FileSystem(Protocol):
    """Any file system of fsspec."""

    protocol: str | Sequence[str]
    sep: str
    root_marker: str
    transaction: Any
    storage_args: Sequence[Any]
    storage_options: Mapping[str, Any]
    _cache: ClassVar[dict[str, Any]]

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, Any]: ...

    def _strip_protocol(self, path: str) -> str: ...

    def _parent(self, path: str) -> str: ...

    def unstrip_protocol(self, name: str) -> str: ...

    def invalidate_cache(self, path: str) -> None: ...

    def info(self, path: str, **options: Any) -> dict[str, Any]: ...

    def end_transaction(self) -> None: ...

    def ls(self, path: str, detail: bool) -> Sequence[Any]: ...

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes: ...

    def open(self, path: str, mode: str, **options: Any) -> ReadableFile: ...

    def put_file(self, local: str, remote: str, **options: Any) -> object: ...

    def pipe_file(self, path: str, value: Any, **options: Any) -> object: ...

    def rm(self, path: str, **options: Any) -> object: ...

    def _open(self, path: str, mode: str, **options: Any) -> ReadableFile: ...


class OnOther(FileSystem, Protocol):
    """One that stands on another one: fsspec's DirFileSystem, and those of this cache."""

    fs: FileSystem


class DirectoryFileSystem(OnOther, Protocol):
    """fsspec's DirFileSystem."""

    path: str


class Wrapper(FileSystem, Protocol):
    """fsspec's AsyncFileSystemWrapper."""

    sync_fs: FileSystem


class Generic(FileSystem, Protocol):
    """fsspec's GenericFileSystem."""

    method: str


class AsyncFileSystem(FileSystem, Protocol):
    """One whose requests are coroutines, on its loop."""

    loop: AbstractEventLoop

    def _info(self, path: str, **options: Any) -> Coroutine[Any, Any, dict[str, Any]]: ...

    def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> Coroutine[Any, Any, bytes]: ...


class ReferenceFileSystem(AsyncFileSystem, Protocol):
    """fsspec's ReferenceFileSystem."""

    references: Mapping[str, str | bytes | Sequence[Any]]
    fss: Mapping[str | None, FileSystem]
    target: str


FileSystemT_co = TypeVar("FileSystemT_co", bound=FileSystem, covariant=True)
FileSystemT = TypeVar("FileSystemT", bound=FileSystem)
AsyncFileSystemT = TypeVar("AsyncFileSystemT", bound=AsyncFileSystem)


class FsspecObject(Protocol[FileSystemT_co]):
    """The store of one object, as the ways to read it use it: see FsspecStore."""

    name: str
    key: str
    origin: str
    attempts: Attempts
    whole_up_to: int
    max_request: int
    sends_conditions: bool

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def template(self) -> FileSystemT_co: ...

    @property
    def fs(self) -> FileSystemT_co: ...

    @property
    def path(self) -> str: ...

    def add_surplus(self, nbytes: int) -> None: ...

    def run(
        self, coroutine: Coroutine[Any, Any, _Result], destination: Destination | None = None, *, is_whole: bool = False
    ) -> _Result: ...
