"""A mount's session without a mount: a socket in place of /dev/fuse, at whose other end a test plays the kernel."""

import errno
import itertools
import os
import socket
import threading

from pagecache.adapters.fuse import protocol
from pagecache.adapters.fuse.directory import DirectoryOperations
from pagecache.adapters.fuse.protocol import Opcode
from pagecache.adapters.fuse.session import Session

PATIENCE_S = 60
ROOT_ID = 1


class Wire:
    """A session over a directory of this machine, and the kernel's end of it.

    cache: whose pages are used. source: path. options: of `DirectoryOperations`.
    """

    def __init__(self, cache, source, **options):
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, ours):  # a request or an answer is one message
            for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, name, 4 << 20)
        self.operations = DirectoryOperations(cache, str(source), **options)
        self.files = self.operations.files
        self.session = Session(self.operations, ours.detach())
        self._unique = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting = {}

    def __enter__(self):
        self._send(Opcode.INIT, 0, protocol.INIT_IN.pack(7, 38, 0, 0, 0))
        self.session.start()
        self.kernel.recv(1 << 16)
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()
        return self

    def __exit__(self, *exc):
        self.kernel.shutdown(socket.SHUT_WR)  # every thread then reads nothing, and ends
        self.session.end()
        self._receiver.join(PATIENCE_S)
        self.kernel.close()
        self.operations.finish()

    def _send(self, opcode, node, body=b""):
        unique = next(self._unique)
        length = protocol.IN_HEADER.size + len(body)
        header = protocol.IN_HEADER.pack(length, opcode, unique, node, os.getuid(), os.getgid(), os.getpid(), 0, 0)
        self.kernel.send(header + body)
        return unique

    def _receive(self):
        while answer := self.kernel.recv(protocol.REQUEST_BYTES):
            length, error, unique = protocol.OUT_HEADER.unpack_from(answer)
            assert length == len(answer)
            with self._lock:
                event, found = self._waiting.get(unique, (None, None))
            if event is not None:
                found.append((error, answer[protocol.OUT_HEADER.size :]))
                event.set()

    # -- requests ------------------------------------------------------------------------------------------------------

    def begin(self, opcode, node, body=b""):
        """Send a request. Returns a function that waits for its answer, and returns that or raises OSError."""
        event, found = threading.Event(), []
        with self._lock:
            unique = self._send(opcode, node, body)
            self._waiting[unique] = event, found

        def answer():
            assert event.wait(PATIENCE_S), "no answer"
            with self._lock:
                del self._waiting[unique]
            error, answered = found[0]
            if error:
                raise OSError(-error, os.strerror(-error))
            return answered

        return answer

    def ask(self, opcode, node, body=b""):
        """Send a request, and return its answer. Raises OSError."""
        return self.begin(opcode, node, body)()

    def lookup(self, name):
        """Return a node's number."""
        return protocol.ENTRY.unpack_from(self.ask(Opcode.LOOKUP, ROOT_ID, os.fsencode(name) + b"\0"))[0]

    def open(self, node, flags=os.O_RDWR):
        """Return the number of a handle."""
        return protocol.OPEN_OUT.unpack(self.ask(Opcode.OPEN, node, protocol.OPEN_IN.pack(flags, 0)))[0]

    def release(self, node, handle):
        """Close a handle."""
        self.ask(Opcode.FLUSH, node, protocol.FLUSH_IN.pack(handle, 0, 0, 0))
        self.ask(Opcode.RELEASE, node, protocol.RELEASE_IN.pack(handle, 0, 0, 0))

    def read(self, node, handle, nbytes, offset):
        """Return bytes of a file."""
        return self.ask(Opcode.READ, node, protocol.READ_IN.pack(handle, offset, nbytes, 0, 0, 0, 0))

    def write(self, node, handle, data, offset, *, io_flags=0, flags=0):
        """Write bytes, all of them."""
        body = protocol.WRITE_IN.pack(handle, offset, len(data), io_flags, 0, flags, 0) + data
        assert protocol.WRITE_OUT.unpack(self.ask(Opcode.WRITE, node, body))[0] == len(data)

    def attributes(self, node, handle=None):
        """Return the attributes of a node, as bytes of the kernel's structure."""
        flags = 0 if handle is None else protocol.GETATTR_FH
        return self.ask(Opcode.GETATTR, node, protocol.GETATTR_IN.pack(flags, 0, handle or 0))[protocol.ATTR_OUT.size :]

    def truncate(self, node, handle, size):
        """Set the size by a handle."""
        valid = protocol.SetAttr.SIZE | protocol.SetAttr.FH
        self.ask(Opcode.SETATTR, node, protocol.SETATTR_IN.pack(valid, 0, handle, size, *[0] * 12))

    def counts(self):
        """Return how many requests were served where."""
        return self.files.handles.counts()

    def served(self, call, *args, **options):
        """Return what a call returns, and where its requests were served: counts that have grown. An OSError is returned,
        too."""
        before = self.counts()
        try:
            result = call(*args, **options)
        except OSError as error:
            result = errno.errorcode[error.errno]
        after = self.counts()
        return result, {name: after[name] - before[name] for name in after if after[name] != before[name]}
