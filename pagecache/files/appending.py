"""Appending to a local file that others append to at the same time, where what is written has to be in the file at once.

The kernel finds the end and writes in one step (RWF_APPEND), as it does for O_APPEND: no bytes of others are written over,
without any lock between the programs.  The bytes are not cached then; the cached object only learns of its new end.
Descriptors are not opened with O_APPEND for that, as it would ignore the offsets of pages that are written back.
"""

import contextlib
import errno
import os
from typing import Protocol

from pagecache import truncate
from pagecache.requests.backing import BackedMapping
from pagecache.units import LAST_PAGE, PAGE_SHIFT
from pagecache.writeback.own_writes import ForeignChange, own_write
from pagecache.writeback.passes import filemap_write_and_wait_range

RWF_APPEND = getattr(os, "RWF_APPEND", 0)


class AppendedInode(Protocol):
    """What appending needs to know of an object: an `Inode`."""

    @property
    def mapping(self) -> BackedMapping:
        """Its cached pages."""
        ...

    def before_change_locked(self, at_end: bool) -> None:
        """See that others have not changed the object. Raises ForeignChange."""
        ...

    def take_anew(self) -> None:
        """Go on with the object as it is in the store now."""
        ...


def append_to_file(inode: AppendedInode, data: memoryview) -> int | None:
    """Append all of the data. Returns the offset behind it, or behind what others have appended in the same moment; None:
    it cannot be done here.

    Raises OSError: then a beginning of the data may be there. Context: takes the inode lock, and invalidate_lock exclusive.
    """
    mapping = inode.mapping
    if mapping.fd < 0 or mapping.direct or not RWF_APPEND:
        return None
    with mapping.inode_locked():
        while True:
            error = filemap_write_and_wait_range(mapping, 0, LAST_PAGE)  # what others of this cache have written
            if error is not None:
                raise error
            with mapping.exclusive():
                inode.before_change_locked(True)
                try:
                    truncate.invalidate_inode_pages2_range(mapping, mapping.size >> PAGE_SHIFT, LAST_PAGE)
                    return _append_locked(inode, data)
                except _TryAgain:
                    continue
                except OSError as failed:
                    if failed.errno == errno.EOPNOTSUPP:
                        return None
                    if failed.errno != errno.EBUSY:
                        raise  # else a map has made the last page dirty again


class _TryAgain(Exception):
    """Others have changed the file since it was looked at; nothing was appended."""


def _append_locked(inode: AppendedInode, data: memoryview) -> int:
    """Context: inode lock, invalidate_lock exclusive; nothing behind the last whole page is cached."""
    mapping, size, done = inode.mapping, inode.mapping.size, 0
    end = size + len(data)
    try:
        with own_write(mapping, end):
            while done < len(data):
                done += os.pwritev(mapping.fd, [data[done:]], 0, RWF_APPEND)
    except ForeignChange:
        if done == 0:
            raise _TryAgain from None
        with contextlib.suppress(OSError):  # what a map has made dirty is refused when it is written
            inode.take_anew()
        end = max(end, mapping.size)  # others have appended in the same moment, before ours or behind it
    except BaseException:
        if done:
            with contextlib.suppress(OSError):
                inode.take_anew()
        raise
    else:
        mapping.disk_size = mapping.size = end
    mapping.segment.add_count("store_writes", 1)
    mapping.segment.add_count("store_write_bytes", len(data))
    mapping.backing.note_written(size >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT)
    return end
