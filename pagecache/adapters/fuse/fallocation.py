"""fallocate(2) on a cached file: what it does to the source's blocks and what to the pages, in one."""

import ctypes
import errno
import os

from pagecache import writeback
from pagecache.files.file import File

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(file: File, mode: int, offset: int, length: int) -> None:
    """Reserve blocks of a range, make a hole of it, or zero it.

    Raises OSError: EOPNOTSUPP for modes that move bytes, and where the source cannot.
    """
    if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) or (mode & PUNCH_HOLE and not mode & KEEP_SIZE):
        raise OSError(errno.EOPNOTSUPP, f"fallocate with mode {mode:#x} is not supported", file.name)
    if mode & PUNCH_HOLE:
        file.punch_hole(offset, length)
        return
    if mode & ZERO_RANGE:
        file.punch_hole(offset, length)
    _reserve(file, offset, length)
    if not mode & KEEP_SIZE:
        file.inode.extend(offset + length)


def _reserve(file: File, offset: int, length: int) -> None:
    """Have the source reserve blocks; its size and bytes stay."""
    mapping = file.inode.mapping
    with mapping.inode_locked(), mapping.exclusive():
        file.inode.own_change(lambda: _reserve_locked(file, offset, length))


def _reserve_locked(file: File, offset: int, length: int) -> None:
    with writeback.own_write(file.inode.mapping):
        fd = getattr(file.inode.store, "fd", -1)
        call = getattr(_libc, "fallocate64", None) or _libc.fallocate
        call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if call(fd, KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), file.name)
