"""The side of an open file that changes the object: what is not hot of its writes, truncation, durability."""

import io
import operator
from collections.abc import Iterable

from pagecache import writeback
from pagecache._core import CopySource, FileLines
from pagecache.buffers import Buffer
from pagecache.filemap import write
from pagecache.files.appending import append_to_file
from pagecache.files.inode import Inode
from pagecache.requests.backing import BackedMapping
from pagecache.units import PAGE_SHIFT


class FileWrites(FileLines):
    """What `File` adds for writing; the hot part is in the extension type."""

    inode: Inode
    mapping: BackedMapping
    drop_behind: bool
    durability: str

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _check_usable(self) -> None:
        """Check that the file is open, and that this process is the one that opened it."""
        self._check_open()
        if self.mapping.segment.dead:
            raise RuntimeError("this cache belongs to the parent process: open a new one after fork()")

    def _check_writable(self) -> None:
        self._check_usable()
        if not self.may_write:
            raise io.UnsupportedOperation("not writable")

    # -- the slow side of writes ---------------------------------------------------------------------------------------

    def _write_slow(self, source: CopySource, done: int, pos: int) -> None:
        write.generic_perform_write(self, source, done, pos)

    def _append_through(self, data: Buffer) -> int | None:
        """Append in one step with finding the end. Returns the offset behind the data; None: it is to be written as other
        data is."""
        end = append_to_file(self.inode, memoryview(data).cast("B"))
        if end is not None and self.durability in ("dsync", "sync"):
            self._sync_pages(0, -1, durable=True, datasync=self.durability == "dsync")
        return end

    def _before_change(self, at_end: bool) -> None:
        self.inode.before_change(at_end)

    def _throttle(self, nbytes: int) -> None:
        writeback.balance_dirty_pages(self.mapping, (nbytes >> PAGE_SHIFT) + 1)

    def _write_through(self, pos: int, nbytes: int) -> None:
        """Bring bytes just written to the store, and as far as the file's durability asks for, to safety."""
        first, last = pos >> PAGE_SHIFT, (pos + nbytes - 1) >> PAGE_SHIFT
        durable = self.durability in ("dsync", "sync")
        self._sync_pages(first, last, durable=durable, datasync=self.durability == "dsync")

    def _sync_pages(self, first: int, last: int, *, durable: bool, datasync: bool = False) -> None:
        """Write pages back and wait; then report what went wrong, once. Raises OSError."""
        while True:
            error = self.inode.sync_pages(first, last, durable=durable, datasync=datasync)
            number = self._check_and_advance_wb_err()
            if number:
                raise error if error is not None else writeback.unseen_error(self.mapping, number)
            if error is None:
                return
            # Another thread of this file has reported this failure: here it is tried again.

    def _raise_wb_error(self, error: OSError | None = None) -> None:
        """Raise for a write-back error that this file has not seen; `error` describes it better, if it is that one."""
        number = self._check_and_advance_wb_err()
        if error is not None:
            raise error
        if number:
            raise writeback.unseen_error(self.mapping, number)

    # -- public --------------------------------------------------------------------------------------------------------

    def writelines(self, lines: Iterable[Buffer], /) -> None:
        """Write each of several buffers at the position, as `write`."""
        self._check_writable()
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Bring what was written to the store, where other readers of it see it; `fsync` makes it durable too.

        Raises OSError. Context: waits for the store.
        """
        self._check_open()
        if self.may_write:
            self._check_usable()
            self._sync_pages(0, writeback.LAST_PAGE, durable=False)

    def fsync(self) -> None:
        """Make everything durable that was written to the object, through whichever file.

        Raises OSError: the error of this write-back, or of one since this file looked last (fsync, close); each error is
        raised once for each open file. What could not be written stays cached and dirty, so fsync again tries again.
        Context: waits for the store.
        """
        self._check_usable()
        self._sync_pages(0, writeback.LAST_PAGE, durable=True)

    def fdatasync(self) -> None:
        """As `fsync`, without metadata that reading the bytes back does not need, such as the time of change."""
        self._check_usable()
        self._sync_pages(0, writeback.LAST_PAGE, durable=True, datasync=True)

    def sync_range(self, offset: int, nbytes: int = 0, flags: int | None = None) -> None:
        """Write a byte range (nbytes 0: to the end) back, and wait (sync_file_range); nothing is made durable.

        flags: SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER of `pagecache.writeback`; all of them if not given.
        Raises ValueError, OSError as `fsync`.
        """
        self._check_usable()
        offset, nbytes = operator.index(offset), operator.index(nbytes)
        if offset < 0 or nbytes < 0:
            raise ValueError(f"offset and nbytes must not be negative, not {offset} and {nbytes}")
        first = offset >> PAGE_SHIFT
        last = (offset + nbytes - 1) >> PAGE_SHIFT if nbytes else writeback.LAST_PAGE
        error = writeback.sync_file_range(self.mapping, first, last, flags)
        if error is not None or flags is None or flags & ~writeback.SYNC_FILE_RANGE_WRITE:
            self._raise_wb_error(error)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size of the object (bytes; the position if not given); returns it.

        Extended bytes are zero. If the store fails, the object is as it was, unless the store has lost some of it.
        Raises io.UnsupportedOperation when the file was not opened for writing, OSError.
        Context: takes the inode lock and invalidate_lock exclusive; waits for reads and write-back in flight.
        """
        self._check_writable()
        size = self.tell() if size is None else operator.index(size)
        if size < 0:
            raise ValueError(f"size must not be negative, not {size}")
        self.inode.set_size(size)
        return size

    def punch_hole(self, offset: int, nbytes: int) -> None:
        """Make a byte range read as zeros, giving up what the store holds of it if it can; the size stays.

        Raises io.UnsupportedOperation when the file was not opened for writing, ValueError, OSError; then the bytes are
        as before. Context: as `truncate`.
        """
        self._check_writable()
        offset, nbytes = operator.index(offset), operator.index(nbytes)
        if offset < 0 or nbytes < 0:
            raise ValueError(f"offset and nbytes must not be negative, not {offset} and {nbytes}")
        self.inode.punch_hole(self, offset, nbytes)
