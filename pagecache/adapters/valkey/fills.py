"""Fills are written behind: a bounded queue of extents, and one thread that sends them while there are any.

A reader puts an extent in and goes on; when the queue is full, or the server is suspected, the extent is dropped: it is
fetched and offered again by the next that needs it.  What waits in the queue is served from there.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pagecache.adapters.valkey.extents import HEADER_BYTES, Extent, ObjectVersion

BATCH_BYTES = 4 * 1024 * 1024
LINGER_S = 1.0  # how long the thread waits for more before it ends


class Fill(NamedTuple):
    """An extent on its way to the server. data: whole, and it does not change."""

    version: ObjectVersion
    extent: int
    data: Extent


class Fills:
    """The extents that are to be written. limit_bytes: most of them at once, those that are being sent included.

    send: sends items (name, pieces), and returns how many the server has taken; it does not raise.
    Context: safe from any thread.
    """

    def __init__(self, limit_bytes: int, send: Callable[[Sequence[tuple[bytes, Sequence[Any]]]], int]):
        self.limit_bytes = limit_bytes
        self._send = send
        self._changed = threading.Condition()
        self._waiting: OrderedDict[bytes, Fill] = OrderedDict()
        self._sending: dict[bytes, Fill] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self.nbytes = 0
        self.nbytes_max = 0  # most that there ever was
        self.counts = {"fills": 0, "fill_bytes": 0, "fills_dropped": 0, "fills_failed": 0}

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes can be taken now, as far as is known."""
        return not self._closed and self.nbytes + nbytes + HEADER_BYTES <= self.limit_bytes

    def put(self, fill: Fill) -> bool:
        """Take an extent. Returns False if it was dropped."""
        name, cost = fill.version.name(fill.extent), len(fill.data) + HEADER_BYTES
        with self._changed:
            if name in self._waiting or name in self._sending:
                return True
            if self._closed or self.nbytes + cost > self.limit_bytes or not self._has_thread():
                self.counts["fills_dropped"] += 1
                return False
            self._waiting[name] = fill
            self.nbytes += cost
            self.nbytes_max = max(self.nbytes_max, self.nbytes)
            self._changed.notify_all()
        return True

    def find(self, name: bytes) -> Extent | None:
        """Return the data of an extent that is still here, or None."""
        if not self.nbytes:
            return None
        with self._changed:
            fill = self._waiting.get(name) or self._sending.get(name)
        return None if fill is None else fill.data

    def note_dropped(self, number: int) -> None:
        """Count extents that were not even offered."""
        with self._changed:
            self.counts["fills_dropped"] += number

    def _has_thread(self) -> bool:
        """Start the thread if there is none. Context: lock held."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="pagecache-fills", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or no thread can be had
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while self._take_batch():
            items = [(name, fill.version.encode(fill.extent, fill.data)) for name, fill in self._sending.items()]
            nr_taken = 0
            try:
                nr_taken = self._send(items)
            finally:
                self._end_batch(nr_taken)

    def _take_batch(self) -> bool:
        """Move the oldest extents over to those that are being sent. Returns False when this thread is to end."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait_for(lambda: self._waiting or self._closed, LINGER_S)
            if not self._waiting:
                self._thread = None
                return False
            nbytes = 0
            while self._waiting and nbytes < BATCH_BYTES:
                name, fill = self._waiting.popitem(last=False)
                self._sending[name] = fill
                nbytes += len(fill.data)
        return True

    def _end_batch(self, nr_taken: int) -> None:
        with self._changed:
            sent = list(self._sending.values())
            self._sending = {}
            self.nbytes -= sum(len(fill.data) + HEADER_BYTES for fill in sent)
            self.counts["fills"] += nr_taken
            self.counts["fill_bytes"] += sum(len(fill.data) for fill in sent[:nr_taken])
            self.counts["fills_failed"] += len(sent) - nr_taken
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is left, or for so long (seconds). Returns whether nothing is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._sending, timeout_s)

    def close(self) -> None:
        """Drop what waits; the thread ends when it has sent what it sends."""
        with self._changed:
            self._closed = True
            self.nbytes -= sum(len(fill.data) + HEADER_BYTES for fill in self._waiting.values())
            self.counts["fills_dropped"] += len(self._waiting)
            self._waiting.clear()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)

    def snapshot(self) -> dict[str, int]:
        """Return the counts, and what is in the queue."""
        with self._changed:
            return {**self.counts, "queue_bytes": self.nbytes, "queue_bytes_max": self.nbytes_max}

