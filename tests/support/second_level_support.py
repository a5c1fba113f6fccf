"""What tests of a second level share: an origin that can be made to fail, and what a server holds, seen from outside."""

import contextlib
import socket
import threading

from pagecache.adapters.valkey import SecondLevel, TieredStore
from pagecache.adapters.valkey.extents import ObjectVersion
from support import PATIENCE_S

EXTENT = 16 * 1024
PATIENT = {"timeout_s": PATIENCE_S, "patience_s": PATIENCE_S}  # a machine that is busy makes no member fail


class Origin:
    """A far store of one object. errors: raised by the next reads; bad: a range of bytes that cannot be read."""

    def __init__(self, data, key="object"):
        self.data, self.key, self.version = data, key, "1"
        self._begin()

    def _begin(self):
        self.requests, self.errors, self.bad = [], [], range(0)
        self.after_read = None
        self.entered, self.go_on, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self.go_on.set()

    def size(self):
        return len(self.data)

    def validator(self):
        return self.version

    def readv(self, offset, buffers):
        wanted = min(sum(map(len, buffers)), max(0, len(self.data) - offset))
        with self._lock:
            self.requests.append((offset, wanted))
            error = self.errors.pop(0) if self.errors else None
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S), "no test let the origin answer"
        if error is not None:
            raise error
        if offset < self.bad.stop and self.bad.start < offset + wanted:
            raise OSError(5, "bad page")
        done = 0
        for buffer in buffers:
            piece = self.data[offset + done : offset + done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
        if self.after_read is not None:
            self.after_read()
        return done

    def bytes_read(self):
        return sum(nbytes for _, nbytes in self.requests)

    def close(self):
        pass

    def __copy__(self):
        again = Origin(self.data, self.key)
        again.version = self.version
        return again

    def __reduce__(self):
        return Origin, (self.data, self.key)


def level_on(server, **options):
    """Return a level on a server, of small extents."""
    return SecondLevel(server.url, **{"extent_bytes": EXTENT, **PATIENT, **options})


def filled(level, origin):
    """Read all of an origin once, so that the server has it; returns the store."""
    store = TieredStore(origin, level)
    assert read_all(store) == origin.data
    assert level.flush(PATIENCE_S)
    return store


def hurry(level, timeout_s):
    """Have a level wait for so long from now on (seconds)."""
    level.timeout_s = level.patience_s = timeout_s
    level._dial = level._server(0, {})[0]
    level._drop_connections()


def read_all(store, step=1 << 20):
    """Read a store without a cache."""
    out = bytearray(store.size())
    for offset in range(0, len(out), step):
        with memoryview(out)[offset : offset + step] as piece:
            assert store.readv(offset, [piece[: len(piece) // 3], piece[len(piece) // 3 :]]) == len(piece)
    return bytes(out)


@contextlib.contextmanager
def dial_plainly(server):
    """A function `put(name, value)` that stores a value on a server."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(server.path)

        def put(name, value):
            if server.kind == "memcached":
                head = b"set %b 0 0 %d\r\n" % (name, len(value))
            else:
                head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(value))
            connection.sendall(head + value + b"\r\n")
            assert connection.recv(100) in (b"STORED\r\n", b"+OK\r\n")

        yield put


def values_of(server, store, validator="1"):
    """Return the values that a server has of an object, by extent."""
    version = version_of(store, validator)
    found = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(server.path)
        stream = connection.makefile("rb")
        for extent in range(-(-version.size // version.extent_bytes)):
            connection.sendall(b"get %b\r\n" % version.name(extent))
            line = stream.readline()
            if server.kind == "memcached" and line != b"END\r\n":
                found[extent] = stream.read(int(line.split()[3]) + 2)[:-2]
                assert stream.readline() == b"END\r\n"
            elif line.startswith(b"$") and line != b"$-1\r\n":
                found[extent] = stream.read(int(line[1:]) + 2)[:-2]
    return found


def version_of(store, validator="1"):
    """Return what names the extents of a store's object."""
    return ObjectVersion(store.key, validator, store.size(), EXTENT, "pagecache")


def corrupted(store, values, extent, damage, rng):
    """Return (name, value) of an extent that is damaged in one way."""
    name, value = version_of(store).name(extent), bytearray(values[extent])
    if damage == "flipped":
        value[rng.randrange(100, len(value))] ^= 1 << rng.randrange(8)
    elif damage == "flipped header":
        value[rng.randrange(72)] ^= 1 << rng.randrange(8)
    elif damage == "truncated":
        del value[-1 - rng.randrange(len(value) - 1) :]
    elif damage == "too long":
        value += b"x"
    elif damage == "of another version":
        value[4:6] = b"\2\0"
    elif damage == "of another extent":
        value = values[extent + 1]
    elif damage == "of another object":
        other = ObjectVersion("other", "1", store.size(), EXTENT, "pagecache")
        value = b"".join(other.encode(extent, bytes(value[72:])))
    elif damage == "empty":
        value = b""
    elif damage == "of another length":
        short = ObjectVersion(store.key, "1", extent * EXTENT + 7, EXTENT, "pagecache")
        value = b"".join(short.encode(extent, bytes(value[72:79])))
    elif damage == "huge":
        value = bytes(value) * 40
    return name, bytes(value)


__all__ = [
    "EXTENT", "PATIENT", "Origin", "TieredStore", "corrupted", "dial_plainly", "filled", "hurry", "level_on",
    "read_all", "values_of", "version_of",
]  # fmt: skip
