"""How much to read ahead: windows that fit the store and the budget.

The kernel's limit (`ra_pages`, from the store's preferred request) suits a disk behind a queue.  A store with latency
answers a request of b bytes in about

    seconds = latency + b / bandwidth

whatever else runs on its other connections.  To lose no more than a tenth of the bandwidth to waiting, one request has
to carry b >= 9 * latency * bandwidth; to use all connections, a window has to hold `parallel_requests` of them.  Both
numbers are measured: a weighted least-squares line through the (bytes, seconds) of the latest requests.

A window is also bounded by its share of the budget: all streams together may hold a quarter of the frames in windows, so
a thousand open files do not each hold one.
"""

import threading

from pagecache.stores.base import StoreHints

PAGE_SIZE = 4096
WAITING_FACTOR = 9  # request size in units of latency * bandwidth: 1 / (1 + 9) of the time is waiting
FORGET = 0.9  # weight of what was measured before
BUDGET_SHARE = 4  # all windows together: a quarter of the frames
MIN_WINDOW_PAGES = 4


class StoreSpeed:
    """Latency (seconds) and bandwidth (bytes per second) of one connection, from what requests took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weight = self._bytes = self._seconds = self._bytes_squared = self._product = 0.0
        self.latency_s = 0.0
        self.bandwidth_bytes_s = 0.0

    def observe(self, nbytes: int, seconds: float) -> None:
        """Take a request of nbytes that took so long into account."""
        with self._lock:
            self._weight = self._weight * FORGET + 1
            self._bytes = self._bytes * FORGET + nbytes
            self._seconds = self._seconds * FORGET + seconds
            self._bytes_squared = self._bytes_squared * FORGET + nbytes * nbytes
            self._product = self._product * FORGET + nbytes * seconds
            self._fit()

    def _fit(self) -> None:
        mean_bytes, mean_seconds = self._bytes / self._weight, self._seconds / self._weight
        variance = self._bytes_squared / self._weight - mean_bytes * mean_bytes
        covariance = self._product / self._weight - mean_bytes * mean_seconds
        if variance > (mean_bytes / 8) ** 2 and covariance > 0:
            self.bandwidth_bytes_s = variance / covariance
            self.latency_s = max(0.0, mean_seconds - mean_bytes / self.bandwidth_bytes_s)
        elif self.bandwidth_bytes_s:
            self.latency_s = max(0.0, mean_seconds - mean_bytes / self.bandwidth_bytes_s)
        else:
            self.latency_s = mean_seconds

    @property
    def in_flight_bytes(self) -> float:
        """Bytes that one connection carries in the time of its latency."""
        return self.latency_s * self.bandwidth_bytes_s


def request_bytes(hints: StoreHints, speed: StoreSpeed) -> int:
    """Return the size of one request: large enough that waiting hardly counts, whole pages, a power of two."""
    wanted = max(hints.preferred_request, int(WAITING_FACTOR * speed.in_flight_bytes))
    wanted = min(wanted, hints.max_request)
    return max(PAGE_SIZE, 1 << (wanted - 1).bit_length() if wanted < hints.max_request else wanted)


def window_pages(hints: StoreHints, speed: StoreSpeed, nr_frames: int, nr_streams: int) -> int:
    """Return the largest window of one stream (pages).

    nr_frames: the budget. nr_streams: files that are being read ahead of, this one included.
    """
    share = nr_frames // (BUDGET_SHARE * max(1, nr_streams))
    if hints.latency == "remote":
        wanted = hints.parallel_requests * request_bytes(hints, speed) // PAGE_SIZE
    else:
        wanted = hints.preferred_request // PAGE_SIZE
    return max(1, min(wanted, max(share, MIN_WINDOW_PAGES), nr_frames))
