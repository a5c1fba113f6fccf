"""A store that behaves like an object store far away: latency, bandwidth per connection, a number of connections."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PATTERN_BYTES = 1 << 26


class ThrottledStore:
    """One object of `nbytes`; each request takes latency_s + bytes / bandwidth, on one of `connections`.

    It counts requests and bytes. `fetch` serves clients that want bytes (fsspec's caches), `readv` the cache.
    """

    preferred_request = 128 * 1024
    latency = "remote"

    def __init__(
        self,
        nbytes: int,
        *,
        key: str = "throttled",
        latency_s: float = 0.020,
        bandwidth_bytes_s: float = 64 * 2**20,
        connections: int = 8,
        max_request: int = 16 * 2**20,
    ):
        self.max_request = max_request
        self.key = key
        self.nbytes = nbytes
        self.latency_s = latency_s
        self.bandwidth_bytes_s = bandwidth_bytes_s
        self.parallel_requests = connections
        self._free = threading.Semaphore(connections)
        self._lock = threading.Lock()
        self._pattern = memoryview(bytes(range(251)) * (PATTERN_BYTES // 251 + 2))
        self.nr_requests = 0
        self.nr_bytes = 0

    def size(self) -> int:
        return self.nbytes

    def validator(self) -> str:
        return "1"

    def close(self) -> None:
        """Nothing is held."""

    def expected(self, offset: int, nbytes: int) -> bytes:
        """Return the bytes of a range without asking the store."""
        start = offset % 251
        return bytes(self._pattern[start : start + nbytes])

    @contextmanager
    def _transfer(self, nbytes: int) -> Iterator[None]:
        """One request on one connection: what is done inside counts in, as bytes arrive while others travel."""
        with self._lock:
            self.nr_requests += 1
            self.nr_bytes += nbytes
        with self._free:
            ends = time.perf_counter() + self.latency_s + nbytes / self.bandwidth_bytes_s
            yield
            time.sleep(max(0.0, ends - time.perf_counter()))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        wanted = min(sum(map(len, buffers)), self.nbytes - offset)
        done = 0
        with self._transfer(wanted):
            for buffer in buffers:
                piece = min(len(buffer), wanted - done)
                start = (offset + done) % 251
                buffer[:piece] = self._pattern[start : start + piece]
                done += piece
        return done

    def fetch(self, start: int, end: int) -> bytes:
        """Return bytes start..end - 1, as an HTTP client would."""
        end = min(end, self.nbytes)
        with self._transfer(end - start):
            return self.expected(start, end - start)
