"""A writable store that can be made to fail."""

import errno
import os
import threading

import pagecache
from support import PAGE

UNIT = 512  # writes of the tests begin and end at multiples, so that each unit of the store has the bytes of one moment


class FailingStore(pagecache.MemoryStore):
    """Fails the call number `fails_at` of one kind, and with `for_ever` all later ones too, until it is healed.

    kind: a method. number: the errno. partly: a write that fails has put half of its bytes in before. width: requests that
    may run at once.
    """

    max_request = 4 * PAGE

    def __init__(self, data, kind="writev", fails_at=-1, number=errno.EIO, for_ever=False, partly=False, width=1):
        super().__init__(data)
        self.parallel_requests = width
        self.kind, self.fails_at, self.number = kind, fails_at, number
        self.for_ever, self.partly = for_ever, partly
        self.nr_calls = dict.fromkeys(("readv", "writev", "truncate", "punch_hole", "sync"), 0)
        self.nr_failed = 0
        self.is_healed = False
        self._counts = threading.Lock()

    def _fails(self, kind):
        with self._counts:
            nr, self.nr_calls[kind] = self.nr_calls[kind], self.nr_calls[kind] + 1
            fails = kind == self.kind and not self.is_healed and self.fails_at >= 0
            fails = fails and (nr == self.fails_at or (self.for_ever and nr > self.fails_at))
            self.nr_failed += fails
        return fails

    def _raise(self):
        raise OSError(self.number, os.strerror(self.number))

    def readv(self, offset, buffers):
        if self._fails("readv"):
            self._raise()
        return super().readv(offset, buffers)

    def writev(self, offset, buffers):
        if self._fails("writev"):
            if self.partly:
                data = b"".join(buffers)
                super().writev(offset, [data[: len(data) // 2 // UNIT * UNIT]])
            self._raise()
        return super().writev(offset, buffers)

    def truncate(self, size):
        if self._fails("truncate"):
            self._raise()
        super().truncate(size)

    def punch_hole(self, offset, length):
        if self._fails("punch_hole"):
            self._raise()
        super().punch_hole(offset, length)

    def sync(self, datasync=False):
        if self._fails("sync"):
            self._raise()
        super().sync(datasync)
