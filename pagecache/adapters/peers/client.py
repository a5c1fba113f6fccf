"""Asking peers: connections that are kept, one attempt for each request, and members that are suspected for a while.

A peer that fails is not asked again within the request: the caller goes to the origin.  It is then suspected: for some
seconds it is not asked; after that one request tries it, while the others wait for what comes of that.
"""

import itertools
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from pagecache._core import Mutex
from pagecache.adapters.peers import protocol, transport
from pagecache.adapters.peers.membership import Member
from pagecache.adapters.peers.protocol import ProtocolError, Request

_numbers = itertools.count(1)
NUMBER_MASK = (1 << 32) - 1


class PeerFailedError(Exception):
    """A peer could not be reached, was silent or slow, or said what makes no sense."""


class PeerRefusedError(Exception):
    """A peer that is well does not serve a request. reason: as in `protocol`."""

    def __init__(self, reason: int):
        super().__init__(protocol.REASONS.get(reason, f"reason {reason}"))
        self.reason = reason


logger = logging.getLogger("pagecache")


class Suspects:
    """Members that failed lately. suspect_s: for how long they are not asked (seconds). what: they are, for the log.
    Safe from any thread."""

    def __init__(self, suspect_s: float, clock: Callable[[], float] = time.monotonic, what: str = "peer"):
        self._suspect_s = suspect_s
        self._what = what
        self._clock = clock
        self._until: dict[str, float] = {}
        self._lock = Mutex()

    def may_ask(self, name: str) -> bool:
        """Whether to ask a member now. Of those that come when its time is over, one may."""
        if name not in self._until:
            return True
        with self._lock.held():
            now = self._clock()
            if now < self._until.get(name, now):
                return False
            self._until[name] = now + self._suspect_s
            return True

    def note_failure(self, name: str) -> None:
        """Suspect a member from now on. It is said in the log when that begins."""
        with self._lock.held():
            is_new = name not in self._until
            self._until[name] = self._clock() + self._suspect_s
        if is_new:
            how = "it is asked again after %g s, and the bytes come from elsewhere meanwhile"
            logger.warning(f"%s %s failed: {how}", self._what, name, self._suspect_s)

    def note_success(self, name: str) -> None:
        """Trust a member again."""
        if name in self._until:
            with self._lock.held():
                was_suspected = self._until.pop(name, None) is not None
            if was_suspected:
                logger.info("%s %s answers again", self._what, name)

    def keep_only(self, names: set[str]) -> None:
        """Forget members that have left."""
        with self._lock.held():
            self._until = {name: until for name, until in self._until.items() if name in names}

    def names(self) -> list[str]:
        """Return the members that are suspected."""
        return sorted(self._until)


class PeerClient:
    """The connections of this process to one member.

    is_near: whether it is on this machine. secret, tls: of the group. timeout_s: silence, on all connections, after which
    the peer has failed;
    patience_s: what a request may take in all (seconds). limit: connections, and so requests, at once. idle_max: those that
    are kept while they are not in use.
    Context: safe from any thread; each request has a connection for itself while it lasts.
    """

    def __init__(
        self,
        member: Member,
        *,
        is_near: bool,
        secret: bytes,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 0.2,
        patience_s: float = 5.0,
        limit: int = 32,
        idle_max: int = 32,
    ):
        self.member = member
        self.is_near = is_near
        self._secret = secret
        self._tls = tls
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._idle: deque[socket.socket] = deque()
        self.idle_max = idle_max
        self._places = threading.Semaphore(limit)
        self._silence = transport.Silence(timeout_s)
        self._closed = False
        self._pid = os.getpid()

    def fetch(self, request: Request, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers with what is asked for, in one attempt.

        Raises PeerFailedError, PeerRefusedError; the buffers then hold anything.
        """
        ends_at = time.monotonic() + self._patience_s
        if not self._places.acquire(timeout=self._timeout_s):
            raise PeerRefusedError(protocol.BUSY)
        try:
            connection = self._take(ends_at)
            try:
                self._ask(connection, request, buffers, ends_at)
            except PeerRefusedError:
                self._give(connection)
                raise
            except BaseException:
                transport.shut(connection)
                raise
            self._give(connection)
        except (OSError, EOFError, ProtocolError) as error:
            self.drop_connections()
            raise PeerFailedError(f"peer {self.member.name}: {error or type(error).__name__}") from None
        finally:
            self._places.release()

    def _ask(self, connection: socket.socket, request: Request, buffers: Sequence[memoryview], ends_at: float) -> None:
        request = request._replace(number=next(_numbers) & NUMBER_MASK)
        transport.send(connection, [protocol.encode_request(request)])
        while True:
            head = transport.receive(connection, protocol.ANSWER.size, ends_at, self._silence)
            answer = protocol.decode_answer(head, request)
            if answer.kind == protocol.DATA:
                transport.receive_into(connection, buffers, ends_at, self._silence)
                return
            if answer.kind == protocol.REFUSED:
                raise PeerRefusedError(answer.reason)
            if time.monotonic() > ends_at:
                raise TimeoutError("the peer waits for the origin for too long")

    def _take(self, ends_at: float) -> socket.socket:
        """Return a connection that is open as far as can be seen. Raises OSError, EOFError, ProtocolError."""
        if self._pid != os.getpid():  # the connections are the parent's
            self._idle, self._pid = deque(), os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if _is_quiet(connection):
                return connection
            transport.shut(connection)
        connection = transport.dial(self.member, self.is_near, self._timeout_s, self._tls)
        try:
            connection.settimeout(self._timeout_s)
            transport.greet_as_client(connection, self._secret, ends_at, self._silence)
        except BaseException:
            transport.shut(connection)
            raise
        return connection

    def _give(self, connection: socket.socket) -> None:
        if len(self._idle) >= self.idle_max:
            transport.shut(connection)
            return
        self._idle.append(connection)
        if self._closed:
            self.drop_connections()

    def drop_connections(self) -> None:
        """Close the connections that are not in use."""
        while True:
            try:
                transport.shut(self._idle.pop())
            except IndexError:
                return

    def close(self) -> None:
        """Close the connections; those in use follow when their requests end."""
        self._closed = True
        self.drop_connections()


def _is_quiet(connection: socket.socket) -> bool:
    """Whether an idle connection is as it should be: neither ended, nor with bytes that were not asked for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)
