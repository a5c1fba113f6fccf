"""Serves a mount whose source fails on request: `fuse_serve.py SOURCE MOUNTPOINT CONTROL`.

CONTROL is a file: as long as it holds the name of an errno, every write to the source, or with `sync:` before it every
sync, fails with it.
"""

import errno
import os
import sys

import pagecache
from pagecache.adapters.fuse import files, mount, stores


def main(source, mountpoint, control):
    """Mount, until it is unmounted."""

    def wanted(kind):
        with open(control) as file:
            word = file.read().strip()
        name = word.removeprefix("sync:")
        return getattr(errno, name) if name and word.startswith("sync:") == (kind == "sync") else 0

    class FailingStore(stores.DescriptorStore):
        """A source's file whose writes fail while they should."""

        def __init__(self, *args):
            super().__init__(*args)
            self._fd = self.fd
            self.fd = None  # the cache then calls readv and writev

        def _check(self, kind):
            number = wanted(kind)
            if number:
                raise OSError(number, os.strerror(number), self.path)

        def size(self):
            return os.fstat(self._fd).st_size

        def stamp(self):
            status = os.fstat(self._fd)
            return status.st_mtime_ns, status.st_ctime_ns, status.st_size

        def readv(self, offset, buffers):
            return os.preadv(self._fd, buffers, offset)

        def writev(self, offset, buffers):
            self._check("write")
            return os.pwritev(self._fd, buffers, offset)

        def truncate(self, size):
            self._check("write")
            os.ftruncate(self._fd, size)

        def punch_hole(self, offset, length):
            raise OSError(errno.EOPNOTSUPP, "no holes here")

        def sync(self, datasync=False):
            self._check("sync")
            os.fsync(self._fd)

        def close(self):
            os.close(self._fd)

    files.Files.make_store = lambda self, name, mode, fd, appends_only=False: FailingStore(name, mode, fd, False)
    with pagecache.PageCache("1MiB", dirty_expire_s=3600) as cache:  # written when a test has it written, not before
        mount(source, mountpoint, cache=cache)


if __name__ == "__main__":
    main(*sys.argv[1:])
