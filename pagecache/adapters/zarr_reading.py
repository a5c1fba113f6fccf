"""How a value is read: from the cache, else by the first reader, while all others of it wait for that one.

    read       what is known of the key, and asked for recently enough (`recheck`)  ->  its pages, or "no such key"
               else learn, and again
    learn      the first reader asks the store; the others wait, and look again
      known and of a version   ->  ask for the version: the same one, then the value is known anew; if that question fails,
                                   it says nothing, and the value is asked for
      else                     ->  ask for the range that is wanted; what comes goes to the reader and into the cache

An error ends the reads that waited for it, and is forgotten: what was known stays as old as it was.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, OffsetByteRequest

from pagecache._core import read_object
from pagecache.adapters.zarr_opening import Opening
from pagecache.adapters.zarr_source import (
    Answer,
    FewerBytesError,
    ObjectChangedError,
    StoreSource,
    needs_end,
    span_of,
)
from pagecache.adapters.zarr_steps import Step, Steps, attempted, only
from pagecache.adapters.zarr_values import LoadCancelled, Loading, Place, Value, Values
from pagecache.files.aio import in_worker
from pagecache.files.file import File
from pagecache.units import PAGE_SIZE

_Result = TypeVar("_Result")
logger = logging.getLogger("pagecache")
MISS: Any = object()
GONE = "the key is gone of which a part was read: read it again"
INLINE_BYTES_MAX = 1024 * 1024  # what is copied into the cache by the thread of the event loop


def _read_at(place: Place, nbytes: int, offset: int) -> Any:
    """Return bytes of an object if all of them are cached, else MISS. Never waits."""
    segment = place[0]()
    if segment is None or segment.dead:
        return MISS
    data = read_object(segment, place[1], place[2], nbytes, offset)
    return MISS if data is None else data


class Reader:
    """Reads the values of one store through the cache.

    values: what is known and shared. source: asks the store. recheck, opened_s: how recent that has to be which is used.
    opening: opens the store where it has to be open.
    """

    def __init__(self, values: Values, source: StoreSource, recheck: bool | float | str, opened_s: float, opening: Opening):
        self.values = values
        self.source = source
        self._recheck = recheck
        self._opened_s = opened_s
        self._is_per_opening = recheck == "open"
        self._opening = opening

    # -- what is known -------------------------------------------------------------------------------------------------

    def not_before(self) -> float:
        """Return since when the store has to have been asked for what may be used now (monotonic seconds)."""
        recheck = self._recheck
        if recheck is False:
            return -1.0
        if recheck == "open":
            return self._opened_s
        now = time.monotonic()
        return now if recheck is True else now - float(recheck)

    def known(self, key: str) -> Value | None:
        """Return what is known of a key, if it may be used as it is."""
        value = self.values.get(key)
        return value if value is not None and value.checked_s >= self.not_before() else None

    def cached(self, key: str, byte_range: ByteRequest | None) -> Any:
        """Return the bytes of a range, None for a key that does not exist, or MISS. Never waits."""
        value = self.values.get(key)
        if value is None or value.checked_s < (self._opened_s if self._is_per_opening else self.not_before()):
            return MISS
        if byte_range is None and value.is_sure and value.place is not None and value.size:
            return _read_at(value.place, value.size, 0)
        return self._cached_of(value, byte_range)

    @staticmethod
    def _cached_of(value: Value, byte_range: ByteRequest | None) -> Any:
        if value.size is None:
            return None
        if not value.is_sure and needs_end(byte_range, value.size):
            return MISS
        offset, nbytes = (0, value.size) if byte_range is None else span_of(byte_range, value.size)
        if nbytes == 0:
            return b""
        return MISS if value.place is None else _read_at(value.place, nbytes, offset)

    # -- one range -----------------------------------------------------------------------------------------------------

    def fetch(self, key: str, byte_range: ByteRequest | None) -> Steps[Any]:
        """Return the bytes of a range; None if there is no such key. Raises what the store raises, OSError."""
        span_of(byte_range, 0)
        wanted, not_before = byte_range, self.not_before()
        while True:
            value = self.values.get(key)
            if value is None or value.checked_s < not_before:
                value, answer = yield from self._learn(key, wanted, value, not_before)
                if answer is None:
                    return None
                part = answer.part(byte_range) if answer is not MISS else None
                if part is not None:
                    return part
                if value is None:
                    continue  # others have asked, and the answer is known now, or was written meanwhile
            if not value.is_sure and value.size is not None and needs_end(byte_range, value.size):
                if not (yield from self._is_size(key, value)):
                    wanted = None  # its bytes will tell
                continue
            data = self._cached_of(value, byte_range)
            if data is MISS:
                read = partial(self._read, key, value, byte_range)
                try:
                    data = yield Step(partial(in_worker, read), read)
                except FewerBytesError:
                    if wanted is None:
                        raise
                    wanted = None  # its size is not the one that it is said to have
                    continue
            if data is not MISS:
                return data

    def _read(self, key: str, value: Value, byte_range: ByteRequest | None) -> Any:
        """Return the bytes of a range of a known value, or MISS when it has to be looked at again. May block."""
        if value.size is None:
            return None
        offset, nbytes = span_of(byte_range, value.size)
        with self.values.opened(key, value, self.source) as file:
            if file is None:
                return MISS
            # The first page of a file begins a stream; the first chunk of a shard does not.
            file.is_random = offset < PAGE_SIZE and nbytes < value.size // 2
            return self._of_file(key, file, lambda: file.pread(nbytes, offset))

    def _of_file(self, key: str, file: File, call: Callable[[], _Result]) -> Any:
        """Return what a call with a file returns, or MISS if that is closed: the key was written, or many others opened."""
        try:
            return call()
        except ValueError:
            if not file.closed:
                raise
            return MISS
        except OSError as error:
            if isinstance(error.__cause__, FewerBytesError):
                self.values.forget(key)
                raise error.__cause__ from None
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            self.values.forget(key)
            if error.errno == errno.ESTALE:
                raise ObjectChangedError(key) from error
            raise ObjectChangedError(key, GONE) from error  # FileNotFoundError would say that there never was such a key

    # -- asking the store ----------------------------------------------------------------------------------------------

    def _learn(
        self, key: str, wanted: ByteRequest | None, old: Value | None, not_before: float
    ) -> Steps[tuple[Value | None, Any]]:
        """Ask for a range of a value, or wait for a thread that asks. Returns what is known then, and the answer; None and
        MISS when that has to be looked at anew."""
        mine = Loading()
        try:
            loading = self.values.begin_load(key, mine)
            if loading is not mine:
                return (yield from self._join(key, wanted, loading, not_before))
            asked_s = time.monotonic()
            if old is not None and (yield from self._is_same(key, old)):
                self.values.note_same(key, mine, old, asked_s)
                return old, MISS
            yield from self._opening.steps()
            answer = yield from self.attempted(key, partial(self.source.first, key, wanted))
            value = self.values.end_load(key, mine, answer, asked_s)
        except BaseException as error:
            self.values.fail_load(key, mine, error)
            raise
        if answer is not None and value is not None:
            keep = partial(self.values.keep, key, value, answer, self.source)
            if len(answer.data) <= INLINE_BYTES_MAX:
                keep()
            else:
                yield Step(partial(in_worker, keep), keep)
        return value, answer

    def _join(
        self, key: str, wanted: ByteRequest | None, loading: Loading, not_before: float
    ) -> Steps[tuple[Value | None, Any]]:
        """Wait for an answer that another thread has asked for. Returns as `_learn`."""
        try:
            answer = yield Step(partial(_result_of, loading), loading.result)
        except LoadCancelled:
            return None, MISS
        if loading.is_stale:
            return None, MISS
        if answer is not None and answer.size is None:  # it is of no use to others
            data = yield from self._got(key, wanted)
            return None, None if data is None else Answer(data, 0, None)
        value = self.values.get(key)
        if value is None or value.checked_s < not_before or not value.is_sure:
            return None, MISS
        return value, answer

    def _is_same(self, key: str, old: Value) -> Steps[bool]:
        """Whether the store says that a value is the one that is known. If it cannot tell, the value is to be asked for."""
        if old.size is None or old.version is None or not self.source.has_versions:
            return False
        try:
            version = yield from self.attempted(key, partial(self.source.stat, key))
        except Exception:  # of a question that is not needed
            return False
        return old.has_version(version)

    def _is_size(self, key: str, value: Value) -> Steps[bool]:
        """Whether a value ends where the store says, which is asked for its last page and all that follows."""
        size = value.size or 0
        start = max(0, size - 1) // PAGE_SIZE * PAGE_SIZE
        asked = OffsetByteRequest(start)
        data = yield from self._got(key, asked)
        if data is not None and start + len(data) == size:
            value.is_sure = True
            self.values.keep(key, value, Answer(data, start, size), self.source)
            return True
        self.values.forget(key)
        return False

    def _got(self, key: str, asked: ByteRequest | None) -> Steps[memoryview | None]:
        """Return what the store has of a range of a key; None if there is no such key."""
        step = Step(partial(self.source.get, key, asked), partial(self.source.get_blocking, key, asked))
        data: memoryview | None = yield from self.attempted(key, lambda: only(step))
        return data

    def attempted(self, key: str, begin: Callable[[], Steps[_Result]]) -> Steps[_Result]:
        """Return what the steps of a request to the store return, tried as often, and for as long, as it may be."""
        asked_s = time.monotonic()
        try:
            result = yield from attempted(self.source.attempts, key, begin, self.source.limited)
        except BaseException as error:
            logger.debug("key %s of %s: %s", key, self.source.store, str(error) or type(error).__name__)
            raise
        logger.debug("key %s of %s: asked for in %.1f ms", key, self.source.store, (time.monotonic() - asked_s) * 1000)
        return result

    # -- many ranges ---------------------------------------------------------------------------------------------------

    def fetch_ranges(self, key: str, byte_ranges: Sequence[ByteRequest | None]) -> Steps[Any]:
        """Return the bytes of several ranges of one value, None if there is no such key, or MISS if each of them has to be
        fetched for itself."""
        if (yield from self.fetch(key, byte_ranges[0])) is None:
            return None
        value = self.values.get(key)
        if value is None or value.size is None:
            return MISS
        if not value.is_sure and any(needs_end(byte_range, value.size) for byte_range in byte_ranges):
            return MISS
        read = partial(self._read_many, key, value, byte_ranges)
        try:
            return (yield Step(partial(in_worker, read), read))
        except FewerBytesError:
            return MISS

    def _read_many(self, key: str, value: Value, byte_ranges: Sequence[ByteRequest | None]) -> Any:
        if value.size is None:
            return MISS
        spans = [span_of(wanted, value.size) for wanted in byte_ranges]
        with self.values.opened(key, value, self.source) as file:
            if file is None:
                return MISS
            return self._of_file(key, file, lambda: file.preadv_many([(nbytes, offset) for offset, nbytes in spans]))


async def _result_of(loading: Loading) -> Answer | None:
    return await asyncio.shield(asyncio.wrap_future(loading))
