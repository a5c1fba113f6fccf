"""A local HTTP server of objects in memory for tests: it knows HEAD, Range, ETag and If-Match, counts what it is asked,
and can be slow, fail, forget its manners, or replace an object at a chosen moment. It needs the standard library only."""

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


class Request(NamedTuple):
    """One request that came: `range` as (start, end), end exclusive, None without one."""

    method: str
    path: str
    range: tuple[int, int] | None
    if_match: str | None
    status: int
    nbytes: int


class ObjectServer:
    """Objects served on a port of an address, by default of the loopback interface; a context manager.

    delay_s: waited before each answer. sends_etag, sends_last_modified, honours_if_match, honours_range: manners.
    before_answer: called with (server, method, path) before each answer, which may replace objects; it runs in the thread
    of the request.
    """

    def __init__(self, *, delay_s: float = 0.0, host: str = "127.0.0.1"):
        self.delay_s = delay_s
        self.sends_etag = self.honours_if_match = self.honours_range = True
        self.sends_last_modified = False
        self.before_answer: Callable[[ObjectServer, str, str], None] | None = None
        self.requests: list[Request] = []
        self._objects: dict[str, tuple[bytes, str, float]] = {}
        self._failures: list[int] = []
        self._fails_on: dict[int, int] = {}
        self._nr_requests = 0
        self._lock = threading.Lock()
        self._server = _Server((host, 0), type("Handler", (_Handler,), {"objects": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    # -- objects -------------------------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes, *, etag: str | None = None, modified: float = 1_000_000_000.0) -> str:
        """Serve these bytes under a name from now on; returns the URL."""
        data = bytes(data)
        with self._lock:
            self._objects[f"/{name}"] = (data, etag or f'"{hashlib.sha256(data).hexdigest()[:16]}"', modified)
        return self.url(name)

    def remove(self, name: str) -> None:
        """Answer 404 from now on."""
        with self._lock:
            del self._objects[f"/{name}"]

    def url(self, name: str) -> str:
        """Return the URL of an object."""
        return f"http://{self._server.server_address[0]}:{self._server.server_address[1]}/{name}"

    def find(self, path: str) -> tuple[bytes, str, float] | None:
        """Return (data, etag, time of the last change), or None."""
        with self._lock:
            return self._objects.get(path)

    # -- failures and counts -------------------------------------------------------------------------------------------

    def fail_next(self, count: int = 1, status: int = 503) -> None:
        """Answer the next requests with an error; status 0 closes the connection in the middle of the body."""
        with self._lock:
            self._failures += [status] * count

    def fail_request(self, number: int, status: int = 503) -> None:
        """Answer request `number` (from 1, counted since the start or the last `forget`) with an error."""
        with self._lock:
            self._fails_on[number] = status

    def failure_of_next(self) -> int | None:
        """Return the status the request that has just come is to fail with."""
        with self._lock:
            self._nr_requests += 1
            status = self._fails_on.pop(self._nr_requests, None)
            return self._failures.pop(0) if status is None and self._failures else status

    def note(self, request: Request) -> None:
        """Count a request."""
        with self._lock:
            self.requests.append(request)

    def count(self, method: str | None = None) -> int:
        """Return how many requests came (of one method)."""
        with self._lock:
            return sum(method in (None, request.method) for request in self.requests)

    def bytes_sent(self) -> int:
        """Return how many bytes of bodies were sent."""
        with self._lock:
            return sum(request.nbytes for request in self.requests)

    def forget(self) -> None:
        """Count from zero again."""
        with self._lock:
            self.requests = []
            self._nr_requests = 0

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "ObjectServer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    """A server that says nothing about clients that leave."""

    request_queue_size = 128

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note a connection, then serve it."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        self.connections.discard(request)
        super().close_request(request)

    def close_connections(self) -> None:
        """Cut the connections that clients keep for later."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    objects: ObjectServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer("HEAD")

    def do_GET(self) -> None:
        """Answer with the object, or a range of it."""
        self._answer("GET")

    def _answer(self, method: str) -> None:
        server = self.objects
        failure = server.failure_of_next()
        if server.before_answer is not None:
            server.before_answer(server, method, self.path)
        if server.delay_s:
            time.sleep(server.delay_s)
        found = server.find(self.path)
        if failure:
            self._send(method, failure, b"", {})
        elif found is None:
            self._send(method, 404, b"", {})
        else:
            self._send_object(method, *found, torn=failure == 0)

    def _send_object(self, method: str, data: bytes, etag: str, modified: float, torn: bool) -> None:
        server, headers = self.objects, {}
        if server.sends_etag:
            headers["ETag"] = etag
        if server.sends_last_modified:
            headers["Last-Modified"] = formatdate(modified, usegmt=True)
        headers["Accept-Ranges"] = "bytes" if server.honours_range else "none"
        wanted = self.headers.get("If-Match")
        if wanted not in (None, "*", etag) and server.honours_if_match:
            self._send(method, 412, b"", headers)
            return
        span = self._span(len(data)) if server.honours_range else None
        if span is None:
            self._send(method, 200, data, headers, torn=torn)
        elif span[0] >= len(data):
            self._send(method, 416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        else:
            headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
            self._send(method, 206, data[span[0] : span[1]], headers, torn=torn)

    def _span(self, size: int) -> tuple[int, int] | None:
        match = RANGE.match(self.headers.get("Range", ""))
        if match is None or match[0] == "bytes=-":
            return None
        if not match[1]:
            return max(0, size - int(match[2])), size
        return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size

    def _send(self, method: str, status: int, body: bytes, headers: dict[str, str], torn: bool = False) -> None:
        sent = b"" if method == "HEAD" else body[: len(body) // 2] if torn else body
        match = RANGE.match(self.headers.get("Range", ""))
        span = (int(match[1] or 0), int(match[2]) + 1 if match[2] else -1) if match else None
        self.objects.note(Request(method, self.path, span, self.headers.get("If-Match"), status, len(sent)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(sent)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        if torn:
            self.close_connection = True
