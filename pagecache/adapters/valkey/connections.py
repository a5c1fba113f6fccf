"""Connections to servers: values are asked for by name, several in one request, and received into one buffer.

The client library (valkey-py, or redis-py) makes the connection: addresses, passwords, TLS.  What is then said on it are
two commands whose answers are read here, because a library makes three objects of each value on its way, and bounds the
silence between two pieces, but not the time of an answer that comes in drops.

memcached's text protocol needs no library.
"""

import importlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

Take = Callable[[int, memoryview], None]
Item = tuple[bytes, Sequence[Any]]  # name, pieces of the value

LINE_BYTES_MAX = 64 * 1024
VALKEY_SCHEMES = ("valkey", "valkeys", "redis", "rediss", "unix")
MEMCACHED_SCHEME = "memcached"
MEMCACHED_PORT = 11211
MEMCACHED_TTL_MAX_S = 30 * 24 * 3600  # what is larger is taken for a date
ITEM_OVERHEAD_BYTES = 128  # what memcached counts besides name and value


class ServerRefusedError(Exception):
    """A server that is well says no: to the password, to more memory, to what it is asked."""


class Wire:
    """A connected socket, read through one buffer.

    connection: a socket, SSL or not. timeout_s: silence after which it has failed. value_bytes_max: values that are larger
    are passed over. Context: one thread at a time.
    """

    def __init__(self, connection: socket.socket, timeout_s: float, value_bytes_max: int):
        self.socket = connection
        self._timeout_s = timeout_s
        self._value_bytes_max = value_bytes_max
        self._buffer = bytearray(2 * (value_bytes_max + LINE_BYTES_MAX))
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what was received and not yet read
        self.ends_at = 0.0
        self._kernel_waits = self._let_kernel_wait()
        # A Unix socket hands over small pieces, each of which would wake this thread; TCP is slower if it is waited for so.
        self._waits_for_all = self._kernel_waits and connection.family == getattr(socket, "AF_UNIX", None)

    def _let_kernel_wait(self) -> bool:
        """Have the kernel keep the time-out, where it can: then the socket blocks, and a call is one call."""
        if isinstance(self.socket, ssl.SSLSocket):
            return False
        seconds, part = divmod(self._timeout_s, 1.0)
        try:
            self.socket.settimeout(None)
            timeval = struct.pack("@ll", int(seconds), max(1, int(part * 1e6)))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        except OSError:
            return False
        return True

    def _receive(self, nbytes: int = 0) -> None:
        """Receive some bytes behind those that are there. nbytes: what is due at least, if that is known.

        Raises OSError, EOFError.
        """
        if self._end == len(self._buffer) or self._start == self._end:
            left = self._end - self._start
            self._view[:left] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, left
        self._wait_at_most()
        try:
            if nbytes and self._waits_for_all:
                got = self.socket.recv_into(self._view[self._end : self._end + nbytes], 0, socket.MSG_WAITALL)
            else:
                got = self.socket.recv_into(self._view[self._end :])
        except BlockingIOError:
            raise TimeoutError("the server is silent") from None
        if got == 0:
            raise EOFError("the server ended the connection")
        self._end += got

    def _wait_at_most(self) -> None:
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server answers too slowly")
        if not self._kernel_waits:
            self.socket.settimeout(min(left, self._timeout_s))

    def send(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        self._wait_at_most()
        if not self._kernel_waits:
            self.socket.sendall(data)
            return
        with memoryview(data) as left:
            done = 0
            while done < len(data):
                self._wait_at_most()
                try:
                    done += self.socket.send(left[done:])
                except BlockingIOError:
                    raise TimeoutError("the server takes nothing") from None

    def line(self) -> bytes:
        """Return a line, without its end."""
        while True:
            at = self._buffer.find(b"\r\n", self._start, self._end)
            if at >= 0:
                line = bytes(self._view[self._start : at])
                self._start = at + 2
                return line
            if self._end - self._start > LINE_BYTES_MAX:
                raise OSError("the server sends no line where one is due")
            self._receive()

    def value(self, nbytes: int) -> memoryview:
        """Return a value and pass over the line end behind it; an empty one in place of one that is too large.

        What is returned is overwritten by the next call.
        """
        if nbytes > self._value_bytes_max:
            self._skip(nbytes + 2)
            return self._view[:0]
        if self._start + nbytes + 2 > len(self._buffer):
            left = self._end - self._start
            self._view[:left] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, left
        while self._end - self._start < nbytes + 2:
            self._receive(nbytes + 2 - (self._end - self._start))
        value = self._view[self._start : self._start + nbytes]
        if bytes(self._view[self._start + nbytes : self._start + nbytes + 2]) != b"\r\n":
            raise OSError("the server sends a value of another length than it says")
        self._start += nbytes + 2
        return value

    def _skip(self, nbytes: int) -> None:
        while nbytes > 0:
            if self._start == self._end:
                self._receive()
            step = min(nbytes, self._end - self._start)
            self._start += step
            nbytes -= step

    def is_quiet(self) -> bool:
        """Whether there is nothing to read, neither bytes nor the end of the connection."""
        if self._start != self._end:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class ValkeyProtocol:
    """Valkey and Redis: MGET, and SET with a time to live. ttl_s: 0 for values that stay."""

    def __init__(self, ttl_s: float = 0):
        self._expiry = [b"PX", b"%d" % max(1, int(ttl_s * 1000))] if ttl_s else []

    @staticmethod
    def _command(words: Sequence[bytes]) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def get_many(self, wire: Wire, names: Sequence[bytes], take: Take) -> None:
        """Ask for values; take(position, value) is called for each that is there. Raises as `Wire`; ServerRefusedError."""
        wire.send(self._command([b"MGET", *names]))
        nr_values = self._number(wire.line(), b"*")
        if nr_values != len(names):
            raise OSError(f"the server sends {nr_values} values where {len(names)} were asked for")
        for position in range(nr_values):
            nbytes = self._number(wire.line(), b"$")
            if nbytes >= 0:
                take(position, wire.value(nbytes))

    def set_many(self, wire: Wire, items: Sequence[Item]) -> None:
        """Have values kept. Raises as `get_many`."""
        for name, pieces in items:
            words = [b"SET", name, b"".join(pieces), *self._expiry]
            wire.send(self._command(words))
        refused = None
        for _ in items:
            try:
                self._expect_ok(wire.line())
            except ServerRefusedError as error:
                refused = error
        if refused is not None:
            raise refused

    @staticmethod
    def _number(line: bytes, kind: bytes) -> int:
        if line[:1] == b"-":
            raise ServerRefusedError(line[1:].decode("utf-8", "replace"))
        if line[:1] != kind or not line[1:].removeprefix(b"-").isdigit():
            raise OSError(f"the server sends {line[:20]!r} where a number is due")
        return int(line[1:])

    @staticmethod
    def _expect_ok(line: bytes) -> None:
        if line[:1] == b"-":
            raise ServerRefusedError(line[1:].decode("utf-8", "replace"))
        if line != b"+OK":
            raise OSError(f"the server sends {line[:20]!r} where OK is due")


class MemcachedProtocol:
    """memcached's text protocol: get, and set with a time to live."""

    def __init__(self, ttl_s: float = 0):
        self._ttl_s = max(1, int(ttl_s)) if ttl_s else 0

    def get_many(self, wire: Wire, names: Sequence[bytes], take: Take) -> None:
        """As ValkeyProtocol.get_many."""
        positions = {name: position for position, name in enumerate(names)}
        wire.send(b"get " + b" ".join(names) + b"\r\n")
        while (line := wire.line()) != b"END":
            fields = line.split(b" ")
            if fields[0] != b"VALUE":
                self._refuse(line)
            if len(fields) < 4 or fields[1] not in positions or not fields[3].isdigit():
                raise OSError(f"the server sends {line[:80]!r} where a value is due")
            take(positions[fields[1]], wire.value(int(fields[3])))

    def set_many(self, wire: Wire, items: Sequence[Item]) -> None:
        """As ValkeyProtocol.set_many."""
        expiry = self._ttl_s if self._ttl_s <= MEMCACHED_TTL_MAX_S else int(time.time()) + self._ttl_s
        for name, pieces in items:
            nbytes = sum(map(len, pieces))
            wire.send(b"".join([b"set %b 0 %d %d\r\n" % (name, expiry, nbytes), *pieces, b"\r\n"]))
        refused = None
        for _ in items:
            line = wire.line()
            if line != b"STORED":
                refused = line
        if refused is not None:
            self._refuse(refused)

    @staticmethod
    def _refuse(line: bytes) -> None:
        if line.startswith((b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR", b"NOT_STORED")):
            raise ServerRefusedError(line.decode("utf-8", "replace"))
        raise OSError(f"the server sends {line[:20]!r}")


Dial = Callable[[], socket.socket]  # returns a connected socket, or raises OSError


def client_library() -> ModuleType:
    """Return the module that makes connections. Raises ImportError, with what to install."""
    for name in ("valkey", "redis"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("a second level in Valkey or Redis needs a client: pip install 'pagecache-engine[valkey]'")


def valkey_dial(url: str, timeout_s: float, patience_s: float, options: Mapping[str, Any]) -> Dial:
    """Return what connects to a Valkey or Redis server: in timeout_s, with patience_s for each word of the greeting, which
    a busy server may need. options: for the library's connections. Raises ImportError, ValueError."""
    library = client_library()
    scheme, separator, rest = url.partition("://")
    if library.__name__ == "redis":
        scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    retry = importlib.import_module(f"{library.__name__}.retry").Retry
    no_backoff = importlib.import_module(f"{library.__name__}.backoff").NoBackoff
    errors = importlib.import_module(f"{library.__name__}.exceptions")
    error_type = getattr(errors, "ValkeyError", None) or errors.RedisError
    wanted: dict[str, Any] = {"socket_timeout": patience_s, "socket_connect_timeout": timeout_s, "protocol": 2}
    if library.__name__ == "valkey":
        wanted |= {"lib_name": None, "lib_version": None}  # two words less
    wanted |= options
    pool = library.ConnectionPool.from_url(scheme + separator + rest, **wanted)

    def dial() -> socket.socket:
        connection = pool.connection_class(**{**pool.connection_kwargs, "retry": retry(no_backoff(), 0)})
        try:
            connection.connect()
        except error_type as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from None
        connected: socket.socket
        connected, connection._sock = connection._sock, None  # ours from here on
        return connected

    return dial


def memcached_dial(url: str, timeout_s: float) -> Dial:
    """Return what connects to a memcached server: memcached://host:port or memcached:///path. Raises ValueError."""
    parts = urlsplit(url)
    if not parts.hostname and not parts.path:
        raise ValueError(f"{url} names no server: memcached://host:port or memcached:///path/of.socket")
    port = parts.port or MEMCACHED_PORT

    def dial() -> socket.socket:
        if parts.hostname:
            connection = socket.create_connection((parts.hostname, port), timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(parts.path)
        except BaseException:
            connection.close()
            raise
        return connection

    return dial


def shown_url(url: str) -> str:
    """Return a URL without what is not to be seen."""
    parts = urlsplit(url)
    place = parts.path if not parts.hostname else f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return f"{parts.scheme}://{place}"
