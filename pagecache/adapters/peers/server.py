"""The page server of one process: answers its peers out of the cache.

One thread watches connections on which nothing goes on; a connection with a request is handed to a worker thread, which
answers it and those that follow, and then gives it back.  So idle connections cost a descriptor each, and the threads are
as many as requests that are being answered.  A worker that has to wait for the origin says so every `beat_s`, so that the
reader can tell an owner that waits from one that is gone.
"""

import errno
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from pagecache.adapters.peers import protocol, transport
from pagecache.adapters.peers.protocol import Answer, ProtocolError, Request
from pagecache.stores.worker_pool import WorkerPool

WORKERS_MAX = 64
CONNECTIONS_MAX = 4096
CLOSE_PATIENCE_S = 5.0
FULL_PAUSE_S = 0.05  # before the next try where no descriptor is left
LINGER_S = 0.002  # how long a worker stays with a connection that it has answered
logger = logging.getLogger("pagecache")

Views = Sequence[memoryview | bytes]


class RefusedError(Exception):
    """A request is not served, for a reason of `protocol`."""

    def __init__(self, reason: int):
        super().__init__(protocol.REASONS[reason])
        self.reason = reason


class PageServer:
    """Answers requests on the listening sockets that it is given, which it closes in the end.

    ready: returns the pieces of a request's bytes if they are there, None if they have to be waited for; wait: brings them
    in and returns them; both raise RefusedError. secret, tls: of the group. beat_s, timeout_s: how often a waiting peer
    hears of this one, and how long a peer may take to send a request or to take an answer (seconds).
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        ready: Callable[[Request], Views | None],
        wait: Callable[[Request], Views],
        *,
        secret: bytes,
        epoch: Callable[[], int],
        tls: ssl.SSLContext | None = None,
        beat_s: float = 0.05,
        timeout_s: float = 2.0,
    ):
        self._ready, self._wait, self._epoch = ready, wait, epoch
        self._secret, self._tls = secret, tls
        self._beat_s, self._timeout_s = beat_s, timeout_s
        self._pool = WorkerPool(WORKERS_MAX)
        self._fillers = WorkerPool(WORKERS_MAX)
        self._listeners = list(listeners)
        self._lock = threading.Lock()
        self._idle_changed = threading.Condition(self._lock)
        self._connections: set[socket.socket] = set()
        self._returned: list[socket.socket] = []
        self._nr_busy = 0
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._watch, name="pagecache-peers", daemon=True)
        self._thread.start()

    # -- the watching thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closing:
            try:
                self._watch_once()
            except Exception:
                logger.exception("the page server goes on after an error")
                time.sleep(FULL_PAUSE_S)

    def _watch_once(self) -> None:
        for key, _ in self._selector.select():
            if key.fd == self._wake_read:
                os.read(self._wake_read, 4096)
            elif key.fileobj in self._listeners:
                self._accept(key.fileobj)
            else:
                self._selector.unregister(key.fileobj)
                self._hand_over(cast(socket.socket, key.fileobj), self._answer_all)
        with self._lock:
            returned, self._returned = self._returned, []
        for connection in returned:
            try:
                self._selector.register(connection, selectors.EVENT_READ)
            except (ValueError, OSError, KeyError):  # closed meanwhile
                self._forget(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it stays in the queue: others may end meanwhile
                time.sleep(FULL_PAUSE_S)
            return
        with self._lock:
            is_welcome = not self._closing and len(self._connections) < CONNECTIONS_MAX
            if is_welcome:
                self._connections.add(connection)
        if is_welcome:
            self._hand_over(connection, self._greet)
        else:
            connection.close()

    def _hand_over(self, connection: socket.socket, work: Callable[[socket.socket], Any]) -> None:
        with self._lock:
            self._nr_busy += 1
        self._pool.run(lambda: self._work(connection, work))

    # -- workers -------------------------------------------------------------------------------------------------------

    def _work(self, connection: socket.socket, work: Callable[[socket.socket], Any]) -> None:
        """Do what there is to do on a connection, and give it back; what goes wrong on it ends it."""
        keeps = None
        try:
            if not self._closing:
                keeps = work(connection)
        except (OSError, EOFError, ProtocolError):
            pass
        except Exception:
            logger.exception("a request of a peer failed")
        finally:
            if keeps is None:
                self._forget(connection)
            with self._lock:
                if keeps is not None:
                    self._returned.append(keeps)
                self._nr_busy -= 1
                self._idle_changed.notify_all()
            self._wake()

    def _greet(self, connection: socket.socket) -> socket.socket:
        connection.settimeout(self._timeout_s)
        transport.tune(connection)
        if self._tls is not None and connection.family != getattr(socket, "AF_UNIX", None):
            wrapped = self._tls.wrap_socket(connection, server_side=True)  # detaches the plain one
            with self._lock:
                self._connections.discard(connection)
                self._connections.add(wrapped)
            connection = wrapped
        try:
            transport.greet_as_server(connection, self._secret)
        except BaseException:
            self._forget(connection)
            raise
        return connection

    def _answer_all(self, connection: socket.socket) -> socket.socket:
        """Answer the requests that are there, one after the other."""
        while True:
            self._answer(connection, self._receive_request(connection))
            if isinstance(connection, ssl.SSLSocket) and connection.pending():
                continue
            connection.settimeout(LINGER_S)
            try:
                if not isinstance(connection, ssl.SSLSocket) and connection.recv(1, socket.MSG_PEEK):
                    continue
            except TimeoutError:
                pass
            finally:
                connection.settimeout(self._timeout_s)
            return connection

    def _receive_request(self, connection: socket.socket) -> Request:
        fields, lengths = protocol.decode_request_head(transport.receive(connection, protocol.REQUEST.size))
        return protocol.decode_request(fields, lengths, transport.receive(connection, sum(lengths)))

    def _answer(self, connection: socket.socket, request: Request) -> None:
        try:
            pieces = self._ready(request)
            if pieces is None:
                pieces = self._wait_beating(connection, request)
            if sum(map(len, pieces)) != request.nbytes:
                raise RefusedError(protocol.FAILED)
        except RefusedError as refused:
            transport.send(connection, [self._head(protocol.REFUSED, request, refused.reason)])
            return
        try:
            transport.send(connection, [self._head(protocol.DATA, request), *pieces])
        finally:
            for piece in pieces:
                if isinstance(piece, memoryview):
                    piece.release()

    def _wait_beating(self, connection: socket.socket, request: Request) -> Views:
        """Have another thread bring in what is asked for, and let the peer know meanwhile that this one is alive."""
        waiting = _Waiting(self._wait, request)
        self._fillers.run(waiting.run)
        try:
            while not waiting.ended.wait(self._beat_s):
                if self._closing:
                    raise OSError("closing")
                transport.send(connection, [self._head(protocol.PENDING, request)])
        except BaseException:
            waiting.abandon()
            raise
        return waiting.result()

    def _head(self, kind: int, request: Request, reason: int = 0) -> bytes:
        nbytes = request.nbytes if kind == protocol.DATA else 0
        return protocol.encode_answer(Answer(kind, reason, request.number, self._epoch(), nbytes))

    # -- life ----------------------------------------------------------------------------------------------------------

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        transport.shut(connection)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except OSError:  # full: it will wake
            pass

    def close(self, paths: Sequence[Path] = ()) -> None:
        """Stop answering; requests under way end. paths: of Unix sockets to remove. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._wake()
        self._thread.join(CLOSE_PATIENCE_S)
        for path in paths:
            path.unlink(missing_ok=True)
        for listener in self._listeners:
            listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            transport.shut(connection)
        with self._idle_changed:
            is_idle = self._idle_changed.wait_for(lambda: not self._nr_busy, CLOSE_PATIENCE_S)
        self._selector.close()
        if is_idle:  # else a worker may still want to wake the thread: two descriptors are kept
            os.close(self._wake_read)
            os.close(self._wake_write)


class _Waiting:
    """A request that is waited for in a thread of its own. The client may leave; then the pieces are let go of."""

    def __init__(self, wait: Callable[[Request], Views], request: Request):
        self._wait, self._request = wait, request
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._pieces: Views = ()
        self._error: RefusedError | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Bring the pieces in. Context: a worker thread."""
        pieces: Views = ()
        error: RefusedError | None = None
        try:
            pieces = self._wait(self._request)
        except RefusedError as refused:
            error = refused
        except BaseException:
            logger.exception("a request of a peer failed")
            error = RefusedError(protocol.FAILED)
        with self._lock:
            self._pieces, self._error = pieces, error
            if self._is_abandoned:
                self._let_go()
        self.ended.set()

    def abandon(self) -> None:
        """Let go of the pieces, now or when they come."""
        with self._lock:
            self._is_abandoned = True
            self._let_go()

    def _let_go(self) -> None:
        for piece in self._pieces:
            if isinstance(piece, memoryview):
                piece.release()
        self._pieces = ()

    def result(self) -> Views:
        """Return the pieces. Raises RefusedError."""
        if self._error is not None:
            raise self._error
        return self._pieces
