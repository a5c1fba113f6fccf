"""What the caches of a running process do and hold, for another process to ask: `pagecache top` does.

A server is a Unix socket in a directory that only its user can enter.  A client sends one line, a JSON object with
the most `files` to describe and the most `cells` of each file's map, and gets one JSON object: the process, and of each
cache its counters and its files, those with most pages first.  Nothing is counted for it that is not counted anyway, and
without a question nothing runs.

Only the user of the process, and root, get an answer.
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from pagecache._core import AddressSpace, Mutex, Segment
from pagecache.stats.numbers import FileStats, Stats
from pagecache.units import PAGE_SIZE
from pagecache.weak_members import WeakMembers

PATIENCE_S = 5.0  # for a client to ask, and to take the answer
LINE_MAX = 4096
FILES_MAX, CELLS_MAX = 1000, 4096
ENVIRONMENT = "PAGECACHE_SERVE_STATS"
logger = logging.getLogger("pagecache")



class WatchedInode(Protocol):
    """What is asked of an object: of an `Inode`."""

    name: str
    nr_open: int

    @property
    def mapping(self) -> AddressSpace:
        """Its cached pages."""
        ...

    def stats(self) -> FileStats:
        """Return what was counted for it."""
        ...


class WatchedCache(Protocol):
    """What is asked of a cache: of a `PageCache`."""

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        ...

    @property
    def segment(self) -> Segment:
        """Where its pages live."""
        ...

    def stats(self) -> Stats:
        """Return its counters."""
        ...

    def inodes(self) -> Sequence[WatchedInode]:
        """Return the objects that are open or cached."""
        ...

    def forget(self, *keys: str, whole: bool = True) -> None:
        """Let objects be opened as new the next time."""
        ...


caches: WeakMembers[WatchedCache] = WeakMembers()  # of this process: those that are open
_environment_lock = Mutex()
_environment_pid = 0  # the process that serves statistics because its environment says so


def directory() -> str:
    """Return the directory of this user's sockets."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "pagecache") if base else os.path.join(tempfile.gettempdir(), f"pagecache-{os.getuid()}")


def _own_directory() -> str:
    """Make the directory of this user's sockets. Raises PermissionError if it is another user's, or open to others."""
    path = directory()
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{path} must be a directory of this user's that no other user can enter")
    return path


# -- the answer --------------------------------------------------------------------------------------------------------


def picture_of_process(caches: Iterable[WatchedCache], nr_files: int, nr_cells: int) -> dict[str, Any]:
    """Return what is to be known of a process, fit for JSON. Context: walks the pages of the files that it describes."""
    pictures = []
    for cache in caches:
        with contextlib.suppress(ValueError, RuntimeError):  # closed meanwhile
            pictures.append(_picture_of_cache(cache, nr_files, nr_cells))
    return {
        "pid": os.getpid(),
        "command": [os.path.basename(word) for word in sys.orig_argv[:1]] + sys.orig_argv[1:],
        "seconds": time.monotonic(),
        "caches": pictures,
    }


def _picture_of_cache(cache: WatchedCache, nr_files: int, nr_cells: int) -> dict[str, Any]:
    stats = cache.stats().as_dict()
    inodes = sorted(cache.inodes(), key=lambda inode: (-inode.mapping.nrpages, -inode.nr_open, inode.name))
    files = [_picture_of_file(inode, nr_cells) for inode in inodes[:nr_files] if inode.mapping.nrpages or inode.nr_open]
    return {**stats, "nr_files": len(inodes), "files": files}


def _picture_of_file(inode: WatchedInode, nr_cells: int) -> dict[str, Any]:
    """Return what is to be known of a file. A cell is [cached, dirty, under write-back] of `cell_pages` pages."""
    mapping = inode.mapping
    nr_pages = -(-mapping.size // PAGE_SIZE)
    cell_pages = max(1, -(-nr_pages // nr_cells)) if nr_cells else 0
    cells = []
    for first in range(0, nr_pages if nr_cells else 0, cell_pages or 1):
        cells.append(mapping.cachestat(first, min(first + cell_pages, nr_pages) - 1)[:3])
    dirty, under_writeback = mapping.cachestat(0, (1 << 52) - 1)[1:3]
    return {
        **inode.stats().as_dict(),
        "nr_dirty": dirty,
        "nr_writeback": under_writeback,
        "cell_pages": cell_pages,
        "cells": cells,
    }


# -- the server --------------------------------------------------------------------------------------------------------


class StatsServer:
    """Answers on a socket until it is closed.

    path: of the socket; one of this process's own in `directory()` if None. answer: returns what JSON can hold for a
    number of files and of cells. Raises OSError, PermissionError.
    """

    def __init__(self, path: str | None, answer: Callable[[int, int], Any]):
        self._answer = answer
        self._pid = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path = self._bind(path)
            self._socket.listen(8)
        except BaseException:
            self._socket.close()
            raise
        _servers.add(self)
        self._thread = threading.Thread(target=self._serve, name="pagecache-stats", daemon=True)
        self._thread.start()

    def _bind(self, path: str | None) -> str:
        if path is not None:
            mask = os.umask(0o177)
            try:
                self._socket.bind(path)
            finally:
                os.umask(mask)
            return path
        base = os.path.join(_own_directory(), str(os.getpid()))
        number = 0
        while True:
            own = f"{base}.sock" if not number else f"{base}-{number}.sock"
            try:
                self._socket.bind(own)
                return own
            except OSError:
                if not os.path.exists(own) or number > 100:
                    raise
                if _is_deserted(own):
                    os.unlink(own)  # of an earlier process with this number
                else:
                    number += 1

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, ValueError, TypeError):
                connection.settimeout(PATIENCE_S)
                self._reply(connection)

    def _reply(self, connection: socket.socket) -> None:
        if not _may_ask(connection):
            return
        line = b""
        while not line.endswith(b"\n"):
            piece = connection.recv(LINE_MAX - len(line))
            if not piece or len(line) + len(piece) >= LINE_MAX:
                return
            line += piece
        request = json.loads(line)
        if not isinstance(request, dict):
            return
        nr_files, nr_cells = (min(max(int(request.get(name, 0)), 0), most) for name, most in
                              (("files", FILES_MAX), ("cells", CELLS_MAX)))  # fmt: skip
        connection.sendall(json.dumps(self._answer(nr_files, nr_cells)).encode() + b"\n")

    def close(self) -> None:
        """Answer no more. Idempotent."""
        if self not in _servers:
            return
        _servers.discard(self)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends the wait for clients
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def __enter__(self) -> "StatsServer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def serve_stats(path: str | None = None) -> StatsServer:
    """Let `pagecache top` look at all caches of this process, until the server that is returned is closed.

    path: of the Unix socket to make; one that `pagecache top` finds by itself if not given. With PAGECACHE_SERVE_STATS in
    the environment (a path, or 1 for one that is found) this is done when the first cache is made. Raises OSError.
    Context: a thread waits for questions; nothing else runs.
    """
    return StatsServer(path, lambda nr_files, nr_cells: picture_of_process(list(caches), nr_files, nr_cells))


def serve_stats_once() -> None:
    """Serve as the environment says, if this process does not yet; that it cannot be is no reason to fail."""
    global _environment_pid
    with _environment_lock.held():
        if _environment_pid == os.getpid():
            return
        _environment_pid = os.getpid()
    wanted = os.environ[ENVIRONMENT]
    try:
        serve_stats(wanted if os.path.dirname(wanted) else None)
    except OSError as error:
        logger.warning("the statistics that %s asks for cannot be served: %s", ENVIRONMENT, error)


def _may_ask(connection: socket.socket) -> bool:
    """Whether the other end is this process's user, or root; where that is not known the socket's permissions decide."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] in (0, os.geteuid())


# -- the client --------------------------------------------------------------------------------------------------------


def ask(path: str, *, nr_files: int = 10, nr_cells: int = 64) -> dict[str, Any]:
    """Ask the server of a socket. Raises OSError: it is not there, or does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(path)
        connection.sendall(json.dumps({"files": nr_files, "cells": nr_cells}).encode() + b"\n")
        pieces = []
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    if not pieces:
        raise PermissionError(f"{path} does not answer: it belongs to another user, or its process is ending")
    picture: dict[str, Any] = json.loads(b"".join(pieces))
    return picture


def _is_deserted(path: str) -> bool:
    """Whether no process listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def running() -> list[str]:
    """Return the sockets of this user's processes that answer."""
    try:
        names = sorted(os.listdir(directory()))
    except FileNotFoundError:
        return []
    paths = [os.path.join(directory(), name) for name in names if name.endswith(".sock")]
    return [path for path in paths if not _is_deserted(path)]


_servers: set[StatsServer] = set()


def _close_at_exit() -> None:
    """Take the sockets of this process away."""
    for server in list(_servers):
        server.close()


def _after_fork_in_child() -> None:
    """A child answers nothing: its parent still does."""
    global _environment_lock
    _environment_lock = Mutex()
    for server in list(_servers):
        server._socket.close()
    _servers.clear()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
