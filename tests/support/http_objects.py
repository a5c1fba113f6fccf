"""Objects over HTTP, both ends: a server that counts what it is asked for, and a store that reads ranges from it.

The server knows GET and HEAD, one range a request, ETag and If-Match, and answers each request after a fixed latency,
many at once. The store keeps its connections, asks for every range with If-Match, and makes one HEAD at most.
"""

import errno
import hashlib
import http.client
import re
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


class Counts:
    """What a server was asked for since the last `take`: requests, and the bytes of their answers' bodies."""

    def __init__(self):
        self._lock = threading.Lock()
        self.log = []

    def add(self, method, path, first, nbytes):
        with self._lock:
            self.log.append((method, path, first, nbytes))

    @property
    def nr_requests(self):
        return len(self.log)

    @property
    def nbytes(self):
        return sum(nbytes for _, _, _, nbytes in self.log)

    def of(self, path):
        """Return the requests for one object."""
        return [entry for entry in self.log if entry[1] == path.strip("/")]

    def take(self):
        """Return (requests, bytes) and begin again."""
        with self._lock:
            log, self.log = self.log, []
        return len(log), sum(nbytes for _, _, _, nbytes in log)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection. The server knows the objects and counts."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        time.sleep(self.server.latency_s)
        path = urlsplit(self.path).path.strip("/")
        found = self.server.objects.get(path)
        if found is None:
            self.end(404, path)
            return
        data, etag = found
        wanted = self.headers.get("If-Match")
        if wanted not in (None, "*", etag):
            self.end(412, path)
            return
        first, last, status = 0, len(data) - 1, 200
        match = RANGE.match(self.headers.get("Range", ""))
        if match and data:
            start, end = match.groups()
            first = int(start) if start else max(0, len(data) - int(end))
            last = min(int(end), last) if start and end else last
            status = 206
        if first > last >= 0:
            self.end(416, path, {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send(status, path, data, etag, first, last, with_body)

    def end(self, status, path, headers=()):
        """Answer without a body."""
        self.server.counts.add(self.command, path, 0, 0)
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, status, path, data, etag, first, last, with_body):
        nbytes = last - first + 1
        self.server.counts.add(self.command, path, first, nbytes if with_body else 0)
        self.send_response(status)
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(nbytes))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if with_body and nbytes:
            self.wfile.write(memoryview(data)[first : last + 1])


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that goes away is no error."""


class ObjectServer:
    """Objects under http://127.0.0.1:PORT/. latency_s: before each answer. A context manager."""

    def __init__(self, latency_s=0.0):
        self.counts = Counts()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.objects = {}
        self._server.counts = self.counts
        self._server.latency_s = latency_s
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.port = self._server.server_address[1]

    @property
    def latency_s(self):
        return self._server.latency_s

    @latency_s.setter
    def latency_s(self, value):
        self._server.latency_s = value

    @property
    def base(self):
        return f"http://127.0.0.1:{self.port}"

    def url(self, path):
        return f"{self.base}/{quote(path.strip('/'))}"

    def put(self, path, data):
        """Put an object in place, or another version of it. Returns its URL."""
        data = bytes(data)
        self._server.objects[path.strip("/")] = (data, f'"{hashlib.sha1(data).hexdigest()[:16]}"')
        return self.url(path)

    def put_tree(self, root, prefix=""):
        """Put every file below a directory in place."""
        for file in sorted(Path(root).rglob("*")):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(root)}", file.read_bytes())

    def get(self, path):
        return self._server.objects[path.strip("/")][0]

    def delete(self, path):
        self._server.objects.pop(path.strip("/"), None)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class HttpStore:
    """One object of a server as a backing store. Size and ETag are asked for once, before the first byte."""

    preferred_request = 4 * 1024 * 1024
    max_request = 16 * 1024 * 1024
    parallel_requests = 8
    latency = "remote"

    def __init__(self, url):
        self.key = self.name = url
        parts = urlsplit(url)
        self._address, self._path = (parts.hostname, parts.port), parts.path
        self.origin = parts.netloc
        self._lock = threading.Lock()
        self._idle = []
        self._size = self._etag = None

    def size(self):
        """Return the size (bytes)."""
        self._stat()
        return self._size

    def validator(self):
        """Return the ETag of the version that this store reads."""
        self._stat()
        return self._etag

    def _stat(self):
        with self._lock:
            if self._size is not None:
                return
            connection = self._connection()
            connection.request("HEAD", self._path)
            answer = connection.getresponse()
            answer.read()
            self._idle.append(connection)
            if answer.status == 404:
                raise FileNotFoundError(errno.ENOENT, "no such object", self.name)
            if answer.status != 200:
                raise OSError(errno.EIO, f"HEAD answered {answer.status}", self.name)
            self._etag = answer.headers["ETag"]
            self._size = int(answer.headers["Content-Length"])

    def _connection(self):
        """Return an idle connection, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return http.client.HTTPConnection(*self._address, timeout=60)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers with one request. Raises OSError: ESTALE when the object is not the version asked for."""
        nbytes = sum(map(len, buffers))
        headers = {"Range": f"bytes={offset}-{offset + nbytes - 1}"}
        if self._etag is not None:
            headers["If-Match"] = self._etag
        connection = self._connection()
        try:
            connection.request("GET", self._path, headers=headers)
            answer = connection.getresponse()
            done = self._fill(answer, buffers)
            answer.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return done

    def _fill(self, answer, buffers):
        if answer.status == 412:
            raise OSError(errno.ESTALE, "the object changed: reopen it", self.name)
        if answer.status == 416:
            return 0
        if answer.status != 206:
            raise OSError(errno.EIO, f"GET answered {answer.status}", self.name)
        done = 0
        for buffer in buffers:
            at = 0
            while at < len(buffer):
                with buffer[at:] as rest:
                    got = answer.readinto(rest)
                if not got:
                    return done + at
                at += got
            done += at
        return done

    def close(self):
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
