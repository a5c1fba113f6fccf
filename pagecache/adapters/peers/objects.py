"""The objects that this process serves to its peers: open files of the group's cache, found by key and version.

A peer names an object; it never says how to open it.  What this process has open itself it opens once more; everything
else is opened by the group's resolver, which is given the name, and is taken only if its key and its version are those
that were asked for.  So a peer cannot make this process read with rights, or from places, that its own configuration does
not name, and a mistake in the configuration costs a visit to the origin, never wrong bytes.
"""

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import mmh3

from pagecache._core import Mutex
from pagecache.adapters.peers import protocol
from pagecache.adapters.peers.server import RefusedError
from pagecache.files.file import FADV_RANDOM, File
from pagecache.stores.base import BackingStore

OPEN_MAX = 256
OPENING_MAX = 64  # objects that are opened at once
LOCAL_PROTOCOLS = ("file", "local", "memory")

Resolver = Callable[[str], BackingStore]


class UrlResolver:
    """Opens URLs of remote file systems by fsspec.

    storage_options: {protocol: options}. Names of local files are refused: which of them a peer may read only a resolver
    of the user's own can tell.
    """

    def __init__(self, storage_options: Mapping[str, Mapping[str, Any]] | None = None):
        self._options = {name: dict(options) for name, options in (storage_options or {}).items()}

    def __call__(self, name: str) -> BackingStore:
        """Return a store. Raises ValueError for what is no remote URL; OSError, ImportError as fsspec does."""
        from pagecache.stores.fsspec import store_of_url

        protocol_name, separator, _ = name.partition("://")
        if not separator or "::" in name or protocol_name in LOCAL_PROTOCOLS:
            raise ValueError(f"{name} is not the URL of a remote object")
        return store_of_url(name, **self._options.get(protocol_name, {}))


class ServedObjects:
    """The open files of what peers ask for.

    open_file: opens a store through the group's cache. resolver: returns a store for a name, or raises.
    Context: safe from any thread; one of those that need the same object opens it, without a lock that others need.
    """

    def __init__(self, open_file: Callable[[BackingStore], File], resolver: Resolver):
        self._open_file = open_file
        self._resolver = resolver
        self._own: weakref.WeakValueDictionary[str, BackingStore] = weakref.WeakValueDictionary()
        self._files: OrderedDict[tuple[str, str], File] = OrderedDict()
        self._opening = [Mutex() for _ in range(OPENING_MAX)]
        self._lock = Mutex()
        self._closed = False

    def note_own(self, origin: BackingStore) -> None:
        """Note that this process reads an object itself, by this store."""
        try:
            self._own[str(origin.key)] = origin
        except TypeError:  # it cannot be referenced weakly
            pass

    def find(self, key: str, validator: str) -> File | None:
        """Return the open file of a version, or None."""
        with self._lock.held():
            file = self._files.get((key, validator))
            if file is not None and not file.closed:
                self._files.move_to_end((key, validator))
                return file
        return None

    def open(self, key: str, validator: str, name: str) -> File:
        """Return the file of a version, opened if need be. Raises RefusedError. Context: may ask the origin."""
        with self._opening[mmh3.hash(key, signed=False) % OPENING_MAX].held():
            return self.find(key, validator) or self._open(key, validator, name)

    def _open(self, key: str, validator: str, name: str) -> File:
        store = self._store(key, validator, name)
        try:
            file = self._open_file(store)
        except (OSError, ValueError, TypeError):
            raise RefusedError(protocol.FAILED) from None
        if file.mapping.validator != validator or str(file.mapping.key) != key:
            file.close()
            raise RefusedError(protocol.STALE)
        file.fadvise(FADV_RANDOM)  # what is read is what was asked for: the reader reads ahead, not its owner
        with self._lock.held():
            self._files[key, validator] = file
            surplus = [self._files.popitem(last=False)[1] for _ in range(len(self._files) - OPEN_MAX)]
            if self._closed:
                surplus, self._files = [*surplus, file], OrderedDict()
        for old in surplus:
            old.close()
        return file

    def _store(self, key: str, validator: str, name: str) -> BackingStore:
        """Return a store of exactly this object and version. Raises RefusedError."""
        own = self._own.get(key)
        try:
            store = copy.copy(own) if own is not None else self._resolver(name)
            if str(store.key) != key:
                store.close()
                raise RefusedError(protocol.UNKNOWN)
            if store.validator() != validator and hasattr(store, "refresh"):
                store.refresh()
            if store.validator() != validator:
                store.close()
                raise RefusedError(protocol.STALE)
        except RefusedError:
            raise
        except Exception:
            raise RefusedError(protocol.UNKNOWN) from None
        return store

    def close(self) -> None:
        """Close all files."""
        with self._lock.held():
            self._closed = True
            files, self._files = list(self._files.values()), OrderedDict()
        for file in files:
            file.close()
