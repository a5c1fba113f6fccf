"""How fast a store answers: latency and bandwidth of one connection, measured, and what one request should carry.

A store with latency answers a request of b bytes in about

    seconds = latency + b / bandwidth

whatever runs on its other connections.  To lose no more than a seventeenth of the bandwidth to waiting, one request has
to carry b >= 16 * latency * bandwidth.  Latency and bandwidth are measured: a line through (bytes, seconds) of the fastest
small and the fastest large request.  A store that says it is local, or that answers in less than half a millisecond, is
not far: waiting for it costs no more than copying.

What is measured belongs to the origin of an object (its server, bucket or file system), if the store names one: the next
object from there is read by what is known already.
"""

import os
from collections import OrderedDict

from pagecache._core import Mutex
from pagecache.stores.base import StoreHints
from pagecache.units import PAGE_SIZE

WAITING_FACTOR = 16  # request size in units of latency * bandwidth: 1 / 17 of the time is waiting
KEEP_FASTEST = 64  # observations after which a fastest request is too old
FAR_LATENCY_S = 0.0005  # from here on waiting for a request costs more than copying its bytes
FLAT = 1.05  # a large request that takes no more than this times what a small one takes is all latency, as far as is known
TRUSTED_GROWTH = 20  # no request carries so much more than the largest one that was measured
PROBE_PAGES = 256  # what is read to measure bandwidth
PATIENCE_MIN_S = 4.0  # no request is taken for one that hangs before
PATIENCE_FACTOR = 32  # nor before this times what the best of its size would take: so many may share a connection
MAX_ORIGINS = 256


class StoreSpeed:
    """Latency (seconds) and bandwidth (bytes per second) of one connection, from what requests took.

    What a request takes beyond the best of its size is queueing, not the store: for each power of two the fastest of
    the latest requests is kept, and the line goes through the smallest and the largest size.
    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._fastest: dict[int, tuple[int, float, int]] = {}  # power of two: (bytes, seconds, observations since)
        self.latency_s = 0.0
        self.bandwidth_bytes_s = 0.0
        self.nr_fits = 0  # changes with the two
        self.largest_bytes = 0  # of the requests that were measured
        self.is_flat = False

    def observe(self, nbytes: int, seconds: float) -> None:
        """Take a request of nbytes that took so long into account."""
        if nbytes <= 0:
            return
        power = nbytes.bit_length()
        with self._lock.held():
            best_bytes, best_seconds, age = self._fastest.get(power, (nbytes, seconds, 0))
            if seconds <= best_seconds or age >= KEEP_FASTEST:
                self._fastest[power] = (nbytes, seconds, 0)
            else:
                self._fastest[power] = (best_bytes, best_seconds, age + 1)
            self._fit()

    def _fit(self) -> None:
        self.nr_fits += 1
        self.largest_bytes = max(self.largest_bytes, self._fastest[max(self._fastest)][0])
        small_bytes, small_seconds, _ = self._fastest[min(self._fastest)]
        large_bytes, large_seconds, _ = self._fastest[max(self._fastest)]
        self.is_flat = large_seconds <= FLAT * small_seconds
        if large_bytes > small_bytes and large_seconds > small_seconds:
            self.bandwidth_bytes_s = (large_bytes - small_bytes) / (large_seconds - small_seconds)
            self.latency_s = max(0.0, small_seconds - small_bytes / self.bandwidth_bytes_s)
        else:
            self.latency_s = min(small_seconds, large_seconds)
            self.bandwidth_bytes_s = large_bytes / self.latency_s if self.latency_s else 0.0

    def patience_s(self, nbytes: int) -> float:
        """Return for how long (seconds) a request of so many bytes is not taken for one that hangs."""
        carrying_s = nbytes / self.bandwidth_bytes_s if self.bandwidth_bytes_s else 0.0
        return max(PATIENCE_MIN_S, PATIENCE_FACTOR * (self.latency_s + carrying_s))

    @property
    def in_flight_bytes(self) -> float:
        """Bytes that one connection carries in the time of its latency."""
        return self.latency_s * self.bandwidth_bytes_s

    @property
    def free_bytes(self) -> float:
        """Bytes that cost no more than one request costs anyway: what is in flight, or, where bandwidth is too high to
        have been measured yet, what it must be at least."""
        at_least = self.largest_bytes / (FLAT - 1) if self.is_flat else 0.0
        return max(self.in_flight_bytes, at_least)


_origins: OrderedDict[str, StoreSpeed] = OrderedDict()
_origins_lock = Mutex()


def speed_of(origin: str | None) -> StoreSpeed:
    """Return what is measured of an origin, the same for all its objects; something new for None."""
    if origin is None:
        return StoreSpeed()
    with _origins_lock.held():
        speed = _origins.setdefault(origin, StoreSpeed())
        _origins.move_to_end(origin)
        while len(_origins) > MAX_ORIGINS:
            _origins.popitem(last=False)
        return speed


def forget_origins() -> None:
    """Know nothing of any origin any more; objects that are open keep what they know."""
    with _origins_lock.held():
        _origins.clear()


def _after_fork_in_child() -> None:
    """Give a child locks of its own: it measures anew."""
    global _origins, _origins_lock
    _origins, _origins_lock = OrderedDict(), Mutex()


def is_far(hints: StoreHints, speed: StoreSpeed) -> bool:
    """Whether waiting for the store costs more than copying its bytes."""
    return hints.latency == "remote" and speed.latency_s >= FAR_LATENCY_S


def request_bytes(hints: StoreHints, speed: StoreSpeed) -> int:
    """Return the most that one request should carry (bytes): all the store takes, or, where it is far and requests run
    in parallel, no more than is needed for waiting to hardly count."""
    if not is_far(hints, speed):
        return max(PAGE_SIZE, hints.max_request)
    wanted = min(max(hints.preferred_request, int(WAITING_FACTOR * speed.in_flight_bytes)), hints.max_request)
    return max(PAGE_SIZE, 1 << (wanted - 1).bit_length() if wanted < hints.max_request else wanted)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
