"""One mount: requests of the kernel, read from /dev/fuse by a few threads, and their answers.

A thread waits for requests in the engine, without the GIL, which answers what it can (`handles`).  What it cannot comes
back in the thread's buffer; the file system does what it asks for, and the answer is written from the same buffer: bytes
that are read go from the cache into it and from there to the kernel, bytes that are written from it into the cache.  Each
thread has a descriptor of its own of the mount, so that they wait for no lock of the kernel's.  A few threads wait from the
beginning; more are made as they are needed: taking the last thread that waits makes another one.

The session ends when the mount is gone: the kernel then says ENODEV to all readers.  To end it from here, the mount is
taken away and its connection cut (`mounting.Mountpoint`).

Context: requests come from several threads at once; the kernel keeps changes of one directory apart, and nothing else.
"""

import contextlib
import errno
import logging
import mmap
import os
import threading
from typing import Any

from pagecache.adapters.fuse import protocol
from pagecache.adapters.fuse.answers import Answers, Request
from pagecache.adapters.fuse.handles import Handles
from pagecache.adapters.fuse.protocol import Init, Opcode

THREADS_MAX = 16
THREADS_FIRST_MAX = 4  # that wait from the beginning, one for each processor
BACKGROUND_MAX = 64  # requests that no program waits for at once
LOOK_AGAIN_S = 0.05  # at threads that serve the last requests
EARLIEST_MINOR = 28  # of the kernel's interface: Linux 4.20
ENDED = (errno.ENODEV, errno.ECONNABORTED)
FLAGS = (
    Init.ASYNC_READ | Init.ATOMIC_O_TRUNC | Init.BIG_WRITES | Init.DONT_MASK | Init.AUTO_INVAL_DATA | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS | Init.POSIX_ACL | Init.MAX_PAGES | Init.HANDLE_KILLPRIV_V2 | Init.INIT_EXT
    | Init.DIRECT_IO_ALLOW_MMAP
)  # fmt: skip
logger = logging.getLogger("pagecache.fuse")


class Session:
    """The requests of one mount.

    operations: what is served. fd: of /dev/fuse, mounted; it belongs to the session.
    """

    def __init__(self, operations: Any, fd: int):
        self.fd = fd
        self.allowed = Init(0)  # what kernel and file system agreed on
        self._answers = Answers(operations)
        self._handles: Handles = operations.files.handles
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._busy: list[bool] = []  # of each thread, whether it serves a request: set by that thread alone
        self._nr_threads = 0
        self._has_ended = self._is_left = False
        self._bell, self._bell_rope = os.pipe()
        operations.invalidate = self.invalidate

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Agree with the kernel, and begin to serve; a mount that is gone already is served to its end. Raises OSError: the
        kernel is too old."""
        buffer = memoryview(bytearray(protocol.REQUEST_BYTES))
        try:
            nbytes = os.readv(self.fd, [buffer])
        except OSError as error:
            if error.errno not in ENDED:
                raise
            self.wake()
            return
        request = Request(self.fd, buffer, nbytes)
        if request.opcode != Opcode.INIT:
            raise OSError(errno.EPROTO, "the kernel does not begin as it should")
        body = bytes(request.body).ljust(protocol.INIT_IN.size, b"\0")  # older kernels send less
        major, minor, read_ahead, flags, more_flags = protocol.INIT_IN.unpack_from(body)
        if major != protocol.KERNEL_VERSION or minor < EARLIEST_MINOR:
            self._answer(request, -errno.EPROTO)
            raise OSError(errno.EPROTO, f"mounting needs Linux 4.20 or later; this kernel's interface is {major}.{minor}")
        self.allowed = Init(flags | more_flags << 32 if flags & Init.INIT_EXT else flags) & FLAGS
        self._answer(request, 0, protocol.INIT_OUT.pack(
            major, protocol.KERNEL_MINOR_VERSION, read_ahead, self.allowed & 0xFFFFFFFF, BACKGROUND_MAX, BACKGROUND_MAX * 3
            // 4, protocol.MAX_WRITE, 1, protocol.MAX_PAGES, 0, self.allowed >> 32,
        ))  # fmt: skip
        with self._lock:
            for _ in range(min(os.cpu_count() or 1, THREADS_FIRST_MAX)):
                self._start_thread()

    def _start_thread(self) -> None:
        """Context: self._lock held."""
        self._nr_threads += 1
        self._busy.append(False)
        threading.Thread(target=self._run, args=(len(self._busy) - 1,), name="pagecache-fuse", daemon=True).start()

    def wait(self) -> None:
        """Wait until the mount is gone, or `wake` is called. Context: signals are heard meanwhile."""
        os.read(self._bell, 1)

    def wake(self, *_: object) -> None:
        """Let `wait` return. Context: anywhere, in a signal handler too."""
        os.write(self._bell_rope, b"!")

    def end(self) -> None:
        """Take no more requests, and wait until those that are served are answered.

        Context: the mount is gone, or has no name any more; then threads may wait for the kernel as long as programs have
        something of it open, and learn that it has gone.
        """
        self._has_ended = True
        self._handles.end()
        with self._idle:
            while any(self._busy):
                self._idle.wait(LOOK_AGAIN_S)
            self._is_left = True
            if not self._nr_threads:
                self._close()

    def _close(self) -> None:
        """Context: self._lock held."""
        for fd in (self.fd, self._bell, self._bell_rope):
            os.close(fd)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _run(self, place: int) -> None:
        buffer = memoryview(mmap.mmap(-1, protocol.REQUEST_BYTES))  # begins with a page
        busy, fd = self._busy, self._own_descriptor()
        try:
            while nbytes := self._read(fd, buffer):
                busy[place] = True
                if self._has_ended:
                    self._answer(Request(fd, buffer, nbytes), -errno.ENOTCONN)
                    break
                if all(busy):
                    self._add_thread()
                self._serve(Request(fd, buffer, nbytes))
                busy[place] = False
        finally:
            busy[place] = False
            if fd != self.fd:
                os.close(fd)
            with self._idle:
                self._nr_threads -= 1
                if not self._has_ended:
                    self._has_ended = True
                    self.wake()
                if self._is_left and not self._nr_threads:
                    self._close()
                self._idle.notify_all()

    def _own_descriptor(self) -> int:
        """Return a descriptor of the mount for one thread: a new one, or the mount's, where there can be no other."""
        try:
            return self._handles.clone(self.fd)
        except OSError:
            return self.fd

    def _add_thread(self) -> None:
        """Let another thread wait for requests, if none does."""
        with self._lock:
            if all(self._busy) and len(self._busy) < THREADS_MAX and not self._has_ended:
                self._start_thread()

    def _read(self, fd: int, buffer: memoryview) -> int:
        """Wait for a request that is to be served here; returns its bytes, 0 if there will be none any more."""
        try:
            return self._handles.next_request(fd, buffer)
        except OSError as error:
            if error.errno not in ENDED:
                logger.critical("requests cannot be read any more: %s", error)
        return 0

    def _serve(self, request: Request) -> None:
        number = 0
        try:
            answer = self._answers.of(request)
        except OSError as error:
            if not error.errno:
                logger.error("%s failed", _name_of(request.opcode), exc_info=True)
            number = error.errno or errno.EIO
        except MemoryError:
            number = errno.ENOMEM
        except BaseException:
            logger.critical("%s failed", _name_of(request.opcode), exc_info=True)
            number = errno.EIO
        if number:
            self._answer(request, -number)
        elif isinstance(answer, memoryview):
            self._answer_in_place(request, len(answer))
        elif answer is not None:
            self._answer(request, 0, answer)

    def _answer(self, request: Request, error: int, body: bytes = b"") -> None:
        header = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), error, request.unique)
        with contextlib.suppress(OSError):  # the caller was killed, or the mount is gone
            os.write(request.fd, header + body)

    def _answer_in_place(self, request: Request, nbytes: int) -> None:
        """Answer with what is in the request's buffer, behind room for the header."""
        nbytes += protocol.OUT_HEADER.size
        protocol.OUT_HEADER.pack_into(request.buffer, 0, nbytes, 0, request.unique)
        with contextlib.suppress(OSError):
            os.write(request.fd, request.buffer[:nbytes])

    def invalidate(self, number: int) -> None:
        """Have the kernel forget the attributes, and the ACL, that it has of a node; its pages stay."""
        if self._has_ended:
            return
        body = protocol.INVAL_INODE_OUT.pack(number, -1, 0)
        header = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), protocol.NOTIFY_INVAL_INODE, 0)
        with contextlib.suppress(OSError):  # it does not know the node
            os.write(self.fd, header + body)


def _name_of(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"request {opcode}"
