"""Objects of obstore, and of anything else with obspec's methods: `head`, and `get` or `get_range`.

`get` takes conditions, so every read carries `If-Match`, and what comes back names its version: no request more. Where
there is only `get_range`, `head` is asked for after each read, except with `recheck=False`.
"""

import hashlib
import itertools
import time
import weakref
from collections.abc import Sequence
from typing import Any

from pagecache._core import Mutex
from pagecache.stores.destination import Destination
from pagecache.stores.errors import failed_request, meant_error
from pagecache.stores.validators import ChangedError, Version, checked_recheck, stale_error, version_of
from pagecache.units import parse_size

_numbers = itertools.count(1)
_numbered: dict[int, int] = {}  # by address, as long as the object lives
_unforgotten: list[Any] = []
_numbers_lock = Mutex()
_NOT_THIS_VERSION = ("PreconditionError", "NotModifiedError")  # by name: obspec's are classes without an import of theirs


def _number_of(thing: Any) -> int:
    """Return a number that is this object's as long as it lives, and nobody's afterwards; an address would come back."""
    with _numbers_lock.held():
        if id(thing) not in _numbered:
            try:
                weakref.finalize(thing, _numbered.pop, id(thing), None)
            except TypeError:  # it cannot be referenced weakly: it has to stay
                _unforgotten.append(thing)
            _numbered[id(thing)] = next(_numbers)
        return _numbered[id(thing)]


def _is_told(store: Any) -> bool:
    """Whether a store tells what it reads."""
    names = ("config", "prefix", "url") if type(store).__module__.startswith("obstore") else ("config", "prefix")
    return any(getattr(store, name, None) for name in names)


def identity_of(store: Any) -> str:
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
    if getattr(store, "credential_provider", None) is not None:
        parts.append(str(_number_of(store.credential_provider)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def scope_of(store: Any) -> str:
    """Return where `identity_of` means the same: in this "process", on this "machine", or "everywhere"."""
    if not _is_told(store) or getattr(store, "credential_provider", None) is not None:
        return "process"
    return "machine" if type(store).__name__ == "LocalStore" else "everywhere"


class ObspecStore:
    """One object of an obspec store.

    store: for example an `obstore.store.S3Store`. path: of the object in it. recheck: as for FsspecStore.
    whole_up_to: as for FsspecStore.
    key: identity, if two store objects are known to be the same; else it is taken from kind, prefix and configuration.
    Raises FileNotFoundError, OSError, and what `head` raises.
    Context: obstore reads without the GIL.
    """

    preferred_request = 128 * 1024
    max_request = 16 * 1024 * 1024
    parallel_requests = 32
    readahead_requests = 8

    def __init__(
        self,
        store: Any,
        path: str,
        *,
        recheck: bool | str | float = "open",
        key: str | None = None,
        version: Version | None = None,
        whole_up_to: int | str = 0,
    ):
        missing = [name for name in ("head", "get_range") if not hasattr(store, name)]
        if missing:
            raise TypeError(f"{type(store).__name__} is no obspec store: it lacks {', '.join(missing)}")
        self.recheck = checked_recheck(recheck)
        self.is_immutable = self.recheck is False
        self.whole_up_to = parse_size(whole_up_to)
        self.store = store
        self.path = path
        self.name = f"{type(store).__name__}:{path}"
        self._given_key = key
        self._conditional = hasattr(store, "get")
        self.key = f"obspec:{key or identity_of(store)}:{path}"
        self.origin = f"obspec:{identity_of(store)}"
        if self.is_immutable and not self._conditional:
            self.key += "#unverified"  # what was read without looking is not served to those who want it verified
        self.key_scope = "everywhere" if key else scope_of(store)
        self.latency = "local" if type(store).__name__ in ("MemoryStore", "LocalStore") else "remote"
        self.known_version = version
        if version is None and not self.is_immutable:
            self.refresh()

    @property
    def version(self) -> Version:
        """What is known of the object."""
        return self.known_version or self.refresh()

    def refresh(self) -> Version:
        """Ask for the present version. Raises OSError."""
        asked_at = time.monotonic()
        try:
            meta = self.store.head(self.path)
        except Exception as error:
            raise meant_error(error, self.name) or failed_request(error, self.name) from error
        version = version_of(meta, self.name, asked_at)
        if self.known_version is None or self.known_version.checked_at <= asked_at:  # answers may overtake each other
            self.known_version = version
        return version

    def size(self) -> int:
        """Return the size (bytes) of the version that is known."""
        return self.version.size

    def validator(self) -> str | None:
        """Return the validator of the version that is known; asks for nothing. With recheck=False a size is enough."""
        version = self.version
        return f"size={version.size}" if version.validator is None and self.is_immutable else version.validator

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled.

        Raises OSError (ESTALE) when the object is no longer of the known version; then `validator` tells the new one.
        """
        version = self.version
        destination = Destination(buffers)
        try:
            verified = self._read(version, offset, destination)
        except ChangedError:
            self.refresh()
            raise stale_error(self.name, offset, self.is_immutable) from None
        except Exception as error:
            meant = meant_error(error, self.name)
            if meant is None:
                raise
            raise meant from error
        finally:
            destination.detach()
        if version.validator is not None:
            now = self.version if verified or self.is_immutable else self.refresh()
            if now.validator != version.validator:
                raise stale_error(self.name, offset, self.is_immutable)
        return destination.done

    def _read(self, version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination; whether the bytes are known to be of this version."""
        end = min(start + destination.wanted, version.size)
        if start >= end:
            return True
        if not self._conditional:
            destination.put(self.store.get_range(self.path, start=start, end=end))
            return False
        options: dict[str, Any] = {"range": (start, end)}
        if version.strong_etag:
            options["if_match"] = version.strong_etag
        try:
            answer = self.store.get(self.path, options=options)
            _raise_if_changed(answer.meta, version)
            if next(iter(answer.range)) != start:
                raise OSError(5, f"the store answered with the range {answer.range} where byte {start} was asked for")
            for piece in answer:
                destination.put(piece)
        except Exception as error:
            if type(error).__name__ in _NOT_THIS_VERSION:
                raise ChangedError from None
            raise
        return bool(version.etag and answer.meta.get("e_tag"))

    def close(self) -> None:
        """Do nothing: the object store lives on."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.store, self.path, self.recheck, self._given_key, self.whole_up_to)

    def __copy__(self) -> "ObspecStore":
        return _open_again(self.store, self.path, self.recheck, self._given_key, self.whole_up_to)

    def __repr__(self) -> str:
        return f"<ObspecStore {self.name}>"


def _raise_if_changed(meta: Any, version: Version) -> None:
    """Raise ChangedError if an answer is of another version than the one asked for."""
    etag = meta.get("e_tag")
    if etag and version.etag and etag != version.etag:
        raise ChangedError
    if meta.get("size", version.size) != version.size:
        raise ChangedError


def _open_again(
    store: Any, path: str, recheck: bool | str | float, key: str | None, whole_up_to: int
) -> ObspecStore:
    return ObspecStore(store, path, recheck=recheck, key=key, whole_up_to=whole_up_to)
