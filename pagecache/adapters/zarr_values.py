"""The values of a Zarr store that are known: their sizes and versions, and the files open on them."""

import contextlib
import itertools
import os
import time
import weakref
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from pagecache._core import Mutex
from pagecache.adapters.zarr_source import Answer, ObstoreSource, StoreSource, ValueStore
from pagecache.default import default_cache
from pagecache.files.file import File
from pagecache.files.prefetch import _order_for
from pagecache.requests import fill, submit
from pagecache.units import PAGE_SHIFT

MAX_KEYS = 1_000_000  # known keys; an entry takes about 300 bytes
MAX_FILES = 2048  # open files: far fewer than a cache has mappings
_names = itertools.count(1)
_versions = itertools.count(1)  # an old value's pages must never be taken for a new one's


class Value:
    """What is known of one key. size: bytes, or None when there is no such key."""

    __slots__ = ("answer_version", "checked_s", "file", "size", "store")

    def __init__(self, size: int | None, answer_version: str | None, store: ValueStore | None):
        self.size = size
        self.answer_version = answer_version
        self.store = store
        self.file: File | None = None
        self.checked_s = time.monotonic()


class LoadCancelled(Exception):
    """Whoever made a request gave up: somebody else has to."""


class Loading(Future[Answer | None]):
    """The first request for a key, under way. is_stale: the key was written meanwhile."""

    is_stale = False


class Values:
    """The known values of one Zarr store, shared by its read-only and writable forms.

    cache: a `PageCache`, or None: the process's own. name: what tells this store's keys from others' in the cache.
    Context: thread-safe; no lock is held while bytes are read.
    """

    def __init__(self, cache: Any, name: str | None):
        self.name = name if name is not None else f"zarr:{next(_names)}"
        self._given_cache = cache
        self._begin()
        weakref.finalize(self, _close_files, self._files)

    @classmethod
    def of(cls, cache: Any, name: str | None) -> "Values":
        """Return the values of a name on a cache: the same for all who ask, as long as somebody has them."""
        if name is None:
            return cls(cache, None)
        with _named_lock.held():
            values = _named.get((id(cache), name))
            if values is None:
                values = _named[id(cache), name] = cls(cache, name)  # which keeps the cache, and so its id, alive
            return values

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = Mutex()
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._files: OrderedDict[str, File] = OrderedDict()
        self.loading: dict[str, Loading] = {}

    @property
    def cache(self) -> Any:
        """The cache in use: in a forked child the process's own, as the parent's cannot be used."""
        cache = self._given_cache
        return default_cache() if cache is None or cache.segment.dead else cache

    def _check_process(self) -> None:
        if self._process != os.getpid():  # locks and files are the parent's
            self._begin()
            weakref.finalize(self, _close_files, self._files)

    # -- what is known -------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Value | None:
        """Return what is known of a key."""
        self._check_process()
        return self._values.get(key)

    def begin_load(self, key: str) -> tuple[Loading, bool]:
        """Return the first request for a key, and whether the caller is to make it and call `end_load`."""
        self._check_process()
        with self._lock.held():
            loading = self.loading.get(key)
            if loading is not None:
                return loading, False
            loading = self.loading[key] = Loading()
            return loading, True

    def end_load(self, key: str, loading: Loading, source: StoreSource | ObstoreSource, answer: Answer | None) -> Value:
        """Note what the first request brought, and tell those who wait for it. Returns what is known now."""
        store = None if answer is None else ValueStore(source, self.name, key, answer, self._new_version(answer))
        value = Value(None, None, None) if answer is None else Value(answer.size, answer.version, store)
        with self._lock.held():
            if not loading.is_stale:
                del self.loading[key]
                self._values[key] = value
                while len(self._values) > MAX_KEYS:
                    self._forget(self._values.popitem(last=False)[0])
        loading.set_result(answer)
        return value

    def _new_version(self, answer: Answer) -> str:
        return answer.version if answer.version is not None else f"load {next(_versions)}"

    def fail_load(self, key: str, loading: Loading, error: BaseException) -> None:
        """Tell those who wait that there is no answer; after what is no error of the store they ask for themselves."""
        with self._lock.held():
            if not loading.is_stale:
                del self.loading[key]
        loading.set_exception(error if isinstance(error, Exception) else LoadCancelled())

    # -- files ---------------------------------------------------------------------------------------------------------

    def file_of(self, key: str, value: Value) -> File | None:
        """Return the open file of an existing value, or None when the key was written meanwhile. Raises OSError."""
        file = value.file
        if file is not None and not file.closed and not file.mapping.segment.dead:
            return file
        file = self.cache.open(value.store)
        surplus: list[File] = [file]
        with self._lock.held():
            if self._values.get(key) is value:
                if value.file is None or value.file.closed:
                    value.file = self._files[key] = file
                    surplus.clear()
                while len(self._files) > MAX_FILES:
                    surplus.append(self._files.popitem(last=False)[1])
                file = value.file
            else:
                file = None
        for old in surplus:
            old.close()
        return file

    def keep(self, key: str, value: Value, answer: Answer) -> None:
        """Put the whole pages of what an answer brought into the cache, as far as there is room.

        Context: takes invalidate_lock shared; reads nothing from the store.
        """
        end = answer.start + len(answer.data)
        if not len(answer.data) or len(answer.data) > self.cache.size // 2 or value.store is None:
            return
        first = -(-answer.start >> PAGE_SHIFT)
        last = (-(-end >> PAGE_SHIFT) if end == answer.size else end >> PAGE_SHIFT) - 1
        file = self.file_of(key, value)
        if file is None:
            return
        value.store.know(answer.start, answer.data)
        try:
            with contextlib.suppress(OSError, ValueError), file.mapping.shared():
                for batch in submit.missing_batches(file.mapping, first, last, _order_for(last - first + 1)):
                    try:
                        fill.read_run(file.mapping, batch)
                    finally:
                        batch.release()
        finally:
            value.store.know(0, b"")

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def forget(self, key: str) -> None:
        """Know nothing of a key any more: it was, or will be, written."""
        self._check_process()
        with self._lock.held():
            file = self._forget(key)
        if file is not None:
            _drop(file)

    def _forget(self, key: str) -> File | None:
        self._values.pop(key, None)
        loading = self.loading.pop(key, None)
        if loading is not None:
            loading.is_stale = True
        return self._files.pop(key, None)

    def forget_prefix(self, prefix: str) -> None:
        """Know nothing of any key that begins so any more."""
        with self._lock.held():
            keys = {key for key in (*self._values, *self.loading) if key.startswith(prefix)}
        for key in keys:
            self.forget(key)

    def close_files(self) -> None:
        """Close what is open; it is opened again when it is used."""
        with self._lock.held():
            files = list(self._files.values())
            self._files.clear()
        for file in files:
            file.close()


def _drop(file: File) -> None:
    """Close a file whose pages nobody will read again."""
    with contextlib.suppress(ValueError, RuntimeError, OSError):  # the cache was closed, or is the parent process's
        file.fadvise(4)  # FADV_DONTNEED
    file.close()


def _close_files(files: OrderedDict[str, File]) -> None:
    while files:
        files.popitem()[1].close()


_named_lock = Mutex()
_named: weakref.WeakValueDictionary[tuple[int, str], Values] = weakref.WeakValueDictionary()
