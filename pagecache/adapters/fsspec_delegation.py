"""What a chained file system leaves to its target: everything that does not read bytes.

The target does it, not fsspec's generic code over what the target has: it knows how to remove a tree at once, what a link
is, and when a trailing slash counts.  `OPERATIONS` says for each operation which arguments are paths and which of them it
changes; what was cached of those is forgotten when it ends, well or not, with all that is below them.  An operation that
only some target has is called as well; if it is not in `MORE_OPERATIONS`, it is taken to change whatever it names.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple, Protocol

import fsspec.asyn
from fsspec import AbstractFileSystem

from pagecache.adapters.fsspec_target import Target
from pagecache.files.aio import blocking
from pagecache.stores.fsspec_instances import Instance

# Leading arguments of fsspec's own operations: "@": a path of the target, or a list of them; "!": one that is changed.
OPERATIONS = {
    "checksum": "@path", "created": "@path", "du": "@path", "exists": "@path", "expand_path": "@path", "find": "@path",
    "get": "@rpath lpath", "get_file": "@rpath lpath", "glob": "@path", "info": "@path", "isdir": "@path",
    "isfile": "@path", "lexists": "@path", "ls": "@path", "modified": "@path", "sign": "@path", "size": "@path",
    "sizes": "@paths",
    "copy": "@path1 !path2", "cp_file": "@path1 !path2", "makedirs": "!path", "mkdir": "!path", "mv": "!path1 !path2",
    "pipe": "!path", "pipe_file": "!path", "put": "lpath !rpath", "put_file": "lpath !rpath", "rm": "!path",
    "rm_file": "!path", "rmdir": "!path", "touch": "!path",
}  # fmt: skip
# Of some file systems only. All others change what they name, as far as is known.
MORE_OPERATIONS = {
    "encode_url": "@url", "get_tags": "@path", "getxattr": "@path", "is_bucket_versioned": "@bucket", "islink": "@path",
    "list_multipart_uploads": "@bucket", "metadata": "@path", "object_version_info": "@path", "split_path": "@path",
    "url": "@path",
    "chmod": "!path", "link": "@src !dst", "merge": "!path @filelist", "mv_file": "!path1 !path2", "symlink": "@src !dst",
}  # fmt: skip
COROUTINES = ("copy", "cp_file", "du", "exists", "expand_path", "find", "get", "get_file", "glob", "info", "isdir",
              "isfile", "ls", "makedirs", "mkdir", "mv_file", "pipe", "pipe_file", "put", "put_file", "rm", "rm_file",
              "size", "sizes")  # fmt: skip


class Call(NamedTuple):
    """The arguments for the target, and the paths that are changed."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    changed: list[str]


class Named(Protocol):
    """A file system that has a prefix of its own for paths."""

    def without_protocol(self, path: Any) -> Any:
        """Return a path, or each of several, without it."""
        ...


def bound(fs: Named, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Bind the arguments of an operation; leading ones are given by position or by fsspec's names."""
    given, rest = list(args), dict(kwargs)
    changed: list[str] = []
    for place, parameter in enumerate(operation.split()):
        name = parameter.lstrip("@!")
        if place == len(given) and name in rest:
            given.append(rest.pop(name))
        if place < len(given) and parameter[0] in "@!":
            given[place] = fs.without_protocol(given[place])
            if parameter[0] == "!":
                changed += _named(given[place])
    return Call(tuple(given), rest, changed)


def bound_blindly(fs: Named, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Bind the arguments of an operation of which nothing is known: all that may be paths are, and are changed."""
    given = tuple(fs.without_protocol(value) for value in args)
    rest = {name: fs.without_protocol(value) for name, value in kwargs.items()}
    return Call(given, rest, [path for value in (*given, *rest.values()) for path in _named(value)])


def _named(value: object) -> list[str]:
    """Return the paths that an argument names: one, a list of them, or the keys of a dictionary."""
    if isinstance(value, (list, tuple, set, dict)):
        return [path for item in value for path in _named(item)]
    return [value] if isinstance(value, str) else []


class WrittenFile:
    """A file of the target that is written: once it is closed, committed or discarded, nothing that was cached of its path
    counts any more."""

    def __init__(self, file: Any, on_end: Callable[[], None], turn: Callable[[], Any]):
        self._file = file
        self._on_end = on_end
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        if name in ("_file", "_on_end", "_turn"):
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
            self._end(self._file.close)

    def commit(self) -> None:
        """Put what was written in a transaction into its place."""
        self._end(self._file.commit)

    def discard(self) -> None:
        """Throw away what was written in a transaction."""
        self._end(self._file.discard)

    def _end(self, step: Callable[[], Any]) -> None:
        try:
            with self._turn():
                step()
        finally:
            self._on_end()

    def __enter__(self) -> "WrittenFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)


class DelegatedTransaction:
    """A transaction of the target, which is where files are put off. What it has changed is forgotten when it ends."""

    def __init__(self, fs: Any):
        self._fs = fs

    @property
    def files(self) -> Any:
        """The files that wait for the end."""
        with self._fs.target.turn() as target:
            return target.transaction.files

    def start(self) -> None:
        """Begin."""
        self._fs.start_transaction()

    def complete(self, commit: bool = True) -> None:
        """Put all files into their places, or throw them away."""
        self._fs.end_transaction(commit=commit)

    def __enter__(self) -> "DelegatedTransaction":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.complete(commit=kind is None)


class Delegation:
    """Methods of an asynchronous file system that call its target, whose paths they share.

    Blocking methods call those of the target, in a turn of it; coroutines run the target's on its own loop, or do as the
    blocking methods in a worker, if the target may be called there.
    """

    fs: Any
    without_protocol: Any
    forget_changed: Any
    changed_in_transaction: set[str] | None = None

    @property
    def target(self) -> Target:
        """What objects are read from, and what everything else is asked of."""
        raise NotImplementedError

    @property
    def instance(self) -> Instance:
        """The way that objects are read."""
        return self.target.instance

    def __getattr__(self, name: str) -> Any:
        """Return what the target has besides fsspec's own operations: its methods, called as these are, and attributes."""
        absent = AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        if "_target" not in self.__dict__ or name.startswith("__"):
            raise absent
        like = self.target.template
        if name.startswith("_"):
            if not (hasattr(like, name[1:]) and inspect.iscoroutinefunction(getattr(like, name, None))):
                raise absent
            return functools.partial(self._call_coroutine, name, MORE_OPERATIONS.get(name[1:]))
        value = getattr(like, name)
        if not callable(value) or isinstance(value, type):
            return getattr(self.fs, name)
        if inspect.iscoroutinefunction(value):
            return functools.partial(self._call_coroutine, name, MORE_OPERATIONS.get(name))
        return functools.wraps(value)(functools.partial(self._call_blocking, name, MORE_OPERATIONS.get(name)))

    def _bound(self, operation: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return bound_blindly(self, args, kwargs) if operation is None else bound(self, operation, args, kwargs)

    def _call_blocking(self, name: str, operation: str | None, /, *args: Any, **kwargs: Any) -> Any:
        call = self._bound(operation, args, kwargs)
        try:
            return self._in_turn(name, *call.args, **call.kwargs)
        finally:
            self.forget_changed(call.changed)

    def _in_turn(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a blocking method of the target."""
        with self.target.turn() as target:
            return getattr(target, name)(*args, **kwargs)

    async def _blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        """Await a call that asks the target: in a worker, unless only the caller's thread may."""
        return await blocking(self.instance.background_reads, fsspec.asyn.loop[0], function, *args)

    async def _call_coroutine(self, name: str, operation: str | None, /, *args: Any, **kwargs: Any) -> Any:
        call = self._bound(operation, args, kwargs)
        try:
            return await self._on_target(name, *call.args, **call.kwargs)
        finally:
            if call.changed:  # which waits for reads under way, of which some may need this loop
                await self._blocking(self.forget_changed, call.changed)

    async def _on_target(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a coroutine method of the target on its loop, or the blocking method as `_blocking` does."""
        if not inspect.iscoroutinefunction(getattr(self.target.template, name, None)):
            return await self._blocking(lambda: self._in_turn(name.removeprefix("_"), *args, **kwargs))
        return await self._on_its_loop(getattr(self.fs, name)(*args, **kwargs))

    async def _on_its_loop(self, coroutine: Any) -> Any:
        loop = getattr(self.fs, "loop", None)
        if loop is None or loop is asyncio.get_running_loop():
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))

    async def _walk(self, path: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Walk the target's tree, step by step: the caller may change the lists of a step."""
        if not inspect.isasyncgenfunction(getattr(self.target.template, "_walk", None)):
            steps, ended = self.walk(path, *args, **kwargs), object()
            while (found := await self._blocking(next, steps, ended)) is not ended:
                yield found
            return
        walking = self.fs._walk(self.without_protocol(path), *args, **kwargs)
        while True:
            try:
                found = await self._on_its_loop(anext(walking))
            except StopAsyncIteration:
                return
            yield found

    def walk(self, path: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Walk the target's tree, as fsspec's `walk` does: the caller may change the lists of a step."""
        steps, ended = iter(self._in_turn("walk", self.without_protocol(path), *args, **kwargs)), object()
        while True:
            with self.target.turn():
                found = next(steps, ended)
            if found is ended:
                return
            yield found

    @property
    def transaction(self) -> DelegatedTransaction:
        """A context within which files are committed together upon exit, or discarded if it fails."""
        return DelegatedTransaction(self)

    def start_transaction(self) -> DelegatedTransaction:
        """Begin to put off the files that are written, in the target. Returns the transaction."""
        self._in_turn("start_transaction")
        self.changed_in_transaction = set()
        return self.transaction

    def end_transaction(self, commit: bool = True) -> None:
        """Put the files that were written since `start_transaction` into their places, or throw them away."""
        try:
            with self.target.turn() as target:
                if commit:
                    target.end_transaction()
                else:
                    target.transaction.complete(commit=False)
        finally:
            changed, self.changed_in_transaction = self.changed_in_transaction, None
            self.forget_changed(sorted(changed or ()))

    def open_written(
        self, path: str, mode: str, block_size: int | str | None, autocommit: bool, options: dict[str, Any]
    ) -> WrittenFile:
        """Open a file of the target that is not only read. autocommit: False: the caller commits or discards it."""
        options = {name: value for name, value in {"block_size": block_size, **options}.items() if value is not None}
        with self.target.turn() as target:
            if autocommit:  # unless the target is in a transaction
                file = target.open(path, mode, **options)
            elif type(target).open is AbstractFileSystem.open:  # which would note it for a transaction, as the caller does
                file = target._open(path, mode=mode, autocommit=False, **options)
            else:
                file = target.open(path, mode, autocommit=False, **options)
        return WrittenFile(file, lambda: self.forget_changed([path]), self.target.turn)


def _blocking(name: str, operation: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._call_blocking(name, operation, *args, **kwargs)

    return functools.update_wrapper(method, getattr(AbstractFileSystem, name, method))


def _coroutine(name: str, operation: str) -> Callable[..., Any]:
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await self._call_coroutine(f"_{name}", operation, *args, **kwargs)

    method.__name__ = f"_{name}"
    return method


def _install() -> Iterator[str]:
    """Give the class its methods."""
    for name, operation in OPERATIONS.items():
        setattr(Delegation, name, _blocking(name, operation))
        yield name
    for name in COROUTINES:
        operation = OPERATIONS.get(name) or MORE_OPERATIONS[name]
        setattr(Delegation, f"_{name}", _coroutine(name, operation))
        yield f"_{name}"


METHODS = tuple(_install())
