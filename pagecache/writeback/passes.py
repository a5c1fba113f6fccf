"""Write-back: what is dirty goes to the store, in order of offset, neighbours in one request.

The rules: docs/kernel.md, write-back.

Writers      the flusher (`flusher`), when much is dirty or something has been for long; a caller that needs durability
             (`fsync`, `sync_range`, a synchronous write, close), for its own range; and a writer that would exceed the
             limit of dirty pages, for its own object, before it goes on.
What         a background pass takes what carries the DIRTY mark. An integrity pass first marks TOWRITE what is dirty
             now, and then writes that alone, so that writers cannot keep it going; it waits for what another thread is
             writing.
Versions     Nothing is written over what others have changed. Before each request to a descriptor the file is looked at,
             and after it, with no other request of this cache in between (`store_lock`); a store written in Python is asked
             for its version before each pass, and may refuse requests itself. What cannot be written for that is an ESTALE,
             and stays dirty like all that fails.
Failures     A folio that could not be written stays dirty and is tried again (or is given up, if the cache was made
             with `on_write_error="drop"`). The error is noted for every open file, which learns of it once, before
             those that waited for the folio go on.
"""

import contextlib
import errno
import logging
import operator
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import SupportsIndex, cast

from pagecache import _core
from pagecache._core import STAMP_DOUBTFUL, STAMP_SAME, EventCount, Folio, Mutex, Places, WritebackBatch
from pagecache.requests import fill, workers
from pagecache.requests.backing import BackedMapping
from pagecache.requests.fill import clear_frames
from pagecache.stores.base import WritableStore
from pagecache.units import LAST_PAGE, MARK_DIRTY, MARK_TOWRITE, MARK_WRITEBACK
from pagecache.writeback.own_writes import CHANGED

logger = logging.getLogger("pagecache")

WB_SYNC_NONE, WB_SYNC_ALL = range(2)
SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4

_thread = threading.local()


def write_error(mapping: BackedMapping, offset: int, cause: BaseException) -> OSError:
    """Return the error for a failed request: the store's errno, with the object and the offset named."""
    number = cause.errno if isinstance(cause, OSError) else None
    if not isinstance(number, int) or not 0 < number < 4096:
        number = errno.ETIMEDOUT if isinstance(cause, TimeoutError) else errno.EIO
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    error = OSError(number, f"cannot write {mapping.name} at offset {offset}: {reason}")
    error.__cause__ = cause
    return error


@dataclass
class WritebackControl:
    """What one pass is to write, and what came of it (struct writeback_control).

    sync_mode: WB_SYNC_NONE or WB_SYNC_ALL. nr_to_write: pages after which a background pass ends. range_start,
    range_end: pages, inclusive. range_cyclic: begin where the last such pass ended. nr_written: pages. error: the first.
    is_doubtful: the pass has ended because the object has to be looked at more closely.
    """

    sync_mode: int = WB_SYNC_NONE
    nr_to_write: int = LAST_PAGE
    range_start: int = 0
    range_end: int = LAST_PAGE
    range_cyclic: bool = False
    nr_written: int = 0
    error: OSError | None = None
    is_doubtful: bool = False
    _lock: Mutex = field(default_factory=Mutex, repr=False)

    def note(self, nr_pages: int, error: OSError | None) -> None:
        """Note how one request ended. Context: any thread."""
        with self._lock.held():
            self.nr_written += nr_pages
            self.error = self.error or error


# -- one request -------------------------------------------------------------------------------------------------------


def write_batch(
    mapping: BackedMapping,
    batch: WritebackBatch,
    caught: type[BaseException] = Exception,
    refusal: Exception | None = None,
) -> OSError | None:
    """Write one run of folios to the store and end its write-back. Returns the error, which is noted for open files.

    caught: what counts as a failure of the store; anything else leaves the run dirty and goes on to the caller.
    refusal: why nothing may be written, which then is the failure.
    Context: no lock held; the run is under write-back.
    """
    offset, wanted = batch.offset, batch.nbytes
    done, error = 0, None
    _thread.nr_passes = getattr(_thread, "nr_passes", 0) + 1
    try:
        if refusal is not None:
            raise refusal
        done = _write_run(mapping, batch)
        if done < wanted:
            raise OSError(errno.EIO, f"the store took {done} of {wanted} bytes")
    except _Stopped as stopped:
        done, error = stopped.done, write_error(mapping, offset + stopped.done, stopped.cause)
        clear_frames(stopped)  # views of the run, which must not live as long as the error
    except _Doubtful:
        batch.end(0)
        raise
    except caught as cause:
        error = write_error(mapping, offset + done, cause)
        clear_frames(cause)
    except BaseException:
        batch.end(0)  # now: a caller that keeps the exception keeps the run, and others wait for it
        raise
    finally:
        _thread.nr_passes -= 1
    mapping.backing.note_result(error)
    if error is not None:
        mapping.segment.add_count("writeback_errors", 1)
        _core.mapping_set_error(mapping, error.errno or errno.EIO)
    if done:
        mapping.backing.note_written(batch.start, batch.next_index - 1)
    if error is None:
        batch.end(done)
    else:
        mapping.backing.end_failed(lambda: batch.end(done, mapping.backing.keeps_failed))
    return error


class _Stopped(Exception):
    """A request that failed after part of it was written."""

    def __init__(self, done: int, cause: Exception):
        self.done = done
        self.cause = cause


class _Doubtful(Exception):
    """Nothing was written: the object has to be looked at more closely."""


def _write_run(mapping: BackedMapping, batch: WritebackBatch) -> int:
    """Write the bytes of a run. Returns how many, or raises _Stopped, which knows, and what the store raises."""
    if mapping.host is None:
        raise OSError(errno.EBADF, "the store was closed")
    if mapping.fd < 0:
        return _write_store(mapping, batch)
    with mapping.store_lock.held():
        done, number, state = batch.write_fd(mapping.fd, mapping.direct)
    if state == STAMP_DOUBTFUL:
        raise _Doubtful
    if state != STAMP_SAME:
        raise _Stopped(0, OSError(errno.ESTALE, CHANGED))
    if number:
        raise _Stopped(done, OSError(number, os.strerror(number)))
    return done


def _write_store(mapping: BackedMapping, batch: WritebackBatch) -> int:
    """Hand the bytes to a Python store, again what it did not take."""
    buffers, done = batch.memory(), 0
    limit = max(4096, mapping.backing.hints.max_request)
    try:
        while done < batch.nbytes:
            asked = min(limit, batch.nbytes - done)
            wrote = _offer(mapping, batch.offset + done, fill.pieces(buffers, done, asked), asked)
            if wrote == 0:
                raise OSError(errno.EIO, "the store took no bytes")
            done += wrote
    except Exception as cause:
        fill.clear_frames(cause)
        raise _Stopped(done, cause) from cause
    except BaseException as cause:
        fill.clear_frames(cause)
        raise
    finally:
        fill.release(buffers)
    return done


def _offer(mapping: BackedMapping, offset: int, pieces: list[memoryview], asked: int) -> int:
    """Make one request. Returns the bytes that the store took."""
    try:
        wrote = _checked_count(cast(WritableStore, mapping.host).writev(offset, pieces), asked)
    except BaseException as error:
        logger.debug("%s: write of %d bytes at %d: %s", mapping.name, asked, offset, str(error) or type(error).__name__)
        raise
    finally:
        fill.release(pieces)
    logger.debug("%s: %d bytes written at %d", mapping.name, wrote, offset)
    mapping.segment.add_count("store_writes", 1)
    mapping.segment.add_count("store_write_bytes", wrote)
    return wrote


def _checked_count(wrote: SupportsIndex, asked: int) -> int:
    """Return what writev returned, if it can be true."""
    if isinstance(wrote, bool):
        raise TypeError("writev returned bool, not a number of bytes")
    try:
        count = operator.index(wrote)
    except TypeError:
        raise TypeError(f"writev returned {type(wrote).__name__}, not a number of bytes") from None
    if not 0 <= count <= asked:
        raise OSError(errno.EIO, f"the store claims to have taken {count} bytes of {asked}")
    return count


# -- one pass ----------------------------------------------------------------------------------------------------------


def write_cache_pages(mapping: BackedMapping, wbc: WritebackControl, refusal: Exception | None = None) -> None:
    """Write the marked folios of a range, in order of offset; wbc says what, and what came of it.

    refusal: why all of it fails.

    A background pass ends at its first error, or when it has written enough. An integrity pass goes through to the end.
    Context: no folio lock, no invalidate_lock held; waits for the store.
    """
    mark = MARK_TOWRITE if wbc.sync_mode == WB_SYNC_ALL else MARK_DIRTY
    start = _core.get_writeback_index(mapping) if wbc.range_cyclic else wbc.range_start
    max_bytes = mapping.backing.hints.max_request
    next_index = 0
    with write_requests(mapping, wbc, refusal) as run:
        for batch in _batches(mapping, start, wbc.range_end, mark, wbc.sync_mode == WB_SYNC_ALL, max_bytes):
            wbc.nr_to_write -= batch.nr_pages
            next_index = batch.next_index
            try:
                run(batch)
            except _Doubtful:
                wbc.is_doubtful = True
                break
            if wbc.sync_mode == WB_SYNC_NONE and (wbc.nr_to_write <= 0 or wbc.error is not None):
                break
        else:
            next_index = 0
    if wbc.range_cyclic:
        _core.set_writeback_index(mapping, next_index)


def _batches(
    mapping: BackedMapping, start: int, last: int, mark: int, waits: bool, max_bytes: int
) -> Iterator[WritebackBatch]:
    """Iterate over runs of dirty folios, under write-back when they come."""
    while start <= last:
        folio = _core.next_marked_folio(mapping, start, last, mark)
        if folio is None:
            return
        with folio:
            start = folio.index + folio.nr_pages
            folio.lock()
            batch = _begin(mapping, folio, last, mark, waits, max_bytes)
        if batch is not None:
            start = batch.next_index
            yield batch


def _begin(
    mapping: BackedMapping, folio: Folio, last: int, mark: int, waits: bool, max_bytes: int
) -> WritebackBatch | None:
    """Put a locked folio, and what is dirty right behind it, under write-back; None if it needs none."""
    if folio.mapping_number == mapping.number and folio.dirty and folio.writeback and waits:
        folio.wait_writeback()
    if not _core.wants_writeback(mapping, folio):
        folio.unlock()
        return None
    return _core.collect_writeback(mapping, folio, last, mark, max_bytes)


def do_writepages(mapping: BackedMapping, wbc: WritebackControl) -> None:
    """Write dirty pages of an object as wbc says; nothing is done if none is dirty.

    Context: as `write_cache_pages`. The cache's own writes change the object: its version is taken anew.
    """
    if mapping.fd >= 0:
        _write_to_file(mapping, wbc)
    elif wbc.nr_to_write > 0 and _core.has_mark(mapping, MARK_DIRTY):
        _tag(mapping, wbc)
        refusal = _refusal(mapping)
        with _core.OwnWrite(mapping, False) if refusal is None else contextlib.nullcontext():
            try:
                write_cache_pages(mapping, wbc, refusal)
            finally:
                if refusal is None:
                    mapping.backing.take_version(mapping)


def _tag(mapping: BackedMapping, wbc: WritebackControl) -> None:
    if wbc.sync_mode == WB_SYNC_ALL:
        _core.tag_pages_for_writeback(mapping, wbc.range_start, wbc.range_end)


def _write_to_file(mapping: BackedMapping, wbc: WritebackControl) -> None:
    """As `do_writepages`, for a descriptor, where each request looks for itself; once more when one had doubts."""
    while wbc.nr_to_write > 0 and _core.has_mark(mapping, MARK_DIRTY):
        _tag(mapping, wbc)
        write_cache_pages(mapping, wbc, _refusal(mapping))
        if not wbc.is_doubtful:
            return
        wbc.is_doubtful = False


def _refusal(mapping: BackedMapping) -> Exception | None:
    """Return why nothing may be written to the object's store: others have changed it, or that is not known."""
    backing = mapping.backing
    try:
        return None if backing.is_current(mapping) or backing.look_closer() else OSError(errno.ESTALE, CHANGED)
    except Exception as cause:  # of a store, which may raise anything
        return cause


@contextlib.contextmanager
def write_requests(
    mapping: BackedMapping, wbc: WritebackControl, refusal: Exception | None = None
) -> Iterator[Callable[[WritebackBatch], None]]:
    """Give a function that writes a batch: in this thread, or, to a Python store that takes several requests at once,
    in another. At the end of the block all are written."""

    def run_here(batch: WritebackBatch, caught: type[BaseException] = Exception) -> None:
        error = write_batch(mapping, batch, caught, refusal)
        wbc.note(batch.nr_pages if error is None else 0, error)

    limit = mapping.backing.hints.parallel_requests
    if mapping.fd >= 0 or limit == 1:
        yield run_here
        return
    places, ended, left_alone = Places(limit), EventCount(), [False]

    def take_place() -> None:
        while not places.take():
            seen = ended.value
            if places.taken == limit:
                ended.wait(seen)

    def run_there(batch: WritebackBatch) -> None:
        def task() -> None:
            try:
                with _core.OwnWrite(mapping, False):
                    run_here(batch, BaseException)  # it is no use to this thread
                    if left_alone[0]:
                        mapping.backing.take_version(mapping)
            finally:
                places.give()
                ended.advance()

        take_place()
        workers.shared_pool.run(task)

    try:
        yield run_there
        for _ in range(limit):
            take_place()
    except BaseException:
        left_alone[0] = True  # a signal: what is under way ends by itself
        raise


# -- ranges ------------------------------------------------------------------------------------------------------------


def filemap_fdatawrite_range(mapping: BackedMapping, first: int, last: int, sync_mode: int = WB_SYNC_ALL) -> None:
    """Start, and as far as this thread writes finish, the write-back of pages first..last. Raises OSError."""
    wbc = WritebackControl(sync_mode=sync_mode, range_start=first, range_end=last)
    do_writepages(mapping, wbc)
    if wbc.error is not None:
        raise wbc.error


def filemap_fdatawait_range(mapping: BackedMapping, first: int, last: int) -> None:
    """Wait until no page of first..last is under write-back. Context: holds no lock."""
    while first <= last:
        folio = _core.next_marked_folio(mapping, first, last, MARK_WRITEBACK)
        if folio is None:
            return
        with folio:
            first = folio.index + folio.nr_pages
            folio.wait_writeback()


def filemap_write_and_wait_range(mapping: BackedMapping, first: int, last: int) -> OSError | None:
    """Write what is dirty in pages first..last and wait for all of their write-back. Returns the first error of this
    thread's requests; others are in the mapping's record only."""
    wbc = WritebackControl(sync_mode=WB_SYNC_ALL, range_start=first, range_end=last)
    do_writepages(mapping, wbc)
    filemap_fdatawait_range(mapping, first, last)
    return wbc.error


def sync_file_range(mapping: BackedMapping, first: int, last: int, flags: int | None = None) -> OSError | None:
    """Wait for, write, and wait for pages first..last, as the SYNC_FILE_RANGE_* flags say; all three if None.

    With all three the write is an integrity pass. Returns the first error of this thread's requests; raises OSError
    (EINVAL) for other flags.
    """
    every = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
    flags = every if flags is None else flags
    if flags & ~every:
        raise OSError(errno.EINVAL, f"unknown flags {flags:#x}: use SYNC_FILE_RANGE_*")
    if flags & SYNC_FILE_RANGE_WAIT_BEFORE:
        filemap_fdatawait_range(mapping, first, last)
    error = None
    if flags & SYNC_FILE_RANGE_WRITE:
        mode = WB_SYNC_ALL if flags == every else WB_SYNC_NONE
        wbc = WritebackControl(sync_mode=mode, range_start=first, range_end=last)
        do_writepages(mapping, wbc)
        error = wbc.error
    if flags & SYNC_FILE_RANGE_WAIT_AFTER and error is None:
        filemap_fdatawait_range(mapping, first, last)
    return error


def unseen_error(mapping: BackedMapping, number: int) -> OSError:
    """Return the error for a write-back in the background that failed with an errno since a file looked last."""
    if number == errno.ESTALE:
        return OSError(number, f"cannot write {mapping.name}, in the background: {CHANGED}")
    is_kept = mapping.backing.keeps_failed
    reason = "what could not be written is still cached, and is tried again" if is_kept else "it is lost"
    return OSError(number, f"cannot write {mapping.name}, in the background: {os.strerror(number)}; {reason}")


def in_writeback() -> bool:
    """Whether this thread is in a store's writev now."""
    return getattr(_thread, "nr_passes", 0) > 0
