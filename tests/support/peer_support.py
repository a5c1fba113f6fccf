"""What tests of peers share: an origin that counts and can be replaced, groups within one process, peers that misbehave."""

import contextlib
import errno
import socket
import threading

import pagecache
from pagecache.adapters.peers import Member, PeerGroup, protocol, transport
from pagecache.adapters.peers.server import PageServer
from support import PATIENCE_S

EXTENT = 64 * 1024
PATIENT = {"timeout_s": PATIENCE_S, "patience_s": PATIENCE_S}  # a machine that is busy makes no member fail


class Objects:
    """An origin: objects by name, of one version each, and the reads that came."""

    def __init__(self):
        self.lock = threading.Lock()
        self.objects = {}
        self.reads = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()
        self.error = None

    def put(self, name, data):
        with self.lock:
            version = self.objects[name][1] + 1 if name in self.objects else 1
            self.objects[name] = (bytes(data), version)

    def open(self, name):
        """Return a store of an object; names may be those of its stores."""
        return Origin(self, name.removeprefix("origin://"))

    def bytes_read(self):
        with self.lock:
            return sum(nbytes for _, _, nbytes in self.reads)


class Origin:
    """A store of one object, which knows its version as FsspecStore does: reads of another one fail."""

    latency = "remote"

    def __init__(self, objects, name):
        self.objects = objects
        self.key = f"origin:{name}"
        self.name = f"origin://{name}"
        self._name = name
        self.refresh()

    def refresh(self):
        self._data, self._version = self.objects.objects[self._name]

    def size(self):
        return len(self._data)

    def validator(self):
        return f"version {self._version}"

    def readv(self, offset, buffers):
        objects = self.objects
        objects.entered.set()
        assert objects.go_on.wait(PATIENCE_S), "no test let the origin answer"
        if objects.error is not None:
            raise objects.error
        with objects.lock:
            data, version = objects.objects[self._name]
            nbytes = min(sum(map(len, buffers)), len(data) - offset)
            objects.reads.append((self._name, offset, nbytes))
        if version != self._version:
            self.refresh()
            raise OSError(errno.ESTALE, "replaced")
        done = 0
        for buffer in buffers:
            piece = data[offset + done : offset + done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
        return done

    def close(self):
        pass


class Machine:
    """One member within this process: its cache and its group."""

    def __init__(self, objects, size="4MiB", me="127.0.0.1:0", **options):
        self.objects = objects
        self.cache = pagecache.PageCache(size)
        settings = {"extent_bytes": EXTENT, "request_bytes": EXTENT, "resolver": objects.open, **PATIENT, **options}
        self.group = PeerGroup([], me, cache=self.cache, **settings)

    def open(self, name, **options):
        return self.cache.open(self.group.store(self.objects.open(name)), **options)

    def counts(self):
        return self.cache.stats().as_dict()

    def close(self):
        self.group.close()
        if not self.cache.closed:
            self.cache.check()
            self.cache.close()


@contextlib.contextmanager
def machines(objects, nr, **options):
    """So many members that know each other; every cache is checked in the end."""
    made = []
    try:
        for _ in range(nr):
            made.append(Machine(objects, **options))
        know_each_other(made)
        yield made
    finally:
        for machine in made:
            machine.close()


def know_each_other(made, epoch=None):
    """Give all members the list of all."""
    for machine in made:
        machine.group.update([other.group.me for other in made], epoch)


class FakePeer:
    """A member of which only the socket is real: `answer(connection, request)` does what the test wants.

    It counts the requests that came.
    """

    def __init__(self, answer, secret=b""):
        self.answer, self.secret = answer, secret
        self.nr_requests = 0
        self.listener = transport.listen_tcp("127.0.0.1:0")
        address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.member = Member(address, address, "elsewhere")
        self._connections = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            transport.greet_as_server(connection, self.secret)
            while True:
                request = PageServer._receive_request(None, connection)
                self.nr_requests += 1
                self.answer(connection, request)
        except (OSError, EOFError, protocol.ProtocolError):
            transport.shut(connection)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self._connections:
            transport.shut(connection)
        self._thread.join(PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def head(kind, request, nbytes=None, reason=0, number=None):
    """Return the header of an answer."""
    nbytes = (request.nbytes if kind == protocol.DATA else 0) if nbytes is None else nbytes
    number = request.number if number is None else number
    return protocol.encode_answer(protocol.Answer(kind, reason, number, 1, nbytes))
