"""One mount: libfuse's callbacks, as Python methods of a file system.

`Session` is mfusepy's FUSE with what that leaves out of libfuse 3, or costs, put right:

* reads go from the cache into libfuse's buffer and writes come from it, without bytes objects in between (`read_buf` could
  not do better: libfuse frees the memory that it is given, so that cannot be a cached page);
* the file handle that comes with truncate, chmod, chown and utimens is used, the flags of rename are too, and so are
  UTIME_OMIT and UTIME_NOW; `lseek` finds data and holes;
* a thread of libfuse keeps its Python thread state, which would be made and destroyed for each callback;
* an exception without an errno is EIO, not EINVAL.

Context: callbacks come from libfuse's threads, several at once.
"""

import contextlib
import ctypes
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from pagecache.adapters.fuse import library

mfusepy: Any = library.load()
logger = logging.getLogger("pagecache.fuse")

HANDLE_KILLPRIV = 1 << 20  # FUSE_CAP_HANDLE_KILLPRIV: the kernel would leave clearing set-user-id bits to us
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NS = 10**9
THREADS_MAX = 16
ANSWERED_HERE = ("getattr", "read", "write", "lseek")  # without asking the file system, which libfuse must find them in
_thread = threading.local()


def _path(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


class Session(mfusepy.FUSE):
    """Mounts a file system and serves it until it is unmounted.

    operations: what is served; its `files` are the open ones. options: of libfuse.
    """

    def __init__(self, operations: Any, mountpoint: str, **options: Any):
        self.files = operations.files
        self.files.writer = lambda: caller()[0]
        for name in ANSWERED_HERE:
            setattr(operations, name, True)
        if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
            options.setdefault("max_threads", THREADS_MAX)
        options.setdefault("max_idle_threads", THREADS_MAX)
        super().__init__(operations, mountpoint, raw_fi=True, foreground=True, nothreads=False, **options)

    def _wrapper(self, func: Callable[..., Any], *args: Any) -> int:
        if not getattr(_thread, "is_kept", False):
            ctypes.pythonapi.PyGILState_Ensure()
            _thread.is_kept = True
        try:
            return func(*args) or 0
        except OSError as error:
            if not error.errno:
                logger.error("%s failed", func.__name__, exc_info=True)
            return -(error.errno or errno.EIO)
        except MemoryError:
            return -errno.ENOMEM
        except BaseException:
            logger.critical("%s failed", func.__name__, exc_info=True)
            return -errno.EIO

    def _fh(self, fip: Any) -> int | None:
        return fip.contents.fh if fip else None

    def _init(self, conn: Any, config: Any) -> None:
        conn.contents.want &= ~HANDLE_KILLPRIV
        config.contents.nullpath_ok = True
        config.contents.use_ino = True
        self._fuse = ctypes.c_void_p(mfusepy._libfuse.fuse_get_context().contents.fuse)
        self.operations.linked.invalidate = self._invalidate
        try:
            self.operations.configure(conn.contents, config.contents)
        except BaseException:
            logger.critical("the mount cannot start", exc_info=True)
            mfusepy.fuse_exit()

    def _invalidate(self, path: str) -> None:
        """Have the kernel forget the attributes, and the pages, that it has of a path."""
        mfusepy._libfuse.fuse_invalidate_path(self._fuse, os.fsencode(path))

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        target = (ctypes.c_char * size).from_address(ctypes.addressof(buf.contents))
        return self.files.read(fip.contents.fh, target, offset)

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        info = fip.contents
        data = (ctypes.c_char * size).from_address(ctypes.addressof(buf.contents))
        self.files.write(info.fh, data, offset, bool(info.writepage))
        return size

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        return self.files.lseek(fip.contents.fh, offset, whence)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def fgetattr(self, path: bytes | None, buf: Any, fip: Any) -> int:
        found = self.operations.attributes(_path(path), self._fh(fip))
        st = buf.contents
        for name, value in found.items():
            setattr(st, name, value)
        for name in ("st_atime", "st_mtime", "st_ctime"):
            spec = getattr(st, name + "spec")
            spec.tv_sec, spec.tv_nsec = divmod(found[name + "_ns"], NS)
        return 0

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        return self.operations.truncate(_path(path), length, self._fh(fip))

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        return self.operations.chmod(_path(path), mode, self._fh(fip))

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        unset = (1 << 32) - 1
        uid, gid = -1 if uid == unset else uid, -1 if gid == unset else gid
        return self.operations.chown(_path(path), uid, gid, self._fh(fip))

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        now = time.time_ns()
        times: list[int | None] = [now, now]
        if buf:
            for number, spec in enumerate((buf.contents.actime, buf.contents.modtime)):
                if spec.tv_nsec == UTIME_OMIT:
                    times[number] = None
                elif spec.tv_nsec != UTIME_NOW:
                    times[number] = spec.tv_sec * NS + spec.tv_nsec
        return self.operations.utimens(_path(path), tuple(times), self._fh(fip))

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        return self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)


def caller() -> tuple[int, int]:
    """Return user and group of the program whose request this thread serves."""
    uid, gid, _ = mfusepy.fuse_get_context()
    return uid, gid


def unmount(mountpoint: str) -> None:
    """Take a mount away although it is in use, or its process is gone. Raises nothing."""
    import subprocess

    with contextlib.suppress(OSError):
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], capture_output=True, check=False)
