"""A local HTTP server of objects in memory for tests: it knows HEAD, Range, ETag and If-Match, counts what it is asked,
and can be slow, fail, forget its manners, or replace an object at a chosen moment. It needs the standard library only.
faulty_http.py has a server over this one that does by name what is to go wrong, and when."""

import contextlib
import dataclasses
import hashlib
import http
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")
PIECE = 64 * 1024  # bytes that are sent at a time


class Request(NamedTuple):
    """One request that came: `range` as (start, end), end exclusive, -1 if it is open; (-n, -1) for the last n bytes; None
    without one."""

    method: str
    path: str
    range: tuple[int, int] | None
    if_match: str | None
    status: int
    nbytes: int


@dataclasses.dataclass
class Answer:
    """What is about to be sent; `ObjectServer.rewrite` may change all but the request.

    method, path, asked: the request and its headers. span: (start, end) that it asks for, as `Request.range`. data: the
    whole object, None if there is none. body: what is sent, not for HEAD. has_length: whether there is a Content-Length (of
    the body, unless `headers` has one); without it a body goes in chunks. cut: "headers" or "body": the connection is
    closed half way through them.
    """

    method: str
    path: str
    asked: Mapping[str, str]
    span: tuple[int, int] | None
    data: bytes | None
    status: int
    headers: dict[str, str]
    body: bytes
    has_length: bool = True
    cut: str | None = None

    @property
    def is_size_request(self) -> bool:
        """Whether it asks for nothing but what there is."""
        return self.method == "HEAD"

    @property
    def is_range_request(self) -> bool:
        """Whether it asks for a part of the object."""
        return self.method == "GET" and self.span is not None

    def head(self) -> bytes:
        """Return the status line and the headers, as they are sent."""
        headers = dict(self.headers)
        if not self.has_length:
            headers |= {"Transfer-Encoding": "chunked"} if self.method == "GET" else {}
        elif not any(name.lower() == "content-length" for name in headers):
            headers["Content-Length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()


class ObjectServer:
    """Objects served on a port of an address, by default of the loopback interface; a context manager.

    delay_s: waited before each answer. sends_etag, sends_last_modified, honours_if_match, honours_range: manners.
    refuses_put: the status with which PUT is answered, if it is refused.
    before_answer: called with (server, method, path) before each answer, which may replace objects; it runs in the thread
    of the request. rewrite: called with each `Answer` before it is sent, in the same thread.
    """

    def __init__(self, *, delay_s: float = 0.0, host: str = "127.0.0.1"):
        self.delay_s = delay_s
        self.sends_etag = self.honours_if_match = self.honours_range = True
        self.sends_last_modified = False
        self.refuses_put = 0
        self.before_answer: Callable[[ObjectServer, str, str], None] | None = None
        self.rewrite: Callable[[Answer], None] | None = None
        self.requests: list[Request] = []
        self._objects: dict[str, tuple[bytes, str, float]] = {}
        self._failures: list[int] = []
        self._fails_on: dict[int, int] = {}
        self._nr_requests = 0
        self._lock = threading.Lock()
        self._is_stopped = True
        self._address = (host, 0)
        self.start()

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

    def clear(self) -> None:
        """Answer 404 to everything from now on."""
        with self._lock:
            self._objects = {}

    def url(self, name: str) -> str:
        """Return the URL of an object."""
        return f"http://{self._address[0]}:{self._address[1]}/{name}"

    def find(self, path: str) -> tuple[bytes, str, float] | None:
        """Return (data, etag, time of the last change), or None. What follows a question mark is no part of the name."""
        with self._lock:
            return self._objects.get(path.partition("?")[0])

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

    def note_sent(self, request: Request, nbytes: int) -> None:
        """Correct how many bytes a request got: the client has left."""
        with self._lock:
            for number, noted in enumerate(self.requests):
                if noted is request:
                    self.requests[number] = request._replace(nbytes=nbytes)

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

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer_again(self, answer: Answer) -> None:
        """Answer with the object there is now, or the range of it that is asked for."""
        found = self.find(answer.path)
        answer.headers, answer.body, answer.data = {}, b"", None
        if found is None:
            answer.status = 404
            return
        data, etag, modified = found
        answer.status, answer.data, headers = 200, data, answer.headers
        if self.sends_etag:
            headers["ETag"] = etag
        if self.sends_last_modified:
            headers["Last-Modified"] = formatdate(modified, usegmt=True)
        headers["Accept-Ranges"] = "bytes" if self.honours_range else "none"
        wanted = answer.asked.get("If-Match")
        if wanted not in (None, "*", etag) and self.honours_if_match:
            answer.status = 412
            return
        span = _span_of(answer.asked, len(data)) if self.honours_range else None
        if span is None:
            answer.body = data
        elif span[0] >= len(data):
            answer.status = 416
            headers["Content-Range"] = f"bytes */{len(data)}"
        else:
            answer.status, answer.body = 206, data[span[0] : span[1]]
            headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"

    def answer_to_put(self, path: str, asked: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        """Store an object, unless conditions say no. Returns the status and the headers of the answer."""
        if self.refuses_put:
            return self.refuses_put, {}
        found = self.find(path)
        wanted, none = asked.get("If-Match"), asked.get("If-None-Match")
        is_refused = (wanted is not None and (found is None or wanted not in ("*", found[1]))) or (none == "*" and found)
        if is_refused and self.honours_if_match:
            return 412, {}
        self.put(path[1:], body)
        stored = self.find(path)
        return 201, {"ETag": stored[1]} if self.sends_etag and stored is not None else {}

    def alter(self, answer: Answer) -> None:
        """Change an answer that is about to be sent."""
        if self.rewrite is not None:
            self.rewrite(answer)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve again after `stop`, at the same address."""
        if not self._is_stopped:
            return
        self._server = _Server(self._address, type("Handler", (_Handler,), {"objects": self}))
        self._server.daemon_threads = True
        self._address = self._server.server_address[:2]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self._is_stopped = False

    def stop(self) -> None:
        """Refuse connections, and cut those that there are. Context: any thread, that of a request included."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
        self._server.shutdown()
        self._server.server_close()
        self._server.close_connections()
        self._thread.join()

    def close(self) -> None:
        """Stop serving."""
        self.stop()

    def __enter__(self) -> "ObjectServer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _span_of(asked: Mapping[str, str], size: int) -> tuple[int, int] | None:
    """Return (start, end) of the range that a request asks for of an object; None if it asks for all of it."""
    match = RANGE.match(asked.get("Range", ""))
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size


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

    def do_PUT(self) -> None:
        """Store the body as the object, if what is there is what the request's conditions say."""
        length, server = self.headers.get("Content-Length"), self.objects
        body = self.rfile.read(int(length)) if length is not None else self._read_chunks()
        if server.before_answer is not None:
            server.before_answer(server, "PUT", self.path)
        status, headers = server.answer_to_put(self.path, self.headers, body)
        self._send(Answer("PUT", self.path, self.headers, None, None, status, headers, b""))

    do_POST = do_PUT

    def _read_chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, method: str) -> None:
        server = self.objects
        failure = server.failure_of_next()
        if server.before_answer is not None:
            server.before_answer(server, method, self.path)
        if server.delay_s:
            time.sleep(server.delay_s)
        found = server.find(self.path)
        status = failure or (404 if found is None else 200)
        match = RANGE.match(self.headers.get("Range", ""))
        span = None
        if match is not None:
            span = (int(match[1]), int(match[2]) + 1 if match[2] else -1) if match[1] else (-int(match[2] or 0), -1)
        answer = Answer(method, self.path, self.headers, span, found and found[0], status, {}, b"")
        if status == 200:
            server.answer_again(answer)
            answer.cut = "body" if failure == 0 else None
        server.alter(answer)
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = b"" if answer.method == "HEAD" else answer.body
        body = body[: len(body) // 2] if answer.cut == "body" else b"" if answer.cut == "headers" else body
        request = Request(answer.method, answer.path, answer.span, answer.asked.get("If-Match"), answer.status, len(body))
        self.objects.note(request)
        head = answer.head()
        sent = 0
        try:
            self.wfile.write(head[: len(head) // 2] if answer.cut == "headers" else head)
            for start in range(0, len(body), PIECE):
                piece = body[start : start + PIECE]
                framed = piece if answer.has_length else b"%x\r\n%b\r\n" % (len(piece), piece)
                self.wfile.write(framed)
                sent += len(piece)
            if not answer.has_length and answer.method == "GET" and answer.cut is None:
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        except OSError:
            self.objects.note_sent(request, sent)
            self.close_connection = True
        if answer.cut is not None:
            self.close_connection = True
