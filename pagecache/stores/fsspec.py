"""Objects of any fsspec file system.

What is cached is one version of an object, known by its validator (`validators.validator_of`).  Every read of the store
is held against that version:

* HTTP and S3 get `If-Match`, and what the answer says about its version is compared as well: no request more.
* Other file systems cannot ask under a condition: `info` is asked for after each read, one request more.  With
  `recheck=False` it is not, which is for objects that never change.

So a version that is no longer there is an error (ESTALE), never a mix.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from pagecache.extras import extra_of_url, needs
from pagecache.options import OF_OPEN, OF_URLS, check_spelling, constructor_parameters
from pagecache.stores import fsspec_ranges
from pagecache.stores.abandoned import Abandoned, current_call, waiting
from pagecache.stores.apart import call_apart
from pagecache.stores.attempts import (
    TimeLimitError,
    checked_attempts,
    is_limited,
    no_limit_error,
    time_left_s,
    time_limit_error,
)
from pagecache.stores.call_options import are_of_this_process, key_part, request_options
from pagecache.stores.described import Described, Memory
from pagecache.stores.destination import Destination
from pagecache.stores.errors import failed_request, meant_error
from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.fsspec_instances import (
    Callers,
    Instance,
    Own,
    Shared,
    instance_made_for_us,
    instance_of,
    instance_of_url,
)
from pagecache.stores.fsspec_kinds import is_of_machine
from pagecache.stores.fsspec_protocols import FileSystem
from pagecache.stores.fsspec_remake import can_be_remade
from pagecache.stores.fsspec_sync import SyncRanges
from pagecache.stores.in_order import Body
from pagecache.stores.signed_urls import checked_names, url_without
from pagecache.stores.validators import Version
from pagecache.stores.versioned import VersionedStore

_OF_TEXT_FILES = ("compression", "encoding", "errors", "expand", "mode", "name_function", "newline", "num")
_Result = TypeVar("_Result")
_newest_paths = Memory()  # URLs that were asked for last, by keys that leave a part of them out
PARALLEL_REQUESTS = 32  # of one object; the library behind may carry out fewer at once


def _place_of(path: str) -> str:
    """Return the server or bucket of a path."""
    scheme, separator, rest = path.rpartition("://")
    return scheme + separator + rest.lstrip("/").partition("/")[0]


class FsspecStore(VersionedStore):
    """One object of an fsspec file system.

    fs: the file system. path: the object's, as the file system or as a URL writes it. recheck: False for objects that
    never change: then cached bytes are taken for good without asking, and read without `info` where the file system has
    no conditional requests. version: what is already known of the object; else `info` is asked for, at once, or when it is
    needed if recheck is False. whole_up_to: bytes; an object no larger is read whole, by one request, at its first miss.
    options: of one call, as the file system's `open` or `cat_file` takes them (version_id, headers and so on): they go to
    every request, and are part of the key. thread_safe: whether the file system may be called by several threads at once,
    while its user calls it too; None: what is known of its class. If not, it is read in its user's threads, or one like it
    that is made from the same arguments. exclusive: only the cache calls this file system, so that it may be read in the
    background, one call at a time. key_without: "signature" for URLs that are signed anew now and then: what is cached is
    found again by the next one, and read on by it; or names of the parameters of the URL that do not choose the bytes.
    timeout_s: seconds that a request may take; of an answer that is read in order, without anything coming; None: as the
    library has it. retries: how often a request is tried again after an error that can pass (time-outs, connections that
    were cut, status 429 or 5xx), with pauses that grow (stores/attempts.py).
    Raises FileNotFoundError, IsADirectoryError, OSError; ENOTSUP if the object has no size; TypeError for an option that
    the file system does not have; ValueError for a time limit that cannot be kept.
    Context: requests of asynchronous file systems run on fsspec's loop while the calling thread waits; do not call this
    on that loop. What threads call the others, and how many at once: stores/fsspec_instances.py.
    """

    preferred_request = 128 * 1024
    max_request = 16 * 1024 * 1024
    readahead_requests = 8

    def __init__(
        self,
        fs: FileSystem | Instance,
        path: str,
        *,
        recheck: bool | str | float = "open",
        version: Version | None = None,
        whole_up_to: int | str = 0,
        options: Mapping[str, Any] | None = None,
        thread_safe: bool | None = None,
        exclusive: bool = False,
        key_without: str | Sequence[str] = (),
        timeout_s: float | None = None,
        retries: int = 0,
    ):
        attempts = checked_attempts(timeout_s, retries)
        self._thread_safe = thread_safe
        self._instance: Instance
        if isinstance(fs, (Shared, Own, Callers)):
            self._instance = fs
        else:
            self._instance = instance_of(fs, thread_safe=thread_safe, exclusive=exclusive)
        self.template = self._instance.template  # what describes the file system without a call
        self.key_without = checked_names(key_without)
        self._own_path: str = self.template._strip_protocol(path)
        self._was_asked = False  # so that its signature is known to hold
        lasting_path = url_without(self._own_path, self.key_without)
        name = self.template.unstrip_protocol(lasting_path)
        super().__init__(name, recheck=recheck, version=version, whole_up_to=whole_up_to, attempts=attempts)
        self._ranges: SyncRanges[Any] = fsspec_ranges.ranges_of(self.template)
        self.options = request_options(options)
        self._ranges.check_options(self)
        # what is left of a signed URL may be another object by itself, or one for others: it has a key of its own
        signed = "#signed" if self.key_without else ""
        self.key = f"fsspec:{self._instance.identity}:{lasting_path}{signed}{key_part(self.options)}"
        if self.is_immutable and not self._ranges.conditional:
            self.key += "#unverified"  # what was read without looking is not served to those that have it verified
        self.origin = f"fsspec:{self._instance.identity}:{_place_of(lasting_path)}"
        self.parallel_requests = PARALLEL_REQUESTS if self._instance.is_parallel else 1
        self.background_reads = self._instance.background_reads
        self.leaves_behind = isinstance(self._instance, Own) and can_be_remade(self.template)
        self._is_asynchronous = isinstance(self._ranges, AsyncRanges) and self._ranges.reads_ranges(self)
        if timeout_s is not None and not self._is_asynchronous and not self.background_reads:
            raise no_limit_error(type(self.template).__name__)
        self.latency = "remote" if self._ranges.remote else "local"
        scope = "everywhere" if self._ranges.remote and not is_of_machine(self.template) else "machine"
        numbered = self._instance.is_numbered or are_of_this_process(self.options)
        self.key_scope = "process" if numbered else scope
        if self.is_immutable and self.key_without:
            self._take_for_newest()
        if version is None and not self.is_immutable:
            self.refresh()

    @property
    def path(self) -> str:
        """The path that requests are for: of stores of one key the one that was asked for last, as its signature holds."""
        newest = _newest_paths.get(self.key) if self._was_asked else None
        return str(newest or self._own_path)

    def _take_for_newest(self) -> None:
        """Have all stores of this key ask for the path of this one."""
        self._was_asked = True
        _newest_paths.note(self.key, self._own_path)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the file system may wait for: none of these calls may be made there."""
        from fsspec.asyn import loop

        running: asyncio.AbstractEventLoop | None = loop[0]
        return running

    @property
    def fs(self) -> Any:
        """The file system that calls go to. Context: only within a turn of the instance."""
        return self._instance.fs

    # -- reading -------------------------------------------------------------------------------------------------------

    def describe(self) -> Described:
        """Ask the file system what the object is now, past its cache of listings; the caller closes a body that comes
        along. Raises OSError; TypeError for an option that the file system does not have."""
        try:
            with self._instance.turn():
                described = self._ranges.describe(self)
            if self.key_without and not self._was_asked:
                self._take_for_newest()
            return described
        except TypeError:  # of the arguments, not of the store
            raise
        except Exception as error:
            raise meant_error(error, self.name) or failed_request(error, self.name) from error

    def read_range(self, version: Version, start: int, destination: Destination) -> bool:
        """Fill a destination from byte `start` on. Returns whether the bytes are known to be of the version."""
        return self._ranges.read(self, version, start, destination)

    def open_body(self, version: Version) -> Body:
        """Begin to read all of a version."""
        return self._ranges.open_body(self, version)

    def doubt_head(self) -> None:
        """Do not believe what HEAD says about the object any more."""
        self._ranges.doubt_head(self)

    def _fill(self, version: Version, offset: int, destination: Destination, tells: bool) -> bool:
        with self._instance.turn():
            return super()._fill(version, offset, destination, tells)

    def limited(self, function: Callable[[], _Result]) -> _Result:
        """Return what a request brings: one that blocks is made by another thread, if it has to end in time. Raises
        TimeLimitError."""
        if self._is_asynchronous or not is_limited():
            return function()
        try:
            return call_apart(function, time_left_s)
        except TimeLimitError:
            self._instance.leave_behind()
            raise

    def run(
        self, coroutine: Coroutine[Any, Any, _Result], destination: Destination | None = None, *, is_whole: bool = False
    ) -> _Result:
        """Run a coroutine on the file system's loop and return its result.

        destination: what it fills; taken away when the wait ends early. is_whole: it keeps time limits itself.
        Raises RuntimeError on the loop's own thread; Abandoned when no thread waits for the call any more; TimeLimitError.
        """
        loop = self.fs.loop
        if asyncio._get_running_loop() is loop:
            coroutine.close()
            raise RuntimeError(f"cannot wait for {self.name} on fsspec's own event loop: use the asynchronous methods")
        call = current_call()
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            with waiting(future.cancel):
                return future.result(None if is_whole else time_left_s())
        except BaseException as error:
            if isinstance(error, TimeoutError) and not future.done():
                error = time_limit_error(self.attempts.timeout_s)
            if not future.done() or future.cancelled():  # else it is its own error, and it writes nothing any more
                if destination is not None:
                    destination.detach()
                future.cancel()
                if call is not None and call.is_abandoned:
                    raise Abandoned from None
                raise error from None
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self._instance.template, isinstance(self._instance, Own), self.path, self._how())

    def __copy__(self) -> "FsspecStore":
        return FsspecStore(self._instance, self.path, **self._how())

    def _how(self) -> dict[str, Any]:
        """Return the arguments of this store, but for the object and its version."""
        how = {"recheck": self.recheck, "whole_up_to": self.whole_up_to, "thread_safe": self._thread_safe}
        return {**how, "options": self.options, "key_without": self.key_without, **self.attempts._asdict()}


def _open_again(fs: FileSystem, is_ours: bool, path: str, how: Mapping[str, Any]) -> FsspecStore:
    return FsspecStore(instance_made_for_us(fs) if is_ours else fs, path, **how)


def store_of_url(
    url: str,
    *,
    recheck: bool | str | float = "open",
    whole_up_to: int | str = 0,
    thread_safe: bool | None = None,
    key_without: str | Sequence[str] = (),
    timeout_s: float | None = None,
    retries: int = 0,
    **storage_options: Any,
) -> FsspecStore:
    """Return the store of a URL, which may be chained.

    recheck, whole_up_to, thread_safe, key_without, timeout_s, retries: as for FsspecStore. storage_options: as
    `fsspec.open` takes them.
    Raises ImportError, with what to install, when fsspec or the protocol's library is missing; TypeError for options that
    would be lost; else as FsspecStore.
    """
    with needs(extra_of_url(url), f"opening {url}"):
        import fsspec.core  # noqa: F401

        _check_storage_options(url, storage_options)
        try:
            instance, path = instance_of_url(url, storage_options, thread_safe=thread_safe)
        except ValueError as error:
            raise ValueError(f"cannot open {url}: {error}") from error
    how: dict[str, Any] = {"recheck": recheck, "whole_up_to": whole_up_to, "thread_safe": thread_safe}
    how |= {"key_without": key_without, "timeout_s": timeout_s, "retries": retries}
    return FsspecStore(instance, path, **how)


def _check_storage_options(url: str, options: Mapping[str, Any]) -> None:
    """Check that options are for the file system of a URL. Raises TypeError for those that would be lost."""
    for name in _OF_TEXT_FILES:
        if options.get(name) is not None:
            how = f"fsspec.open('pagecache::{url}', {name}=...)"
            raise TypeError(f"{name}= is not for {url}, which is read as the bytes that it has: use {how}")
    try:
        theirs = constructor_parameters(type_of_url(url))
    except (ValueError, ImportError):  # raised, with what to do, when it is opened
        return
    check_spelling(options, OF_OPEN + OF_URLS, theirs, "PageCache.open")
    for name in options:
        if name in OF_OPEN and name not in theirs:
            raise TypeError(f"{name}= is an option of PageCache.open, not of a store")


def type_of_url(url: str) -> type:
    """Return the class of the file system of a URL, of the first one if it is chained. Raises ValueError, ImportError."""
    from fsspec.core import get_filesystem_class

    first = url.partition("::")[0]
    kind: type = get_filesystem_class(first.partition("://")[0])
    return kind
