"""Filling folios from a store: one request for a run of folios, and what its failure means.

A folio becomes readable only when all its bytes have arrived and the object is still the one whose other pages are
cached.  A request that fails, ends early or brings too much fills nothing: its folios leave the cache.
"""

import contextlib
import errno
import logging
import operator
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from pagecache._core import CacheFullError, Folio, FolioBatch, MemoryWait, Segment
from pagecache.requests import replicas
from pagecache.requests.backing import BackedMapping, holds_beside_own_writes
from pagecache.requests.filling import Filling
from pagecache.stores.abandoned import current_call
from pagecache.stores.base import NoRangesError

ALLOCATION_TIMEOUT_S = 10.0  # how long an allocation waits for frames that others hold for a moment
SEQ_STEP = 2  # what a removal adds to a folio's sequence counter
WAIT_SLICE_S = 0.05  # how often what raises no event is looked at
PINNED_TIMEOUT_S = 0.2  # the same when views and maps hold all there is

logger = logging.getLogger("pagecache")
_Found = TypeVar("_Found")
_SINK = bytearray(65536)  # where what is not wanted goes, of all requests

write_errors: weakref.WeakKeyDictionary[Segment, Callable[[], OSError | None]] = weakref.WeakKeyDictionary()
"""For segments with a flusher: returns the error that keeps all that is dirty from being written, if there is one."""


def alloc_folio(segment: Segment, order: int = 0, *, wait: bool = True) -> Folio:
    """Return a new folio of 2**order pages, waiting for memory if need be.

    Raises CacheFullError when no frame becomes free.
    Context: no folio lock may be held, and no reference that keeps another thread from going on.
    """
    folio = segment.alloc_folio(order)
    if folio is not None:
        return folio
    if not wait:
        raise cache_full(segment)
    return wait_for_frames(segment, lambda: segment.alloc_folio(order), side_by_side=order > 0)


def wait_for_frames(
    segment: Segment,
    attempt: Callable[[], _Found | None],
    *,
    side_by_side: bool = False,
    what: str = "no page frame can be freed",
) -> _Found:
    """Return what an attempt to take frames returns once that is not None: it is made again whenever memory may be free.

    side_by_side: it wants a large folio. what: cannot be done without them. Raises CacheFullError when none become free:
    all is pinned, or dirty and cannot be written, or nothing has moved for long.
    Context: as for `alloc_folio`; wakes the flusher; ends with a signal.
    """
    with MemoryWait(segment) as memory:
        return _wait_for_frames(segment, memory, attempt, side_by_side, what)


def _wait_for_frames(
    segment: Segment, memory: MemoryWait, attempt: Callable[[], _Found | None], side_by_side: bool, what: str
) -> _Found:
    started = pinned_since = failing_since = time.monotonic()
    nr_failed = segment.counters()["writeback_errors"]
    while time.monotonic() - started < ALLOCATION_TIMEOUT_S:
        found: _Found | None = memory.look(attempt)
        if found is not None:
            return found
        error = _write_error_of(segment, nr_failed)
        if error is None:
            failing_since = time.monotonic()
        elif not segment.counters()["nr_pinned"] or time.monotonic() - failing_since >= PINNED_TIMEOUT_S:
            # a read in flight has views as well, and ends in a moment
            raise cache_full(segment, what, remedy=error.strerror or str(error)) from error
        if not _is_pinned(segment):
            pinned_since = time.monotonic()
        elif time.monotonic() - pinned_since >= PINNED_TIMEOUT_S:
            break
        if side_by_side and not segment.nr_dirty_charged and time.monotonic() - started >= PINNED_TIMEOUT_S:
            break  # there are frames, but not side by side
        if segment.nr_dirty_charged:
            segment.wake_flusher()
        memory.wait(WAIT_SLICE_S)
    raise cache_full(segment, what)


def _write_error_of(segment: Segment, nr_failed: int) -> OSError | None:
    """Return the error without which memory could be had: all that is in use is dirty, or pinned, and none of what is
    dirty can be written, as was tried again after nr_failed requests had failed."""
    counters = segment.counters()
    held = counters["nr_dirty"] + counters["nr_pinned"]
    in_use = counters["nr_frames"] - counters["nr_free_pages"]
    if counters["writeback_errors"] == nr_failed or counters["nr_writeback"] or held < in_use:
        return None
    return write_errors.get(segment, lambda: None)()


def _is_pinned(segment: Segment) -> bool:
    """Whether views and maps hold all that is in use; write-back has views for a while, and others take turns."""
    counters = segment.counters()
    return 0 < counters["nr_frames"] - counters["nr_free_pages"] <= counters["nr_pinned"] and not counters["nr_writeback"]


def cache_full(
    segment: Segment, what: str = "no page frame can be freed", remedy: str = "release views or enlarge the cache"
) -> CacheFullError:
    """Return the error that says what holds the frames.

    what: could not be done. remedy: what helps, or why what is dirty is not written.
    """
    counters = segment.counters()
    held = {name: counters[name] for name in ("nr_pinned", "nr_dirty", "nr_writeback", "nr_frames")}
    return CacheFullError(
        f"{what}: of {held['nr_frames']} pages {held['nr_pinned']} are pinned by views, "
        f"{held['nr_dirty']} dirty, {held['nr_writeback']} under write-back; "
        f"{remedy}",
        **held,
    )


def store_error(mapping: BackedMapping, offset: int, cause: Exception) -> OSError:
    """Return the error for a failed request: the store's errno, with the object and the offset named."""
    number = cause.errno if isinstance(cause, OSError) else None
    if not isinstance(number, int):
        number = errno.ETIMEDOUT if isinstance(cause, TimeoutError) else errno.EIO
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    error = OSError(number, f"cannot read {mapping.name} at offset {offset}: {reason}")
    error.__cause__ = cause
    return error


def stale_error(mapping: BackedMapping, offset: int) -> OSError:
    """Return the error for an object that is no longer the one whose bytes are cached."""
    return OSError(
        errno.ESTALE,
        f"{mapping.name} changed while it was cached (seen at offset {offset}): "
        f"reopen it, or call invalidate() to drop the old bytes",
    )


def read_run(mapping: BackedMapping, batch: FolioBatch) -> None:
    """Read a new batch from the store; then its folios are uptodate and unlocked.

    Raises OSError; then the batch is as before, its folios locked and without data.
    Context: folios locked, invalidate_lock held shared; may sleep in the store.
    """
    if mapping.host is None:
        raise ValueError("I/O operation on closed file")
    if mapping.fd >= 0 and batch.fill_fd(mapping.fd, mapping.direct):
        return
    try:
        _read(mapping, (batch,))
    except NoRangesError:
        _read(mapping, (batch,))


def read_runs(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    """Read new batches from a Python store by one request; what lies between them is brought too, and thrown away.

    batches: in order. Raises as `read_run`, and NoRangesError, once, when the store finds out that it has to read in order:
    then something else may be worth asking for. After an exception all are as before. Context: as `read_run`.
    """
    if mapping.host is None:
        raise ValueError("I/O operation on closed file")
    _read(mapping, batches)


def _read(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    sizes = [batch.data_bytes() for batch in batches]
    expected = (batches[-1].start - batches[0].start) * 4096 + sizes[-1]
    call = current_call() if mapping.fd < 0 else None
    if call is None:
        _ask(mapping, batches, expected, None)
    else:
        filling = Filling(mapping, call, batches, expected)
        filling.carry_out(lambda: _ask(mapping, batches, expected, filling))
    for batch, size in zip(batches, sizes, strict=True):
        if mapping.fd >= 0:
            batch.end_read_filled()
            continue
        if mapping.backing.replicate != "all":
            replicas.mark_replicas(mapping, batch)
        batch.end_read(size)


def _ask(mapping: BackedMapping, batches: Sequence[FolioBatch], expected: int, filling: Filling | None) -> None:
    """Have the folios of batches filled, and see to it that all bytes have come, of the version that is cached."""
    offset = batches[0].start * 4096
    try:
        if mapping.fd >= 0:
            got = batches[0].read_fd(mapping.fd, mapping.direct)
        else:
            got = _read_store(mapping, batches, offset, expected, filling)
        changed = _has_changed(mapping, got < expected)
    except (CacheFullError, NoRangesError):
        raise
    except Exception as cause:
        raise store_error(mapping, offset, cause) from cause
    if changed:
        raise stale_error(mapping, offset + got)
    if got < expected:
        raise _early_end(mapping, offset + got)


def fill_known(batch: FolioBatch, data: memoryview) -> None:
    """Fill a new batch with bytes that are there already; then its folios are uptodate and unlocked.

    data: what the object has from the batch's first page on, of the version that is cached, as much as the batch takes or
    more. Raises ValueError if it is less; then the batch is as before. Context: as `read_run`, but asks no store.
    """
    size = batch.data_bytes()
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes are known where {size} are needed")
    buffers = [memoryview(buffer) for buffer in batch.memory(size)]
    try:
        done = 0
        for buffer in buffers:
            buffer[:] = data[done : done + len(buffer)]
            done += len(buffer)
    finally:
        release(buffers)
    batch.end_read(size)


def _has_changed(mapping: BackedMapping, ended_early: bool) -> bool:
    """Whether the object is no longer the one whose bytes are cached, as far as the store can tell."""
    if mapping.fd >= 0:
        return not mapping.stamp_unchanged()
    if not mapping.backing.is_current(mapping):
        return True
    host = mapping.host
    return ended_early and not holds_beside_own_writes(mapping, lambda: host is None or host.size() == mapping.disk_size)


def _early_end(mapping: BackedMapping, offset: int) -> OSError:
    return OSError(
        errno.EIO,
        f"cannot read {mapping.name} at offset {offset}: the store brought no more bytes, "
        f"though the object has {mapping.disk_size}",
    )


def _memory_of(batches: Sequence[FolioBatch]) -> list[memoryview]:
    """Return buffers for the data of batches, with buffers that are not read for what lies between them."""
    buffers: list[memoryview] = []
    end = batches[0].start
    for batch in batches:
        gap = (batch.start - end) * 4096
        buffers += [memoryview(_SINK)[: min(len(_SINK), gap - start)] for start in range(0, gap, len(_SINK))]
        buffers += [memoryview(buffer) for buffer in batch.memory(batch.data_bytes())]
        end = batch.next_index
    return buffers


def _read_store(
    mapping: BackedMapping, batches: Sequence[FolioBatch], offset: int, expected: int, filling: Filling | None
) -> int:
    """Ask a Python store for the bytes, again for what a short read left out. Returns the bytes there are."""
    if expected == 0:
        return 0
    buffers = _memory_of(batches)
    limit = max(4096, mapping.backing.max_request(mapping))
    done = 0
    try:
        while done < expected:
            asked = min(limit, expected - done)
            asked_pieces = pieces(buffers, done, asked)
            try:
                with contextlib.nullcontext() if filling is None else filling.lent([*asked_pieces, *buffers]):
                    got = _ask_store(mapping, offset + done, asked_pieces, asked)
            finally:
                release(asked_pieces)
            if got == 0:
                break
            done += got
    except BaseException as error:
        release(buffers)
        if any(batch.exported for batch in batches):
            clear_frames(error)
        raise
    release(buffers)
    if any(batch.exported for batch in batches):
        raise OSError(errno.EIO, "the store kept a buffer it was given to fill")
    return done


def clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions of an exception's traceback held when they failed: slices of buffers must not live as
    long as it does."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _ask_store(mapping: BackedMapping, offset: int, pieces: list[memoryview], asked: int) -> int:
    """Make one request. Returns the bytes it brought."""
    host = mapping.host
    assert host is not None
    started = time.perf_counter()
    try:
        got = getattr(host, "readv_in_ranges", host.readv)(offset, pieces)
    except NoRangesError:
        mapping.backing.read_in_order()
        raise
    except BaseException as error:
        logger.debug("%s: %d bytes from %d on: %s", mapping.name, asked, offset, str(error) or type(error).__name__)
        raise
    if logger.isEnabledFor(logging.DEBUG):
        taken_ms = (time.perf_counter() - started) * 1000
        logger.debug("%s: %d bytes from %d on, in %.1f ms", mapping.name, asked, offset, taken_ms)
    if isinstance(got, bool):
        raise TypeError("readv returned bool, not a number of bytes")
    try:
        got = operator.index(got)
    except TypeError:
        raise TypeError(f"readv returned {type(got).__name__}, not a number of bytes") from None
    if not 0 <= got <= asked:
        raise OSError(errno.EIO, f"the store returned {got} bytes where {asked} were asked for")
    take_surplus_bytes = getattr(host, "take_surplus_bytes", None)
    mapping.count_store_read(got if take_surplus_bytes is None else got + take_surplus_bytes())
    return got


def pieces(buffers: list[memoryview], start: int, nbytes: int) -> list[memoryview]:
    """Return views of bytes [start, start + nbytes) of the buffers taken as one."""
    out = []
    for buffer in buffers:
        piece = buffer[start : start + nbytes]
        if len(piece):
            out.append(piece)
        start = max(0, start - len(buffer))
        nbytes -= len(piece)
    return out


def release(buffers: list[memoryview]) -> None:
    """Take the buffers away from the store, as far as that can be done: `FolioBatch.exported` says whether it kept one."""
    for buffer in buffers:
        try:
            buffer.release()
        except BufferError:
            pass


def read_locked_folio(mapping: BackedMapping, folio: Folio) -> None:
    """Read the data of one locked folio that is in the cache and not uptodate; it is unlocked in any case.

    Raises OSError, and so does every thread that waits for the folio; the folio has then left the cache. After any
    other exception, which says nothing about the data, the threads that wait read it themselves.
    """
    batch = mapping.adopt(folio)
    try:
        read_run(mapping, batch)
    except OSError as error:
        batch.fail(error)
        raise
    except BaseException:
        batch.release()
        raise


def wait_for_folio(mapping: BackedMapping, folio: Folio) -> None:
    """Wait, holding no reference, until a locked folio is unlocked.

    Raises the error that ended its read, if one did. Context: no lock may be held.
    """
    while_waiting = None
    if mapping.backing is not None:
        mapping.backing.request_queue.wake()
        while_waiting = mapping.backing.end_overdue
    frame, seq = folio.frame, folio.seq
    if folio.mapping_number == 0:
        folio.wait_unlocked()  # until its removal is over: the failure stands under the seq it had before
        seq = folio.seq - SEQ_STEP
        folio.put()
    else:
        folio.wait_unlocked(True, while_waiting)
    failure = mapping.failure_of(frame, seq % (1 << 32))
    if failure is not None:
        raise OSError(*failure)

