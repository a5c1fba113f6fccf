"""Prefetching a byte range in the background, with something to wait on."""

import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable

from pagecache import submit, workers
from pagecache._core import AddressSpace

PAGE_SHIFT = 12


class Prefetch:
    """A range on its way into the cache.

    mapping, first, last: pages first..last (inclusive) of the object; more than the cache can hold is left out.
    Context: the work is done by worker threads; objects are safe to use from any thread.
    """

    def __init__(self, mapping: AddressSpace, first: int, last: int):
        self._mapping = mapping
        self._changed = threading.Condition()
        self._callbacks: list[Callable[[Prefetch], None]] = []
        self._error: OSError | None = None
        last = min(last, first + mapping.segment.nr_frames - 1)
        self.nr_pages = max(0, last - first + 1)
        self.nr_pages_done = 0
        self._step = max(1, mapping.extra.request_bytes() >> PAGE_SHIFT)
        self._chunks = deque(range(first, last + 1, self._step))
        self._end = last + 1
        for _ in range(min(len(self._chunks), mapping.extra.hints.parallel_requests)):
            workers.caller_pool.run(self._read_chunks)

    def _read_chunks(self) -> None:
        while True:
            try:
                start = self._chunks.popleft()
            except IndexError:
                return
            self._read_chunk(start, min(start + self._step, self._end) - 1)

    def _read_chunk(self, start: int, end: int) -> None:
        error = None
        try:
            read_missing(self._mapping, start, end)
        except OSError as failed:
            error = failed
            self._mapping.segment.add_count("readahead_errors", 1)
        except BaseException as failed:  # a worker has nobody to raise to
            error = OSError(errno.EIO, str(failed))
        self._count(end - start + 1, error)

    def _count(self, nr_pages: int, error: OSError | None = None) -> None:
        """Note that so many pages more need no work; the last ones end the prefetch."""
        with self._changed:
            self._error = self._error or error
            self.nr_pages_done += nr_pages
            callbacks = self._callbacks if self.done else []
            self._changed.notify_all()
        for callback in callbacks:
            workers.run_guarded(lambda callback=callback: callback(self))

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
        nr_pages = 0
        with contextlib.suppress(IndexError):
            while True:
                start = self._chunks.popleft()
                nr_pages += min(start + self._step, self._end) - start
        if nr_pages:
            self._count(nr_pages)

    def add_done_callback(self, callback: "Callable[[Prefetch], None]") -> None:
        """Call back when the prefetch is done, in the thread that ends it; at once if it is."""
        with self._changed:
            if not self.done:
                self._callbacks.append(callback)
                return
        callback(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the range is read (timeout in seconds). Returns whether it is.

        Raises the first OSError that a part of it met. Context: Ctrl-C ends the wait.
        """
        with self._changed:
            ended = self._changed.wait_for(lambda: self.done, timeout)
            if self._error is not None:
                raise self._error
        return ended

    def __repr__(self) -> str:
        return f"<Prefetch {self.nr_pages_done} of {self.nr_pages} pages>"


def read_missing(mapping: AddressSpace, start: int, end: int) -> None:
    """Read the pages start..end (inclusive) that are not cached, in the calling thread. Raises OSError.

    Context: takes invalidate_lock shared, and a place behind those that others wait for.
    """
    end = min(end, -(-mapping.size >> PAGE_SHIFT) - 1)
    with mapping.shared():
        for batch in submit.missing_batches(mapping, start, end, _order_for(end - start + 1)):
            try:
                submit.read_now(mapping, batch, urgent=False)
            finally:
                batch.release()


def _order_for(nr_pages: int) -> int:
    """Return the largest folio order that is worth it for a range."""
    return min(9, max(0, nr_pages.bit_length() - 1))
