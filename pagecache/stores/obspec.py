"""Objects of obstore, and of anything else with obspec's methods: `head`, and `get` or `get_range`.

`get` takes conditions, so every read carries `If-Match`, and what comes back names its version: no request more. Where
there is only `get_range`, `head` is asked for after each read, except with `recheck=False`.

Where `head` fails, or says that there is nothing, a `get` of the first byte decides: HTTP servers may know no HEAD. Servers
without ranges refuse it, which obstore calls NotSupportedError: their objects are read from the beginning.

obstore's own stores are for any number of threads.  Of others that is not known: they are called by the threads that read
through the cache, one at a time for each store, unless their user says `thread_safe`.
"""

import contextlib
import errno
import hashlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from pagecache._core import Mutex
from pagecache.stores.abandoned import current_call
from pagecache.stores.apart import call_apart
from pagecache.stores.attempts import checked_attempts, is_limited, no_limit_error, time_left_s
from pagecache.stores.described import Described, Memory, WholeAnswerError
from pagecache.stores.destination import Destination
from pagecache.stores.errors import failed_request, meant_error
from pagecache.stores.in_order import PIECE, Body, Take
from pagecache.stores.turns import Turns
from pagecache.stores.validators import ChangedError, Version, is_proved
from pagecache.stores.versioned import VersionedStore

PARALLEL_REQUESTS = 32  # of one object, where the store is for threads
_numbers = itertools.count(1)
_numbered: dict[int, int] = {}  # by address, as long as the object lives
_unforgotten: list[object] = []
_numbers_lock = Mutex()
_turns: dict[int, Turns] = {}  # by number
_heads_untrue = Memory()  # keys of objects of which `head` says something else than `get`
_NOT_THIS_VERSION = ("PreconditionError", "NotModifiedError")  # by name: obspec's are classes without an import of theirs
_NO_RANGES = ("NotSupportedError",)
_Result = TypeVar("_Result")
_NO_RIGHT = ("PermissionDeniedError", "UnauthenticatedError")


class Answer(Protocol):
    """What a `get` brings. obstore's has `stream` as well."""

    range: tuple[int, int]

    @property
    def meta(self) -> Mapping[str, Any]: ...

    def __iter__(self) -> Iterator[bytes]: ...


class ObjectStore(Protocol):
    """What is used of an obspec store; it may be without `get`."""

    def head(self, path: str) -> Mapping[str, Any]: ...

    def get(self, path: str, *, options: Mapping[str, Any] | None = None) -> Answer: ...

    def get_range(self, path: str, *, start: int, end: int) -> bytes: ...


def _number_of(thing: object) -> int:
    """Return a number that is this object's as long as it lives, and no other's afterwards; an address would come back."""
    with _numbers_lock.held():
        if id(thing) not in _numbered:
            try:
                weakref.finalize(thing, _numbered.pop, id(thing), None)
            except TypeError:  # it cannot be referenced weakly: it has to stay
                _unforgotten.append(thing)
            _numbered[id(thing)] = next(_numbers)
        return _numbered[id(thing)]


def _turns_of(store: object) -> Turns:
    """Return the turns of one store object."""
    number = _number_of(store)
    with _numbers_lock.held():
        if number not in _turns:
            _turns[number] = Turns()
            with contextlib.suppress(TypeError):  # then it stays, as its number does
                weakref.finalize(store, _turns.pop, number, None)
        return _turns[number]


def _is_for_threads(store: object) -> bool:
    """Whether a store is obstore's own: those are for threads. A class made from one may do anything."""
    return type(store).__module__ in ("obstore.store", "obstore._store")


def _is_told(store: object) -> bool:
    """Whether a store describes what it reads."""
    names = ("config", "prefix", "url") if type(store).__module__.startswith("obstore") else ("config", "prefix")
    return any(getattr(store, name, None) for name in names)


def identity_of(store: object) -> str:
    """Return what is the same for stores that reach the same objects with the same rights, in this process: their kind,
    URL or prefix, and configuration; a number for a store that has none."""
    if not _is_told(store):
        return f"{type(store).__name__}#{_number_of(store)}"
    parts = [
        f"{type(store).__module__}.{type(store).__qualname__}",
        str(getattr(store, "prefix", None)),
        str(getattr(store, "url", None)),
        str(sorted(dict(getattr(store, "config", None) or {}).items())),
        str(sorted(dict(getattr(store, "client_options", None) or {}).items(), key=str)),
    ]
    provider = getattr(store, "credential_provider", None)
    if provider is not None:
        parts.append(str(_number_of(provider)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def scope_of(store: object) -> str:
    """Return where `identity_of` means the same: in this "process", on this "machine", or "everywhere"."""
    if not _is_told(store) or getattr(store, "credential_provider", None) is not None:
        return "process"
    return "machine" if type(store).__name__ == "LocalStore" else "everywhere"


class ObspecBody:
    """An answer that brings all of an object."""

    def __init__(self, answer: Answer, is_proved: bool):
        self._pieces = iter(answer.stream(min_chunk_size=PIECE) if hasattr(answer, "stream") else answer)
        self.is_proved = is_proved

    def pump(self, take: Take) -> None:
        """Give what comes next."""
        for piece in self._pieces:
            if not take(bytes(piece)):
                return

    def close(self) -> int:
        """Let go of the answer."""
        self._pieces = iter(())
        return 0


class ObspecStore(VersionedStore):
    """One object of an obspec store.

    store: for example an `obstore.store.S3Store`. path: of the object in it. recheck: as for FsspecStore.
    whole_up_to: as for FsspecStore.
    key: identity, if two store objects are known to be the same; else it is taken from kind, prefix and configuration.
    Only stores that are for threads share it.
    thread_safe: whether any number of threads may call the store, while its user calls it too; None: if it is obstore's.
    Otherwise it is called by the threads that read through the cache, while they wait, one at a time.
    timeout_s, retries: as for FsspecStore; a try of so many seconds is one request here, as far as its last byte.
    Raises FileNotFoundError, OSError, and what `head` raises; ValueError for a time limit that cannot be kept.
    Context: obstore reads without the GIL. It looks for no signals meanwhile, so the main thread has another one call it.
    """

    preferred_request = 128 * 1024
    max_request = 16 * 1024 * 1024
    readahead_requests = 8

    def __init__(
        self,
        store: ObjectStore,
        path: str,
        *,
        recheck: bool | str | float = "open",
        key: str | None = None,
        version: Version | None = None,
        whole_up_to: int | str = 0,
        thread_safe: bool | None = None,
        timeout_s: float | None = None,
        retries: int = 0,
    ):
        attempts = checked_attempts(timeout_s, retries)
        missing = [name for name in ("head", "get_range") if not hasattr(store, name)]
        if missing:
            raise TypeError(f"{type(store).__name__} is no obspec store: it lacks {', '.join(missing)}")
        name = f"{type(store).__name__}:{path}"
        super().__init__(name, recheck=recheck, version=version, whole_up_to=whole_up_to, attempts=attempts)
        self.store = store
        self.path = path
        self._given_key = key
        self._thread_safe = thread_safe
        is_for_threads = _is_for_threads(store) if thread_safe is None else thread_safe
        if timeout_s is not None and not is_for_threads:
            raise no_limit_error(type(store).__name__)
        self.background_reads = is_for_threads
        self.parallel_requests = PARALLEL_REQUESTS if is_for_threads else 1
        self._turns = None if is_for_threads else _turns_of(store)
        self._conditional = hasattr(store, "get")
        self.key = f"obspec:{key or identity_of(store)}:{path}"
        if not is_for_threads:
            self.key += f"#{_number_of(store)}"  # another store, also one that is the same, has other callers
        self.origin = f"obspec:{identity_of(store)}"
        if self.is_immutable and not self._conditional:
            self.key += "#unverified"  # what was read without looking is not served to those that have it verified
        self.key_scope = "process" if not is_for_threads else "everywhere" if key else scope_of(store)
        self.latency = "local" if type(store).__name__ in ("MemoryStore", "LocalStore") else "remote"
        self._blocks_signals = is_for_threads and self.latency == "remote" and type(store).__module__.startswith("obstore")
        self._head_may_fail = self._conditional and type(store).__name__ == "HTTPStore"
        if version is None and not self.is_immutable:
            self.refresh()

    # -- size and version ----------------------------------------------------------------------------------------------

    def describe(self) -> Described:
        """Ask what the object is now. Raises OSError."""
        try:
            with self._turn():
                return self._describe()
        except Exception as error:
            raise meant_error(error, self.name) or failed_request(error, self.name) from error

    def _describe(self) -> Described:
        meta = None
        if not self._conditional:
            return Described(self.store.head(self.path), by_head=True)
        if not _heads_untrue.get(self.key):
            try:
                meta = self.store.head(self.path)
                if meta.get("size") or not self._head_may_fail:
                    return Described(meta, by_head=True)
            except Exception as error:
                if _says_absent(error) and not self._head_may_fail:
                    raise
        try:
            return Described(self.store.get(self.path, options={"range": (0, 1)}).meta, serves_ranges=True)
        except Exception as error:
            has_no_ranges = _is_named(error, _NO_RANGES)
            if not has_no_ranges and (meta is None or _says_absent(error) or _is_named(error, _NO_RIGHT)):
                raise
        answer = self.store.get(self.path)  # the part was refused, or of an object that is empty it does not exist
        body = ObspecBody(answer, bool(answer.meta.get("e_tag")))
        is_without = has_no_ranges or bool(answer.meta.get("size"))
        return Described(answer.meta, serves_ranges=False if is_without else None, body=body)

    def doubt_head(self) -> None:
        """Do not believe what `head` says about the object any more."""
        _heads_untrue.note(self.key)

    def _turn(self) -> contextlib.AbstractContextManager[object]:
        """For the length of a call of the store. Context: waits for the calls of others, if it is one at a time."""
        return contextlib.nullcontext() if self._turns is None else self._turns.lock.held()

    def limited(self, function: Callable[[], _Result]) -> _Result:
        """Return what a request brings: it is made by another thread, if it has to end in time, or by a signal. Raises
        TimeLimitError."""
        call = current_call()
        is_main = threading.current_thread() is threading.main_thread()
        has_to_return = self._blocks_signals and (is_main or (call is not None and call.returns))
        if not is_limited() and not has_to_return:
            return function()
        return call_apart(function, time_left_s)

    def _fill(self, version: Version, offset: int, destination: Destination, tells: bool) -> bool:
        with self._turn():
            return super()._fill(version, offset, destination, tells)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read_range(self, version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination; whether the bytes are known to be of this version."""
        end = min(start + destination.wanted, version.size)
        if start >= end:
            return True
        if not self._conditional:
            destination.put(self.store.get_range(self.path, start=start, end=end))
            return False
        try:
            answer = self._get(version, (start, end))
        except Exception as error:
            if not _is_named(error, _NO_RANGES):
                raise
            raise WholeAnswerError(self.open_body(version)) from None
        if next(iter(answer.range)) != start:
            reason = f"the store answered with the range {answer.range} where byte {start} was asked for"
            raise OSError(errno.EIO, reason)
        for piece in answer:
            destination.put(piece)
        if destination.done < end - start:
            reason = f"the answer ended after {destination.done} bytes, though it is the range {answer.range}"
            raise OSError(errno.EIO, reason)
        return self._is_of_version(answer, version)

    def _get(self, version: Version, span: tuple[int, int] | None = None) -> Answer:
        """Ask for a version of the object, or a range of it. Raises ChangedError if it is another one."""
        options: dict[str, Any] = {} if span is None else {"range": span}
        if version.strong_etag and self.sends_conditions:
            options["if_match"] = version.strong_etag
        try:
            answer = self.store.get(self.path, options=options)
        except Exception as error:
            if _is_named(error, _NOT_THIS_VERSION):
                raise ChangedError("it is refused under its condition", is_refusal=True) from None
            raise
        size = answer.meta.get("size", version.size)
        self._is_of_version(answer, version)
        if size != version.size:
            raise ChangedError(f"the object has {size} bytes, not {version.size}")
        return answer

    @staticmethod
    def _is_of_version(answer: Answer, version: Version) -> bool:
        return is_proved(answer.meta.get("e_tag"), None, version)

    def open_body(self, version: Version) -> Body:
        """Begin to read all of a version."""
        answer = self._get(version)
        return ObspecBody(answer, self._is_of_version(answer, version))

    def __reduce__(self) -> tuple[Any, ...]:
        how = {"recheck": self.recheck, "key": self._given_key, "whole_up_to": self.whole_up_to}
        how |= {"thread_safe": self._thread_safe, **self.attempts._asdict()}
        return _open_again, (self.store, self.path, how)

    def __copy__(self) -> "ObspecStore":
        function, arguments = self.__reduce__()
        again: ObspecStore = function(*arguments)
        return again


def _says_absent(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or _is_named(error, ("NotFoundError",))


def _is_named(error: BaseException, names: tuple[str, ...]) -> bool:
    return type(error).__name__ in names


def _open_again(store: ObjectStore, path: str, how: dict[str, Any]) -> ObspecStore:
    return ObspecStore(store, path, **how)
