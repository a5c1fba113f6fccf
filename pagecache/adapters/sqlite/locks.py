"""Locks on a database: between connections of this process, and, for local files, between processes.

A database is in one of SQLite's five states for each connection:

    NONE       nothing is read
    SHARED     many may read
    RESERVED   one prepares to write, while others read
    PENDING    it waits until the readers are gone; no new one may read
    EXCLUSIVE  it alone reads and writes

Between connections of one process the state is kept here (`ObjectLock`, one for each object whichever cache and VFS it is
opened through).  A local file is locked for other processes as SQLite's own unix VFS does it, on the same bytes, so both
may use one file at a time:

    PENDING_BYTE     held shared for a moment by what becomes SHARED, exclusively while PENDING
    RESERVED_BYTE    held exclusively while RESERVED
    SHARED_FIRST...  510 bytes, held shared while SHARED, exclusively while EXCLUSIVE

The locks are those of an open file description where the system has them (Linux): they survive the closing of other
descriptors of the file, and exclude SQLite's own locks even in the same process.  Elsewhere they are POSIX locks, which
the system drops as soon as this process closes any descriptor of the file.
"""

import errno
import fcntl
import os
import struct
import sys
import weakref

import apsw

from pagecache._core import Mutex

NONE, SHARED, RESERVED, PENDING, EXCLUSIVE = range(5)
PENDING_BYTE = 0x40000000
RESERVED_BYTE = PENDING_BYTE + 1
SHARED_FIRST = PENDING_BYTE + 2
SHARED_SIZE = 510
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.ETIMEDOUT, errno.EINTR)
_OFD = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")
_FLOCK = struct.Struct("@hhqqi4x")


class Range:
    """A range of bytes, and what is to be done with it: F_RDLCK, F_WRLCK or F_UNLCK."""

    __slots__ = ("kind", "length", "packed", "start")

    def __init__(self, kind: int, start: int, length: int):
        self.kind, self.start, self.length = kind, start, length
        self.packed = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


READ_PENDING = Range(fcntl.F_RDLCK, PENDING_BYTE, 1)
WRITE_PENDING = Range(fcntl.F_WRLCK, PENDING_BYTE, 1)
FREE_PENDING = Range(fcntl.F_UNLCK, PENDING_BYTE, 1)
WRITE_RESERVED = Range(fcntl.F_WRLCK, RESERVED_BYTE, 1)
FREE_RESERVED = Range(fcntl.F_UNLCK, RESERVED_BYTE, 1)
FREE_BOTH = Range(fcntl.F_UNLCK, PENDING_BYTE, 2)
READ_SHARED = Range(fcntl.F_RDLCK, SHARED_FIRST, SHARED_SIZE)
WRITE_SHARED = Range(fcntl.F_WRLCK, SHARED_FIRST, SHARED_SIZE)
FREE_ALL = Range(fcntl.F_UNLCK, 0, 0)
_HOW = {fcntl.F_RDLCK: fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.F_WRLCK: fcntl.LOCK_EX | fcntl.LOCK_NB,
        fcntl.F_UNLCK: fcntl.LOCK_UN}  # fmt: skip


class RangeLocks:
    """Locks on byte ranges of a local file, which other processes see.

    path: the file. key: of the store that is open on it. ofd: locks of an open file description. Raises OSError when it
    cannot be opened, or the path leads to another file by now (ESTALE).
    """

    def __init__(self, path: str, key: str | None = None, *, ofd: bool = _OFD):
        self.path = path
        self._ofd = ofd
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        if key not in (None, f"file:{status.st_dev:x}:{status.st_ino:x}"):
            os.close(self._fd)
            raise OSError(errno.ESTALE, "the database was replaced while it was opened", path)

    def set(self, wanted: Range) -> bool:
        """Lock or unlock a range without waiting. Returns False if another holds it. Raises OSError."""
        try:
            if self._ofd:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, wanted.packed)
            else:
                fcntl.lockf(self._fd, _HOW[wanted.kind], wanted.length, wanted.start)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def is_reserved(self) -> bool:
        """Whether another process prepares to write, or writes. Raises OSError."""
        if self._ofd:
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, WRITE_RESERVED.packed)
            return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
        if not self.set(WRITE_RESERVED):
            return True
        self.set(FREE_RESERVED)
        return False

    def close(self) -> None:
        """Give up the locks."""
        os.close(self._fd)


class _NoRangeLocks:
    """In place of RangeLocks for objects that no other process can reach."""

    def set(self, wanted: Range) -> bool:
        return True

    def is_reserved(self) -> bool:
        return False

    def close(self) -> None:
        pass


class ObjectLock:
    """The lock state of one object in this process.

    Context: `mutex` guards everything, also the levels of the holders; it is held for system calls, never for a store.
    """

    def __init__(self, path: str | None, key: str | None = None):
        self.mutex = Mutex()
        self.ranges: RangeLocks | _NoRangeLocks = RangeLocks(path, key) if path is not None else _NoRangeLocks()
        self.level = NONE  # the highest of any holder
        self.nr_shared = 0  # holders that are SHARED or more
        weakref.finalize(self, self.ranges.close).atexit = False  # connections may be closed later than that

    def lock(self, holder: "Holder", level: int) -> bool:
        """Raise a holder to a level. Returns False if others do not let it: then it may be PENDING. Raises OSError.

        Source: unixLock of SQLite's os_unix.c. Context: mutex held.
        """
        if holder.level >= level:
            return True
        if level == SHARED and self.level == NONE:
            return self._lock_first_shared(holder)
        if holder.level != self.level and (self.level >= PENDING or level > SHARED):
            return False
        if level == SHARED and self.level in (SHARED, RESERVED):
            self.nr_shared += 1
            holder.level = SHARED
            return True
        if level == RESERVED:
            done = self.ranges.set(WRITE_RESERVED)
        else:
            done = self._lock_exclusive(holder)
        if done:
            holder.level = self.level = level
        return done

    def _lock_first_shared(self, holder: "Holder") -> bool:
        set_range = self.ranges.set
        if not set_range(READ_PENDING):
            return False
        try:
            done = bool(set_range(READ_SHARED))
        finally:
            set_range(FREE_PENDING)
        if done:
            self.nr_shared = 1
            holder.level = self.level = SHARED
        return done

    def _lock_exclusive(self, holder: "Holder") -> bool:
        """Context: a holder that comes from SHARED, to roll a journal back, does not pass PENDING: two that did would
        wait for each other."""
        if holder.level == RESERVED:
            if not self.ranges.set(WRITE_PENDING):
                return False
            holder.level = self.level = PENDING
        if self.nr_shared > 1:
            return False
        return bool(self.ranges.set(WRITE_SHARED))

    def unlock(self, holder: "Holder", level: int) -> None:
        """Lower a holder to SHARED or NONE. Raises OSError. Context: mutex held."""
        if holder.level <= level:
            return
        if holder.level > SHARED:
            if level == SHARED and not self.ranges.set(READ_SHARED):
                raise OSError(errno.EIO, "the lock on the database cannot be lowered")
            self.ranges.set(FREE_BOTH)
            self.level = SHARED
        if level == NONE:
            self.nr_shared -= 1
            if self.nr_shared == 0:
                self.ranges.set(FREE_ALL)
                self.level = NONE
        holder.level = level

    def is_reserved(self, holder: "Holder") -> bool:
        """Whether any connection is RESERVED or more, in any process. Raises OSError. Context: mutex held."""
        return self.level > SHARED or bool(self.ranges.is_reserved())


class Holder:
    """One connection's part in an ObjectLock."""

    __slots__ = ("__weakref__", "level")

    def __init__(self) -> None:
        self.level = NONE


_locks: weakref.WeakValueDictionary[str, ObjectLock] = weakref.WeakValueDictionary()
_table_lock = Mutex()


def lock_of(key: str, path: str | None) -> ObjectLock:
    """Return this process's lock of an object: one for each key. path: of a local file, else None. Raises OSError."""
    with _table_lock.held():
        lock = _locks.get(key)
        if lock is None:
            lock = _locks[key] = ObjectLock(path, key)
        return lock


def busy() -> Exception:
    """Return the exception that tells SQLite to wait."""
    return apsw.exception_for(apsw.SQLITE_BUSY)


def _after_fork_in_child() -> None:
    global _table_lock
    _table_lock = Mutex()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
