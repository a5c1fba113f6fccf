"""The values of Zarr stores that are known, and where their bytes are in the cache.

What is known of a value is its size and version, or that it does not exist, and when the store was asked. It is known by
the store's identity (what it reads, and with which rights) and by cache, and is kept when no store of that identity is
left: the next one that is made, in a function or by unpickling, begins with it, and with the pages, which the cache keeps
under keys made of the same identity. Whether it may be used as it is, `recheck` says.

A value is read without a file, by its place in the cache. Where that does not have all of it, a file is opened for the
read; only large values, which are read in parts, keep one, up to MAX_FILES of them, so that readahead knows how.

`Values` is what the live stores of one identity share: the table of what is known, the requests under way, the open files.
The files are closed with the last store; the tables stay, as long as they hold fewer than MAX_KEYS keys together.
"""

import contextlib
import itertools
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

from pagecache._core import Mutex, Segment
from pagecache.adapters.zarr_source import Answer, StoreSource, WouldBlockError
from pagecache.cache import PageCache
from pagecache.default import default_cache
from pagecache.files.file import File
from pagecache.files.prefetch import _order_for
from pagecache.requests import fill, submit
from pagecache.stores.validators import Version
from pagecache.units import PAGE_SHIFT

MAX_KEYS = 1_000_000  # known keys; an entry takes about 300 bytes
MAX_FILES = 64  # open files, of values that are read in parts
WHOLE_MAX = 1024 * 1024  # up to so many bytes a value is read by a few reads: no file is kept open on it
MAX_TABLES = 1024  # identities that are known
MAX_OPENINGS = 65536  # openings of stores that are remembered
_names = itertools.count(1)
_process: object = object()  # another one in a forked child: looking at it costs less than asking the system each time
_versions = itertools.count(1)  # an old value's pages must never be taken for a new one's


Place = tuple["weakref.ref[Segment]", int, int]  # the cache's segment, number and generation: see `read_object`


class Value:
    """What is known of one key. size: bytes, or None when there is no such key. is_sure: whether that is more than what the
    store says of it. checked_s: when the store was asked (monotonic seconds). validator: of its pages. place: of the object
    in a cache that had some of them (`Place`), or None. file: kept open on it, or None."""

    __slots__ = ("checked_s", "file", "is_sure", "place", "size", "validator", "version")

    def __init__(self, answer: Answer | None, checked_s: float):
        self.size = None if answer is None else answer.size
        self.version: Version | None = None if answer is None else answer.version
        self.is_sure = answer is None or answer.is_sure
        self.checked_s = checked_s
        self.file: File | None = None
        self.place: Place | None = None
        validator = self.version.validator if self.version is not None else None
        self.validator = validator or f"load {next(_versions)}"

    def is_same(self, answer: Answer | None) -> bool:
        """Whether the store says of a key now what is known of it."""
        if answer is None or self.size is None:
            return answer is None and self.size is None
        return answer.version is not None and self.has_version(answer.version)

    def has_version(self, version: Version) -> bool:
        """Whether the value is of a version."""
        known = self.version
        return known is not None and (known.size, known.validator) == (version.size, version.validator)


class LoadCancelled(Exception):
    """The thread that made a request gave up: another one has to."""


class Loading(Future[Answer | None]):
    """A request for what is not known of a key, under way. is_stale: the key was written meanwhile."""

    is_stale = False


class Values:
    """The known values of one identity, on one cache. Make them by `values_of`.

    cache: a `PageCache`, or None: the process's own. name: the identity. anchor: is kept alive.
    Context: thread-safe; no lock is held while bytes are read.
    """

    def __init__(self, cache: PageCache | None, name: str, anchor: object, is_lasting: bool):
        self.name = name
        self._anchor = anchor
        self._given_cache = cache
        self._is_lasting = is_lasting
        self._begin()

    def _begin(self) -> None:
        """Begin with what is known. Context: the lock of what is shared is held, if there is a table."""
        self._lock = Mutex()
        self._values = _table_of(self._given_cache, self.name) if self._is_lasting else OrderedDict()
        self._files: OrderedDict[str, Value] = OrderedDict()  # those with an open file
        self.loading: dict[str, Loading] = {}
        weakref.finalize(self, _close_files, self._files)
        self._process = _process

    @property
    def cache(self) -> PageCache:
        """The cache in use: in a forked child the process's own, as the parent's cannot be used."""
        cache = self._given_cache
        return default_cache() if cache is None or cache.segment.dead else cache

    def _check_process(self) -> None:
        if self._process is not _process:  # locks and files are the parent's
            with _shared_lock.held():
                if self._process is not _process:
                    self._begin()

    # -- what is known -------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Value | None:
        """Return what is known of a key."""
        if self._process is not _process:
            self._check_process()
        return self._values.get(key)

    def begin_load(self, key: str, mine: Loading) -> Loading:
        """Return the request for a key that is under way; if it is the caller's, which that has to make, it is in charge
        until it calls `end_load`, `note_same` or `fail_load`."""
        self._check_process()
        with self._lock.held():
            return self.loading.setdefault(key, mine)

    def end_load(self, key: str, loading: Loading, answer: Answer | None, asked_s: float) -> Value | None:
        """Note what a request brought, and wake those that wait for it.

        asked_s: taken before the store was asked. Returns what is known now; None if the answer tells no size.
        """
        value = None if answer is not None and answer.size is None else Value(answer, asked_s)
        dropped: list[tuple[str, File | None]] = []
        with self._lock.held():
            if not loading.is_stale:
                del self.loading[key]
                old = self._values.get(key)
                if old is not None and old.is_same(answer):
                    old.checked_s = max(old.checked_s, asked_s)
                    value = old
                else:
                    dropped += self._forget(key)
                    if value is not None:
                        self._values[key] = value
                while len(self._values) > MAX_KEYS:
                    dropped += self._forget(next(iter(self._values)))
        loading.set_result(answer)
        self._drop(dropped)
        return value

    def note_same(self, key: str, loading: Loading, value: Value, asked_s: float) -> None:
        """Note that a value is still the one that is known, and wake those that wait."""
        with self._lock.held():
            value.checked_s = max(value.checked_s, asked_s)
            if self.loading.get(key) is loading:
                del self.loading[key]
        loading.set_exception(LoadCancelled())  # they look at what is known

    def fail_load(self, key: str, loading: Loading, error: BaseException) -> None:
        """Wake those that wait: there is no answer; after what is no error of the store they ask for themselves."""
        with self._lock.held():
            if self.loading.get(key) is loading:
                del self.loading[key]
        if not loading.done():
            is_of_store = isinstance(error, Exception) and not isinstance(error, WouldBlockError)
            loading.set_exception(error if is_of_store else LoadCancelled())

    # -- files ---------------------------------------------------------------------------------------------------------

    def key_of(self, key: str) -> str:
        """Return the key under which the cache knows a value."""
        return f"zarr:{self.name}/{key}"

    @contextlib.contextmanager
    def opened(self, key: str, value: Value, source: StoreSource) -> Iterator[File | None]:
        """An open file of an existing value, None when the key was written meanwhile, for a `with` block. Raises OSError.

        source: reads it. What is read in parts keeps its file, as that knows how it is read; up to MAX_FILES do.
        """
        file = value.file
        if file is not None and not file.closed and not file.mapping.segment.dead:
            yield file
            return
        assert value.size is not None, "a file needs a value"
        store = source.backing(f"zarr:{self.name}", key, value.size, value.version, value.validator)
        file = cast(File, self.cache.open(store))
        try:
            if self._values.get(key) is not value:
                yield None
                return
            place = file.mapping.place
            value.place = None if place is None else (weakref.ref(file.mapping.segment), *place)
            yield file
        finally:
            self._close_or_keep(key, value, file)

    def _close_or_keep(self, key: str, value: Value, file: File) -> None:
        surplus: list[File | None] = [file]
        if value.size is not None and value.size > WHOLE_MAX:
            with self._lock.held():
                if self._values.get(key) is value and (value.file is None or value.file.closed):
                    surplus = [value.file]
                    value.file, self._files[key] = file, value
                    self._files.move_to_end(key)
                while len(self._files) > MAX_FILES:
                    surplus.append(_taken_from(self._files.popitem(last=False)[1]))
        for old in surplus:
            if old is not None:
                old.close()

    def keep(self, key: str, value: Value, answer: Answer, source: StoreSource) -> None:
        """Put the whole pages of what an answer brought into the cache, as far as there is room.

        Context: takes invalidate_lock shared; reads nothing from the store.
        """
        end = answer.start + len(answer.data)
        if not answer.is_placed or not len(answer.data) or len(answer.data) > self.cache.size // 2:
            return
        first = -(-answer.start >> PAGE_SHIFT)
        last = (-(-end >> PAGE_SHIFT) if end == answer.size else end >> PAGE_SHIFT) - 1
        if first > last:
            return
        with contextlib.suppress(OSError, ValueError), self.opened(key, value, source) as file:
            if file is not None:  # what cannot be kept has been read nevertheless
                self._fill(file, value, answer, first, last)

    @staticmethod
    def _fill(file: File, value: Value, answer: Answer, first: int, last: int) -> None:
        """Fill pages first..last (inclusive), as far as they are missing, from an answer."""
        mapping = file.mapping
        with mapping.shared():
            if mapping.validator != value.validator or mapping.size != value.size:
                return  # another store of the object was faster, and has another version
            mapping.count_store_read(len(answer.data))
            for batch in submit.missing_batches(mapping, first, last, _order_for(last - first + 1)):
                try:
                    fill.fill_known(batch, answer.data[(batch.start << PAGE_SHIFT) - answer.start :])
                finally:
                    batch.release()

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def forget(self, key: str) -> None:
        """Know nothing of a key any more: it was, or will be, written."""
        self._check_process()
        with self._lock.held():
            dropped = self._forget(key)
        self._drop(dropped)

    def _forget(self, key: str) -> list[tuple[str, File | None]]:
        """Know nothing of a key. Returns it and its file if something of it may be cached. Context: the lock held."""
        value = self._values.pop(key, None)
        loading = self.loading.pop(key, None)
        if loading is not None:
            loading.is_stale = True
        self._files.pop(key, None)
        if value is None or (value.file is None and value.place is None):
            return []
        return [(key, _taken_from(value))]

    def _drop(self, dropped: list[tuple[str, File | None]]) -> None:
        """Close files whose pages will not be read again, and let those go."""
        for key, file in dropped:
            if file is not None:
                file.close()
            with contextlib.suppress(ValueError, RuntimeError, OSError):  # the cache was closed, or is the parent process's
                self.cache.discard(self.key_of(key))

    def forget_prefix(self, prefix: str) -> None:
        """Know nothing of any key that begins so any more."""
        self._check_process()
        with self._lock.held():
            keys = {key for key in (*self._values, *self.loading) if key.startswith(prefix)}
        for key in keys:
            self.forget(key)

    def close_files(self) -> None:
        """Close what is open; it is opened again when it is used."""
        self._check_process()
        _close_files(self._files)


def _taken_from(value: Value) -> File | None:
    """Return the file of a value, which has none any more: a closed one would keep its object from being forgotten."""
    file, value.file = value.file, None
    return file


def _close_files(files: OrderedDict[str, Value]) -> None:
    """Close all files. Context: any thread, at any moment: takes no lock of the values."""
    while True:
        try:
            file = _taken_from(files.popitem()[1])
        except KeyError:
            return
        if file is not None:
            file.close()


# -- what outlives the stores ------------------------------------------------------------------------------------------


class _ProcessDefault:
    """Stands for the process's own cache, whichever that is."""


Table = OrderedDict[str, Value]
_process_default = _ProcessDefault()
_shared_lock = Mutex()
_live: weakref.WeakValueDictionary[tuple[int, str], Values] = weakref.WeakValueDictionary()
_tables: weakref.WeakKeyDictionary[Any, OrderedDict[str, Table]] = weakref.WeakKeyDictionary()
_openings: OrderedDict[str, float] = OrderedDict()


def values_of(cache: PageCache | None, name: str | None, source: StoreSource) -> Values:
    """Return the values of a store: those that its like have, or have left, on the same cache.

    cache: a `PageCache`, or None: the process's own. name: of the user's, in place of the source's identity.
    """
    identity = f"name {name}" if name is not None else source.identity
    if identity is None:
        return Values(cache, f"store {os.getpid()}.{next(_names)}", None, False)
    anchor = None if name is not None else source.anchor
    with _shared_lock.held():
        values = _live.get((id(cache), identity))
        if values is None:
            values = Values(cache, identity, anchor, anchor is None)
            _live[id(cache), identity] = values  # which keeps the cache, and so its address, alive
        return values


def _table_of(cache: PageCache | None, identity: str) -> Table:
    """Return what is known of an identity, most recently used last; the oldest of too many are forgotten."""
    tables = _tables.setdefault(_process_default if cache is None else cache, OrderedDict())
    table = tables.setdefault(identity, OrderedDict())
    tables.move_to_end(identity)
    nr_keys = sum(map(len, tables.values()))
    while len(tables) > 1 and (nr_keys > MAX_KEYS or len(tables) > MAX_TABLES):
        nr_keys -= len(tables.popitem(last=False)[1])
    return table


def opened_s(opening: str) -> float:
    """Return when this process met an opening of a store first (monotonic seconds)."""
    with _shared_lock.held():
        when = _openings.setdefault(opening, time.monotonic())
        _openings.move_to_end(opening)
        if len(_openings) > MAX_OPENINGS:
            _openings.popitem(last=False)
        return when


def _after_fork_in_child() -> None:
    """What was known may have been changing, and the lock may be held by a thread that is not there."""
    global _shared_lock, _tables, _openings, _process
    _process = object()
    _shared_lock, _tables, _openings = Mutex(), weakref.WeakKeyDictionary(), OrderedDict()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
