"""What tests of the write path share: stores that can be written and that fail, wait or look on as set up."""

import threading

import pagecache
from support import PAGE, PATIENCE_S, Store

LAST_PAGE = (1 << 52) - 1
MARK_DIRTY, MARK_WRITEBACK, MARK_TOWRITE = range(3)


class WritableStore(Store):
    """A store in memory that logs its calls: ("writev", offset, nbytes), ("sync", datasync), ("truncate", nbytes), ...

    on_write: called as on_write(offset, nbytes) before bytes are taken; it may raise, or wait. on_sync, on_truncate,
    on_punch: the same for the other calls. Its validator changes with every change.
    """

    parallel_requests = 1

    def __init__(self, data=b"", key="written"):
        super().__init__(bytearray(data), key)
        self.calls = []
        self.on_write = self.on_sync = self.on_truncate = self.on_punch = lambda *arguments: None
        self._change = threading.Lock()
        self.nr_changes = 0

    def validator(self):
        return str(self.nr_changes)

    def log(self, *call):
        with self._change:
            self.calls.append(call)

    def names(self):
        """Return the names of the calls in order."""
        return [call[0] for call in self.calls]

    def writes(self):
        """Return (offset, nbytes) of the writes in order."""
        return [call[1:] for call in self.calls if call[0] == "writev"]

    def pages_written(self):
        """Return the numbers of the pages that were written."""
        return {page for offset, nbytes in self.writes() for page in range(offset // PAGE, -(-(offset + nbytes) // PAGE))}

    def writev(self, offset, buffers):
        nbytes = sum(map(len, buffers))
        self.log("writev", offset, nbytes)
        self.on_write(offset, nbytes)
        return self.take(offset, buffers)

    def take(self, offset, buffers):
        """Put the bytes into the object; what a misbehaving store overrides."""
        with self._change:
            self.nr_changes += 1
            for buffer in buffers:
                if offset > len(self.data):
                    self.data.extend(bytes(offset - len(self.data)))
                self.data[offset : offset + len(buffer)] = buffer
                offset += len(buffer)
        return sum(map(len, buffers))

    def truncate(self, size):
        self.log("truncate", size)
        self.on_truncate(size)
        with self._change:
            self.nr_changes += 1
            del self.data[size:]
            self.data.extend(bytes(size - len(self.data)))

    def punch_hole(self, offset, length):
        self.log("punch_hole", offset, length)
        self.on_punch(offset, length)
        with self._change:
            self.nr_changes += 1
            self.data[offset : offset + length] = bytes(length)

    def sync(self, datasync=False):
        self.log("sync", datasync)
        self.on_sync(datasync)


class Fault:
    """Raises an error while it is on: `times` times (None: until `mend`). Put it in a store's `on_write` or `on_sync`."""

    def __init__(self, error, times=None):
        self.error = error
        self.times = times
        self.nr_raised = 0

    def mend(self):
        self.times = self.nr_raised

    def __call__(self, *arguments):
        if self.times is None or self.nr_raised < self.times:
            self.nr_raised += 1
            raise type(self.error)(*self.error.args)


class Gate:
    """Holds a store's call up until it may go on; `entered` is set as soon as one waits. Then it may fail."""

    def __init__(self, error=None):
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.error = error
        self.nr_inside = 0

    def __call__(self, *arguments):
        self.nr_inside += 1
        self.entered.set()
        try:
            assert self.go_on.wait(PATIENCE_S), "no test let the store go on"
        finally:
            self.nr_inside -= 1
        if self.error is not None:
            raise self.error

    def wait_entered(self):
        assert self.entered.wait(PATIENCE_S), "no thread came to the store"


def folio_of(file, index=0):
    """Return the cached folio of a page of a file, referenced."""
    folio = file.mapping.get_folio(index)
    assert folio is not None, f"page {index} is not cached"
    return folio


def flags_of(file, index=0):
    """Return the write-back state of a cached page: its flags, and its marks, as one string, such as "dirty,DIRTY"."""
    with folio_of(file, index) as folio:
        flags = [name for name in ("dirty", "writeback") if getattr(folio, name)]
    for mark, name in ((MARK_DIRTY, "DIRTY"), (MARK_WRITEBACK, "WRITEBACK"), (MARK_TOWRITE, "TOWRITE")):
        marked = pagecache._core.next_marked_folio(file.mapping, index, index, mark)
        if marked is not None:
            marked.put()
            flags.append(name)
    return ",".join(flags)


def dirty_pages(file):
    """Return how many pages of a file are dirty."""
    return file.cachestat().nr_dirty


def fill_dirty(file, nr_pages, start=0):
    """Make single pages dirty, each with its number in it."""
    for index in range(start, start + nr_pages):
        file.pwrite(index.to_bytes(8, "little") * (PAGE // 8), index * PAGE)


def nr_threads_waiting_to_write(file):
    """Threads that wait for the inode lock of a file's object."""
    return file.mapping.nr_waiting_to_write
