"""Connections between peers: TCP, TLS, or Unix sockets on one machine, and proof on both sides of a shared secret.

Data goes from the owner's cached folios to the socket, and from the socket into the reader's folios, with no copy between
(TLS copies).  Both sides prove that they know the secret by HMAC-SHA256 over fresh random numbers of both before anything
else is said; the secret itself is never sent.  What follows is neither encrypted nor signed without TLS.
"""

import hashlib
import hmac
import os
import secrets
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pagecache.adapters.peers.membership import Member, split_address
from pagecache.adapters.peers.protocol import ProtocolError

HELLO = b"PgH1"
NONCE_BYTES = 32
PROOF_BYTES = 32
BUFFERS_MAX = 512  # of one call of sendmsg or recvmsg_into
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def socket_directory() -> Path | None:
    """Return the directory of this user's Unix sockets, which no other user can enter; None if there is none such."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    path = Path(base) / f"pagecache-peers-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if is_own else None


def socket_path(member: Member) -> Path | None:
    """Return where the page server of a member of this machine has its Unix socket."""
    directory = socket_directory()
    name = hashlib.sha256(f"{member.host} {member.address}".encode()).hexdigest()[:24]
    return None if directory is None else directory / f"{name}.sock"


def listen_tcp(address: str) -> socket.socket:
    """Return a listening socket. Raises OSError."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


def listen_unix(path: Path) -> socket.socket | None:
    """Return a listening Unix socket in place of one that an ended process left there; None where there are none."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(512)
    except OSError:
        listener.close()
        return None
    return listener


def dial(member: Member, is_near: bool, timeout_s: float, tls: ssl.SSLContext | None) -> socket.socket:
    """Connect to the page server of a member: through its Unix socket if it is near and has one. Raises OSError."""
    if is_near:
        path = socket_path(member)
        if path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
    connection = socket.create_connection(split_address(member.address), timeout_s)
    try:
        tune(connection)
        return connection if tls is None else tls.wrap_socket(connection, server_hostname=split_address(member.address)[0])
    except BaseException:
        connection.close()
        raise


def tune(connection: socket.socket) -> None:
    """Send small frames at once."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def shut(connection: socket.socket) -> None:
    """End a connection, also for threads that wait in it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


# -- bytes -------------------------------------------------------------------------------------------------------------


class Silence:
    """For how long nothing has come from a peer on any connection. limit_s: how long that may be (seconds)."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._heard_at = -limit_s

    def end(self) -> None:
        """Note that something has come."""
        self._heard_at = time.monotonic()

    @property
    def is_too_long(self) -> bool:
        """Whether the peer has to be taken for gone."""
        return time.monotonic() - self._heard_at >= self._limit_s


def receive(
    connection: socket.socket, nbytes: int, ends_at: float | None = None, silence: Silence | None = None
) -> bytearray:
    """Return exactly nbytes. Arguments and exceptions are those of receive_into."""
    data = bytearray(nbytes)
    with memoryview(data) as view:
        receive_into(connection, [view], ends_at, silence)
    return data


def receive_into(
    connection: socket.socket,
    buffers: Sequence[memoryview],
    ends_at: float | None = None,
    silence: Silence | None = None,
) -> None:
    """Fill the buffers.

    ends_at: when they must be full (monotonic seconds). silence: of the peer: as long as it is heard elsewhere, the timeout
    of this connection may pass. Raises OSError, TimeoutError, EOFError at the end of the connection.
    """
    number, at = 0, 0
    while number < len(buffers):
        if at == len(buffers[number]):
            number, at = number + 1, 0
            continue
        if ends_at is not None and time.monotonic() > ends_at:
            raise TimeoutError("the peer sends too slowly")
        try:
            got = _receive_some(connection, buffers, number, at)
        except TimeoutError:
            if silence is None or silence.is_too_long:
                raise
            continue
        if got == 0:
            raise EOFError("the connection ended")
        if silence is not None:
            silence.end()
        while got:
            step = min(got, len(buffers[number]) - at)
            got, at = got - step, at + step
            if got:
                number, at = number + 1, 0


def _receive_some(connection: socket.socket, buffers: Sequence[memoryview], number: int, at: int) -> int:
    with buffers[number][at:] as first:
        if isinstance(connection, ssl.SSLSocket) or number == len(buffers) - 1:
            return connection.recv_into(first)
        return connection.recvmsg_into([first, *buffers[number + 1 : number + BUFFERS_MAX]])[0]


def send(connection: socket.socket, pieces: Sequence[bytes | memoryview]) -> None:
    """Send all pieces in order. Raises OSError, TimeoutError if the other side takes nothing for the timeout."""
    if isinstance(connection, ssl.SSLSocket):
        for piece in pieces:
            connection.sendall(piece)
        return
    number, at = 0, 0
    while number < len(pieces):
        with memoryview(pieces[number])[at:] as first:
            sent = connection.sendmsg([first, *pieces[number + 1 : number + BUFFERS_MAX]])
        while number < len(pieces) and sent >= len(pieces[number]) - at:
            sent -= len(pieces[number]) - at
            number, at = number + 1, 0
        at += sent


# -- the handshake -----------------------------------------------------------------------------------------------------


def _proof(secret: bytes, side: bytes, *nonces: bytes) -> bytes:
    return hmac.new(secret, b"pagecache peers " + side + b"".join(nonces), hashlib.sha256).digest()


def greet_as_server(connection: socket.socket, secret: bytes) -> None:
    """Let a client prove that it knows the secret, then prove it. Raises ProtocolError, OSError, EOFError."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    send(connection, [HELLO + nonce])
    said = receive(connection, len(HELLO) + NONCE_BYTES + PROOF_BYTES)
    theirs, proof = bytes(said[len(HELLO) : len(HELLO) + NONCE_BYTES]), bytes(said[-PROOF_BYTES:])
    if said[: len(HELLO)] != HELLO or not hmac.compare_digest(proof, _proof(secret, b"client", nonce, theirs)):
        raise ProtocolError("the client does not know the secret of the group")
    send(connection, [_proof(secret, b"server", theirs, nonce)])


def greet_as_client(
    connection: socket.socket, secret: bytes, ends_at: float | None = None, silence: Silence | None = None
) -> None:
    """Prove that this side knows the secret, and have the server prove it. Raises ProtocolError, OSError, EOFError."""
    said = receive(connection, len(HELLO) + NONCE_BYTES, ends_at, silence)
    if said[: len(HELLO)] != HELLO:
        raise ProtocolError("not a page server")
    theirs, nonce = bytes(said[len(HELLO) :]), secrets.token_bytes(NONCE_BYTES)
    send(connection, [HELLO + nonce + _proof(secret, b"client", theirs, nonce)])
    proof = bytes(receive(connection, PROOF_BYTES, ends_at, silence))
    if not hmac.compare_digest(proof, _proof(secret, b"server", nonce, theirs)):
        raise ProtocolError("the server does not know the secret of the group")
