"""A plain pass-through file system, as mfusepy's own examples write one: what a mount of pagecache is measured beside.

    python -m bench fuse.passthrough SOURCE MOUNTPOINT [direct_io]
"""

import os
import sys

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # else mfusepy takes libfuse 2, which splits writes into 4 KiB
import mfusepy


class Passthrough(mfusepy.Operations):
    """Every call is made on the source; reads and writes are os.pread and os.pwrite."""

    use_ns = True

    def __init__(self, root):
        self.root = os.path.realpath(root)

    def getattr(self, path, fh=None):
        status = os.lstat(self.root + path)
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        times = {f"st_{name}": getattr(status, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return {**{name: getattr(status, name) for name in names}, **times}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.root + path)]

    def open(self, path, flags):
        return os.open(self.root + path, flags)

    def create(self, path, mode, fi=None):
        return os.open(self.root + path, os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self.root + path, length)

    def unlink(self, path):
        os.unlink(self.root + path)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def release(self, path, fh):
        os.close(fh)


def main(source, mountpoint, *words):
    """Mount, until it is unmounted."""
    options = {"direct_io": True} if "direct_io" in words else {}
    mfusepy.FUSE(Passthrough(source), mountpoint, foreground=True, nothreads=False, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
