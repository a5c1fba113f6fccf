"""This process's side of a second level: its connections to the server, its fills, and what it thinks of the server.

Whatever goes wrong is a miss.  After an error or a time-out the server is suspected: for some seconds it is not asked and
nothing is fetched for it; then one request tries it, while the others go to the origin as before.  A server that is well
but takes no more (its memory is full, it is a replica) is read from, and not written to for the same time.
"""

import atexit
import functools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pagecache._core import Mutex
from pagecache.adapters.peers.client import Suspects
from pagecache.adapters.valkey import connections
from pagecache.adapters.valkey.connections import Item, ServerRefusedError, Take, Wire
from pagecache.adapters.valkey.extents import HEADER_BYTES, NAME_BYTES_MAX, Extent, ObjectVersion
from pagecache.adapters.valkey.fills import Fill, Fills
from pagecache.stores.base import BackingStore, key_scope_of
from pagecache.units import PAGE_SIZE, parse_size

EXTENT_BYTES_MAX = 16 * 1024 * 1024
DAY_S = 24 * 3600
MEMCACHED_ITEM_BYTES = 1024 * 1024
NAMES_MAX = 64  # of one request
SERVER = "server"  # what may be suspected
EXIT_PATIENCE_S = 2.0  # how long the end of the program waits for fills
FLUSH_PATIENCE_S = 30.0


class Flight:
    """An extent that one thread fetches from the origin; others wait for what comes of that.

    data: the whole extent, of the version that its name says, when it is there; None if that was not to be had.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self.data: Extent | None = None

    def land(self, data: Extent | None) -> None:
        """Wake those that wait."""
        self.data = data
        self._done.set()

    def wait(self) -> Extent | None:
        """Return the data when it is there, or None."""
        self._done.wait()
        return self.data


class SecondLevel:
    """A Valkey, Redis or memcached server that holds extents for many processes; a context manager.

    url: valkey://, valkeys:// (TLS), redis://, rediss://, unix://, as the client library takes them, with user, password
    and number of the database; memcached://host:port or memcached:///path.
    extent_bytes: what one value holds; processes share what has the same size. prefix: of all names on the server.
    ttl_s: how long a value is kept (seconds); 0: as long as the server has room. Old versions are never looked up
    again, and go only so.
    timeout_s: silence after which the server has failed; patience_s: what one request may take in all, what a new
    connection may take for each word of its greeting, and how long a request waits for one of the `connections` that there
    are at most; suspect_s: how long the server is not asked after a failure (seconds). queue_bytes: most that waits to be
    written.
    item_bytes_max: the server's limit of one value: 1 MiB on memcached. options: for the library's connections.

    The same arguments in one process are to be one level, so that stores share its connections and its queue; `TieredStore`
    takes a URL as well, and sees to that. The server need not be there.
    Raises ValueError; ImportError when no client library is installed.
    Context: safe from any thread; a forked child begins with no connections and an empty queue.
    """

    store_type: ClassVar[Callable[..., Any]]  # set by the module of `TieredStore`, which is above

    def __init__(
        self,
        url: str,
        *,
        extent_bytes: int | str = "256KiB",
        prefix: str = "pagecache",
        ttl_s: float = 7 * DAY_S,
        timeout_s: float = 0.2,
        patience_s: float = 1.0,
        suspect_s: float = 5.0,
        queue_bytes: int | str = "64MiB",
        connections: int = 8,
        item_bytes_max: int | str | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self._settings: dict[str, Any] = {
            "extent_bytes": extent_bytes, "prefix": prefix, "ttl_s": ttl_s, "timeout_s": timeout_s,
            "patience_s": patience_s, "suspect_s": suspect_s, "queue_bytes": queue_bytes, "connections": connections,
            "item_bytes_max": item_bytes_max, "options": options,
        }  # fmt: skip
        self._url = url
        self.extent_bytes = parse_size(extent_bytes)
        self.prefix = prefix
        self.timeout_s, self.patience_s, self.suspect_s = timeout_s, patience_s, suspect_s
        self.is_closed = False
        self._queue_bytes = parse_size(queue_bytes)
        self._connections = connections
        self._check(ttl_s, item_bytes_max)
        self._dial, self._protocol = self._server(ttl_s, options or {})
        self._begin()
        _levels.add(self)

    def _check(self, ttl_s: float, item_bytes_max: int | str | None) -> None:
        if not PAGE_SIZE <= self.extent_bytes <= EXTENT_BYTES_MAX or self.extent_bytes % PAGE_SIZE:
            raise ValueError(f"extent_bytes must be whole pages, 16 MiB at most, not {self._settings['extent_bytes']!r}")
        if item_bytes_max is None and self._url.startswith(f"{connections.MEMCACHED_SCHEME}:"):
            item_bytes_max = MEMCACHED_ITEM_BYTES
        needed = self.extent_bytes + HEADER_BYTES + NAME_BYTES_MAX + connections.ITEM_OVERHEAD_BYTES
        if item_bytes_max is not None and needed > parse_size(item_bytes_max):
            limit = parse_size(item_bytes_max)
            raise ValueError(f"an extent of {self.extent_bytes} bytes needs {needed} where one value has {limit} at most")
        if len(self.prefix) > NAME_BYTES_MAX - 60 or not self.prefix.isascii() or not self.prefix.isprintable():
            raise ValueError(f"prefix must be printable ASCII and short, not {self.prefix!r}")
        if " " in self.prefix:
            raise ValueError(f"prefix must have no blanks: {self.prefix!r}")
        if not (self.timeout_s > 0 and self.patience_s > 0 and self.suspect_s >= 0 and ttl_s >= 0):
            raise ValueError("timeout_s and patience_s must be positive, suspect_s and ttl_s not negative")
        if self._connections < 1:
            raise ValueError(f"connections must be 1 or more, not {self._connections}")

    def _server(self, ttl_s: float, options: Mapping[str, Any]) -> tuple[connections.Dial, Any]:
        """Return what connects to the server, and what is said to it."""
        scheme = self._url.partition("://")[0]
        if scheme == connections.MEMCACHED_SCHEME:
            return connections.memcached_dial(self._url, self.timeout_s), connections.MemcachedProtocol(ttl_s)
        if scheme in connections.VALKEY_SCHEMES:
            dial = connections.valkey_dial(self._url, self.timeout_s, self.patience_s, options)
            return dial, connections.ValkeyProtocol(ttl_s)
        known = ", ".join([*connections.VALKEY_SCHEMES, connections.MEMCACHED_SCHEME])
        raise ValueError(f"the URL of a second level begins with one of {known}, not with {scheme!r}")

    def _begin(self) -> None:
        """Begin with no connection and nothing known."""
        self.lock = Mutex()  # of the counts of stores, too
        self.flights: dict[bytes, Flight] = {}
        self.suspects = Suspects(self.suspect_s, what="second level's")
        self._places = threading.Semaphore(self._connections)
        self._idle: deque[Wire] = deque()
        self._fills = Fills(self._queue_bytes, self._send)
        self._fills_from = 0.0  # when the server is written to again (monotonic seconds)
        self._nr_stores = 0
        self._pid = os.getpid()

    def renew_after_fork(self) -> None:
        """Leave connections, queue and locks to the parent process."""
        idle, nr_stores = self._idle, self._nr_stores
        self._begin()
        self._nr_stores = nr_stores
        for wire in list(idle):
            wire.close()  # this process's descriptor only: nothing is said on it

    # -- reading -------------------------------------------------------------------------------------------------------

    def version(self, key: str, validator: str, size: int) -> ObjectVersion:
        """Return what names the extents of one version of an object. size: bytes."""
        return ObjectVersion(key, validator, size, self.extent_bytes, self.prefix)

    def find_waiting(self, name: bytes) -> Extent | None:
        """Return the data of an extent that is on its way to the server, or None."""
        return self._fills.find(name)

    def read(self, names: Sequence[bytes], take: Take) -> bool:
        """Ask the server for values; take(position, value) is called for each that it has, which may be anything.

        Returns whether it has answered; if not, some may have been taken nevertheless.
        """
        if self.is_closed or not self.suspects.may_ask(SERVER):
            return True
        for first in range(0, len(names), NAMES_MAX):
            part = names[first : first + NAMES_MAX]
            if not self._read_some(part, functools.partial(_take_from, take, first)):
                return False
        return True

    def _read_some(self, names: Sequence[bytes], take: Take) -> bool:
        if not self._places.acquire(timeout=self.patience_s):
            return False  # all connections are busy: that says nothing about the server
        try:
            return self._ask(lambda wire: self._protocol.get_many(wire, names, take))
        except ServerRefusedError:
            self.suspects.note_failure(SERVER)
            return False
        finally:
            self._places.release()

    def _ask(self, request: Callable[[Wire], None]) -> bool:
        """Make one request, in one attempt. Returns whether it was answered; if not, the server is suspected.

        Raises ServerRefusedError.
        """
        wire = None
        try:
            wire = self._connected(time.monotonic() + self.patience_s)
            request(wire)
        except ServerRefusedError:
            self._give(wire)
            raise
        except (OSError, EOFError):
            self._give_up(wire)
            self._drop_connections()
            self.suspects.note_failure(SERVER)
            return False
        except BaseException:  # an interrupt: what comes on this connection would be taken for another answer
            self._give_up(wire)
            raise
        self._give(wire)
        self.suspects.note_success(SERVER)
        return True

    def _connected(self, ends_at: float) -> Wire:
        """Return a connection that is open as far as can be seen. Raises OSError."""
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                wire = Wire(self._dial(), self.timeout_s, self.extent_bytes + HEADER_BYTES)
                wire.ends_at = ends_at
                return wire
            if wire.is_quiet():
                wire.ends_at = ends_at
                return wire
            wire.close()

    def _give(self, wire: Wire | None) -> None:
        if wire is not None:
            self._idle.append(wire)
        if self.is_closed or not self._nr_stores:
            self._drop_connections()

    @staticmethod
    def _give_up(wire: Wire | None) -> None:
        if wire is not None:
            wire.close()

    def _drop_connections(self) -> None:
        """Close the connections that are not in use."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    # -- filling -------------------------------------------------------------------------------------------------------

    def takes_fills(self, nbytes: int) -> bool:
        """Whether it makes sense to fetch whole extents of so many bytes for the server."""
        if self.is_closed or self._is_suspected() or time.monotonic() < self._fills_from:
            return False
        return self._fills.has_room(nbytes)

    def _is_suspected(self) -> bool:
        return bool(self.suspects.names())

    def fill(self, version: ObjectVersion, extent: int, data: Extent) -> bool:
        """Have an extent written when its turn comes. data: all of it, and it does not change. Returns False if it is
        dropped."""
        return self._fills.put(Fill(version, extent, data))

    def note_dropped(self, number: int) -> None:
        """Count extents that were fetched and not offered, for want of room."""
        self._fills.note_dropped(number)

    def _send(self, items: Sequence[Item]) -> int:
        """Send what is written behind. Returns how many the server has taken. Context: the thread of the fills."""
        if self._is_suspected():
            return 0
        try:
            return len(items) if self._ask(lambda wire: self._protocol.set_many(wire, items)) else 0
        except ServerRefusedError:
            self._fills_from = time.monotonic() + self.suspect_s
            return 0

    def flush(self, timeout_s: float = FLUSH_PATIENCE_S) -> bool:
        """Wait until all fills are written or have failed, or for so long (seconds). Returns whether that is so."""
        return self._fills.flush(timeout_s)

    # -- life ----------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Count one more store that is open."""
        with self.lock.held():
            self._nr_stores += 1

    def detach(self) -> None:
        """Count one store less; without any the connections are closed, and fills that wait are still written."""
        with self.lock.held():
            self._nr_stores -= 1
        if not self._nr_stores:
            self._drop_connections()

    def wrap(self, store: BackingStore) -> BackingStore:
        """Return the store to open in place of another, as `PageCache.through` wants it: one over this level if that is
        far away, and its key means the same to all that share the server, else itself."""
        is_tiered = getattr(store, "second_level", None) is not None
        if is_tiered or self.is_closed or getattr(store, "latency", "remote") != "remote":
            return store
        if key_scope_of(store) != "everywhere":
            return store
        return store if getattr(store, "fd", -1) >= 0 else self.store_type(store, self)

    def stats(self) -> dict[str, Any]:
        """Return what was written (`fills`, `fill_bytes`), dropped for want of room (`fills_dropped`) or not taken by the
        server (`fills_failed`), what waits (`queue_bytes`, `queue_bytes_max`), and whether the server is suspected."""
        return {**self._fills.snapshot(), "suspected": self.suspects.names()}

    def close(self, timeout_s: float = EXIT_PATIENCE_S) -> None:
        """Write what waits, for so long (seconds), and close the connections; reads then go to the origin. Idempotent."""
        if self.is_closed:
            return
        if self._pid == os.getpid():
            self._fills.flush(timeout_s)
            self._fills.close()
        self.is_closed = True
        self._drop_connections()

    def __enter__(self) -> "SecondLevel":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return level_of, (self._url, self._settings)

    def __repr__(self) -> str:
        return f"<SecondLevel {connections.shown_url(self._url)}{', closed' if self.is_closed else ''}>"


def _take_from(take: Take, first: int, position: int, value: memoryview) -> None:
    take(first + position, value)


_levels: weakref.WeakSet[SecondLevel] = weakref.WeakSet()
_shared: dict[tuple[str, str], SecondLevel] = {}
_shared_lock = Mutex()


def level_of(url: str, settings: Mapping[str, Any] | None = None) -> SecondLevel:
    """Return this process's level of a URL: the same for the same settings, until it is closed. Raises as SecondLevel."""
    name = (url, repr(sorted((settings or {}).items())))
    with _shared_lock.held():
        level = _shared.get(name)
        if level is None or level.is_closed:
            level = _shared[name] = SecondLevel(url, **(settings or {}))
        return level


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = Mutex()
    for level in list(_levels):
        level.renew_after_fork()


def _at_exit() -> None:
    for level in list(_levels):
        level.close()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
