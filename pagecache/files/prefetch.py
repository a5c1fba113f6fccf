"""Prefetching a byte range in the background, with something to wait on."""

import errno
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator

from pagecache._core import EventCount, Mutex
from pagecache.requests import submit, workers
from pagecache.requests.backing import BackedMapping, Backing
from pagecache.requests.filling import sharing
from pagecache.stores.abandoned import Abandoned, Call
from pagecache.stores.worker_pool import run_guarded
from pagecache.units import PAGE_SHIFT


class Prefetch:
    """A range on its way into the cache.

    mapping, first, last: pages first..last (inclusive) of the object; more than the cache can hold is left out.
    Context: the work is done by worker threads; objects are safe to use from any thread. A store without `background_reads`
    is read before this returns, in the calling thread.
    """

    def __init__(self, mapping: BackedMapping, first: int, last: int):
        self._mapping = mapping
        self._lock = Mutex()
        self._changed = EventCount()
        self._callbacks: list[Callable[[Prefetch], None]] = []
        self._error: OSError | None = None
        last = min(last, first + mapping.segment.nr_frames - 1)
        self.nr_pages = max(0, last - first + 1)
        self._nr_read = 0
        self._is_cancelled = False
        self._step = max(1, mapping.backing.request_bytes() >> PAGE_SHIFT)
        self._chunks = deque(range(first, last + 1, self._step))
        self._end = last + 1
        try:
            if self._chunks:
                mapping.backing.prefetches.add(self)
            self._start(mapping.backing)
        except BaseException:  # a signal: there may be no reader of it, and nothing waits for it
            self.cancel()
            raise

    def _start(self, backing: Backing) -> None:
        if not backing.hints.background_reads:
            self._read_chunks(0)
            return
        for number in range(min(len(self._chunks), backing.request_queue.limit)):
            workers.caller_pool.run(functools.partial(self._read_chunks, number))

    def _read_chunks(self, number: int) -> None:
        while number == 0 or number < self._mapping.backing.request_queue.limit:  # the others stop where order counts
            start = self._next_chunk()
            if start is None:
                break
            self._read_chunk(start, min(start + self._step, self._end) - 1)
        self._count(0)  # `cancel` may have been interrupted before it was noted

    def _next_chunk(self) -> int | None:
        with self._lock.held():
            return self._chunks.popleft() if self._chunks and not self._is_cancelled else None

    def _read_chunk(self, start: int, end: int) -> None:
        error = None
        try:
            try:
                self._read_missing(start, end)
            except OSError as failed:
                if failed.errno != errno.ESTALE or not self._mapping.backing.look_closer():
                    raise
                self._read_missing(start, end)
        except OSError as failed:
            error = failed
            self._mapping.segment.add_count("readahead_errors", 1)
        except Abandoned:
            error = TimeoutError(errno.ETIMEDOUT, f"a request for {self._mapping.name} hung, and was given up for a reader")
        except BaseException as failed:  # a worker has no caller to raise to
            error = OSError(errno.EIO, str(failed) or type(failed).__name__)
            if not self._mapping.backing.hints.background_reads and not isinstance(failed, Exception):
                self._count(end - start + 1, error)
                raise
        self._count(end - start + 1, error)

    def _read_missing(self, start: int, end: int) -> None:
        """As `read_missing`. In a worker, no thread waits for it: a reader that does may take it over if it hangs."""
        if self._mapping.backing.hints.background_reads:
            Call(in_background=True).run(read_missing, self._mapping, start, end)
        else:
            read_missing(self._mapping, start, end)

    def _count(self, nr_pages: int, error: OSError | None = None) -> None:
        """Note that so many pages more are read; the last ones end the prefetch."""
        with self._lock.held():
            self._error = self._error or error
            self._nr_read += nr_pages
            callbacks = []
            if self.done:
                callbacks, self._callbacks = self._callbacks, []
                self._mapping.backing.prefetches.discard(self)
        self._changed.advance()
        for callback in callbacks:
            run_guarded(functools.partial(callback, self))

    @property
    def nr_pages_done(self) -> int:
        """Pages that need no more work: read, or, once it is cancelled, not begun."""
        skipped = self._end - self._chunks[0] if self._is_cancelled and self._chunks else 0
        return self._nr_read + skipped

    @property
    def done(self) -> bool:
        """Whether nothing more will be read."""
        return self.nr_pages_done == self.nr_pages

    @property
    def progress(self) -> float:
        """The share of the range that is done, 0.0 to 1.0."""
        return self.nr_pages_done / self.nr_pages if self.nr_pages else 1.0

    def cancel(self) -> None:
        """Skip what has not begun. The prefetch is done when what has begun is."""
        with self._lock.held():
            self._is_cancelled = True  # from now on no chunk is taken
        self._count(0)

    def add_done_callback(self, callback: "Callable[[Prefetch], None]") -> None:
        """Call back when the prefetch is done, in the thread that ends it; at once if it is."""
        with self._lock.held():
            if not self.done:
                self._callbacks.append(callback)
                return
        callback(self)

    def wait_done(self, timeout: float | None = None) -> bool:
        """Wait until nothing more will be read (timeout in seconds), whatever came of it. Returns whether that is so."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            seen = self._changed.value
            if self.done:
                return True
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._changed.wait(seen, left)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the range is read (timeout in seconds). Returns whether it is.

        Raises the first OSError that a part of it met. Context: Ctrl-C ends the wait.
        """
        ended = self.wait_done(timeout)
        if self._error is not None:
            raise self._error
        return ended

    def __len__(self) -> int:
        return self.nr_pages

    def __iter__(self) -> Iterator[int]:
        """Iterate over as many numbers as there are pages, each when one more is done: `tqdm(file.prefetch())`.

        Raises the first OSError that a part of the range met, after the last number. Context: waits as `wait`.
        """
        for number in range(self.nr_pages):
            while self.nr_pages_done <= number:
                seen = self._changed.value
                if self.nr_pages_done <= number:
                    self._changed.wait(seen, None)
            yield number
        self.wait()

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Prefetch {self.nr_pages_done} of {self.nr_pages} pages>"


def read_missing(mapping: BackedMapping, start: int, end: int) -> None:
    """Read the pages start..end (inclusive) that are not cached, in the calling thread. Raises OSError.

    Context: takes invalidate_lock shared, and a place behind those that others wait for.
    """
    is_urgent = not mapping.backing.hints.background_reads  # then it is the user's own thread
    end = min(end, -(-mapping.size >> PAGE_SHIFT) - 1)
    with sharing(mapping):
        for batch in submit.missing_batches(mapping, start, end, _order_for(end - start + 1)):
            try:
                submit.read_now(mapping, batch, urgent=is_urgent)
            finally:
                batch.release()


def _order_for(nr_pages: int) -> int:
    """Return the largest folio order that is worth it for a range."""
    return min(9, max(0, nr_pages.bit_length() - 1))
