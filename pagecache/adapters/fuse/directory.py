"""A directory of this machine as a mounted file system: names and attributes pass through, bytes go through the cache."""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from pagecache.adapters.fuse.files import WRITE_FLAGS, Files, Node, errno_error
from pagecache.adapters.fuse.linked import LinkedNames
from pagecache.adapters.fuse.unlinked import HIDDEN, Unlinked

ATTRIBUTES = (
    "st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size", "st_blksize", "st_blocks", "st_rdev",
    "st_atime_ns", "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip
SECTOR = 512
AT_FDCWD = -100
TIMEOUT_S = 1.0  # how long the kernel may take names and attributes for known
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)


class DirectoryOperations:
    """What libfuse asks for, of a directory.

    cache: whose pages are used. source: path of the directory. kernel_cache: whether the kernel may keep pages too.
    caller: returns user and group of the program that is served, if files are made for others than this process's user.
    ready: called when the mount is there. options: of `Files`.
    """

    use_ns = True

    def __init__(
        self,
        cache: Any,
        source: str,
        *,
        kernel_cache: bool = False,
        caller: Callable[[], tuple[int, int]] | None = None,
        ready: Callable[[], None] | None = None,
        **options: Any,
    ):
        self.cache = cache
        self.root = os.path.realpath(source)
        if not os.path.isdir(self.root):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), source)
        self.root = self.root.rstrip("/")
        self.kernel_cache = kernel_cache
        self._caller = caller
        self._ready = ready
        self.linked = LinkedNames()
        self.files = Files(cache, changed=self.linked.changed, **options)
        self.unlinked = Unlinked(self._remove)
        self.virtual_xattrs: dict[str, bytes] = {}

    # -- life ----------------------------------------------------------------------------------------------------------

    def configure(self, conn: Any, config: Any) -> None:
        """Set what libfuse asks for when the mount begins."""
        config.auto_cache = self.kernel_cache  # its pages are kept if time and size are the same when a file is opened
        config.ac_attr_timeout, config.ac_attr_timeout_set = 0.0, 1
        config.entry_timeout = config.attr_timeout = TIMEOUT_S
        if self._ready is not None:
            self._ready()

    def finish(self) -> None:
        """End what waits when the mount is gone; the cache is closed by whoever made it. Raises OSError."""
        self.unlinked.carry_out()
        for node in self.files.nodes():
            with contextlib.suppress(OSError):  # `PageCache.sync` tells of it
                self.files.settle(node)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _real(self, path: str) -> str:
        """Return the path of the source. A removed file that is open is reached by its descriptor."""
        node = self.unlinked.find(path)
        return self.root + path if node is None else f"/proc/self/fd/{node.fd}"

    def _changing(self, path: str) -> str:
        """Return the path of the source of a name that is about to be made or removed."""
        self.unlinked.carry_out(os.path.dirname(path))
        return self.root + path

    def _own(self, real: str) -> None:
        """Give what was made to the user for whom it was made."""
        if self._caller is None:
            return
        uid, gid = self._caller()
        parent = os.stat(os.path.dirname(real))
        gid = parent.st_gid if parent.st_mode & stat.S_ISGID else gid
        mode = os.lstat(real).st_mode
        os.lchown(real, uid, gid)
        if not stat.S_ISLNK(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            os.chmod(real, stat.S_IMODE(mode))

    def readdir(self, path: str | None, fd: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """Yield names with type and inode number."""
        for name in (".", ".."):
            yield name, {"st_mode": stat.S_IFDIR, "st_ino": os.stat(name, dir_fd=fd).st_ino}, 0
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name, {"st_mode": _type_of(entry), "st_ino": entry.inode()}, 0

    def opendir(self, path: str) -> int:
        """Open a directory; the handle is a descriptor."""
        self.unlinked.carry_out(path)
        return os.open(self.root + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def releasedir(self, path: str | None, fd: int) -> None:
        """Close a directory."""
        os.close(fd)

    def fsyncdir(self, path: str | None, datasync: int, fd: int) -> None:
        """Make the names of a directory durable."""
        self.unlinked.carry_out()
        os.fsync(fd)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        real = self._changing(path)
        os.mkdir(real, mode)
        self._own(real)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self.unlinked.carry_out(path)
        os.rmdir(self._changing(path))

    def mknod(self, path: str, mode: int, dev: int) -> None:
        """Make a file of any type."""
        real = self._changing(path)
        os.mknod(real, mode, dev)
        self._own(real)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        real = self._changing(path)
        os.symlink(target, real)
        self._own(real)

    def readlink(self, path: str) -> str:
        """Return where a symbolic link points."""
        return os.readlink(self._real(path))

    def link(self, path: str, target: str) -> None:
        """Give a file another name."""
        real = self._changing(path)
        os.link(self._real(target), real, follow_symlinks=False)
        status = os.lstat(real)
        key = (status.st_dev, status.st_ino)
        self.linked.add(key, target)
        self.linked.add(key, path)
        self.linked.changed(key, path)
        node = self.files.find(status)
        if node is not None:
            node.has_names = True

    def unlink(self, path: str) -> None:
        """Remove a name. The cached pages go with the last name of a file that is not open."""
        node = self.unlinked.forget(path)
        if node is not None:
            self.linked.remove(node.key, path)
            return
        self._changing(path)
        self._remove(path)

    def _remove(self, path: str) -> None:
        real = self.root + path
        status = os.lstat(real)
        os.unlink(real)
        self._has_lost(status, path)

    def _has_lost(self, status: os.stat_result, path: str) -> None:
        """Note that a file has lost a name; its pages go with the last one."""
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            self.linked.remove(key, path)
            self.linked.changed(key)
        elif stat.S_ISREG(status.st_mode):
            self.linked.remove(key, path)
            self.files.discard(key)

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename in one step; flags are those of renameat2(2)."""
        if not flags and HIDDEN.fullmatch(os.path.basename(new)):
            status = os.lstat(self.root + old)
            node = self.files.find(status)
            self.unlinked.hide(old, new, node, (status.st_dev, status.st_ino))
            if node is not None and node.has_names:  # the kernel knows the file by the hidden name from now on
                self.linked.add(node.key, new)
                self.linked.changed(node.key, old)
            return
        self.unlinked.claim(new)
        self.unlinked.carry_out(os.path.dirname(new))
        old_real, new_real = self._changing(old), self.root + new
        replaced = None
        with contextlib.suppress(FileNotFoundError):
            replaced = os.lstat(new_real)
        if flags:
            _rename_with(old_real, new_real, flags)
        else:
            os.rename(old_real, new_real)
        renamed = os.lstat(new_real)
        key = (renamed.st_dev, renamed.st_ino)
        if self.linked.knows(key) or (renamed.st_nlink > 1 and not stat.S_ISDIR(renamed.st_mode)):
            self.linked.remove(key, old)
            self.linked.add(key, new)
            self.linked.changed(key, new)
        if not flags and replaced is not None and not os.path.samestat(replaced, renamed):
            self._has_lost(replaced, new)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def attributes(self, path: str | None, number: int | None) -> dict[str, int]:
        """Return the fields of a struct stat. Size and times of what is not written back yet are the cache's."""
        node = self.files.node(number) if number is not None else self.unlinked.find(str(path))
        if node is not None:
            status = os.fstat(node.fd)
        else:
            path = str(path)
            if self.unlinked.is_removed(path):
                self.unlinked.carry_out(os.path.dirname(path))  # whoever looks the name up is let into the directory
                raise errno_error(errno.ENOENT, path)
            status = os.lstat(self.root + path)
            node = self.files.find(status)
            key = (status.st_dev, status.st_ino)
            if self.linked.knows(key) or (status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)):
                self.linked.add(key, path)
        found = {name: getattr(status, name) for name in ATTRIBUTES}
        found["st_nlink"] -= self.unlinked.nr_removed((status.st_dev, status.st_ino))
        if node is not None and node.is_touched:
            size, mtime_ns = node.file.size, node.mtime_ns
            found["st_size"] = size
            found["st_mtime_ns"] = mtime_ns
            found["st_ctime_ns"] = max(mtime_ns, status.st_ctime_ns)
            found["st_blocks"] = max(status.st_blocks, -(-size // SECTOR))  # fewer would mean holes
        return found

    def _reach(self, path: str | None, number: int | None) -> tuple[Node | None, os.stat_result]:
        """Return the node of a file that is open, and what the source knows of the file."""
        node = self.files.node(number) if number is not None else self.unlinked.find(str(path))
        if node is not None:
            return node, os.fstat(node.fd)
        status = os.lstat(f"{self.root}{path}")
        return self.files.find(status), status

    def _has_changed(self, status: os.stat_result, path: str | None) -> None:
        """Have the kernel look again at a file through its other names."""
        self.linked.changed((status.st_dev, status.st_ino), path)

    def chmod(self, path: str | None, mode: int, number: int | None) -> None:
        """Change the mode."""
        node, status = self._reach(path, number)
        if node is not None:
            os.chmod(node.fd, mode)
            node.note_mode(mode)
        elif stat.S_ISLNK(status.st_mode):
            raise errno_error(errno.EOPNOTSUPP, str(path))
        else:
            os.chmod(f"{self.root}{path}", mode)
        self._has_changed(status, path)

    def chown(self, path: str | None, uid: int, gid: int, number: int | None) -> None:
        """Change owner and group."""
        node, status = self._reach(path, number)
        if node is not None:
            os.chown(node.fd, uid, gid)
        else:
            os.lchown(f"{self.root}{path}", uid, gid)
        self._has_changed(status, path)

    def utimens(self, path: str | None, times: tuple[int | None, int | None], number: int | None) -> None:
        """Set times (ns; None: as it is), after what is not written back yet, which would change them again."""
        node, status = self._reach(path, number)
        if node is not None:
            if times[1] is not None:
                self.files.settle(node)
            node.set_times(*times)
        else:
            atime_ns = status.st_atime_ns if times[0] is None else times[0]
            mtime_ns = status.st_mtime_ns if times[1] is None else times[1]
            os.utime(f"{self.root}{path}", ns=(atime_ns, mtime_ns), follow_symlinks=False)
        self._has_changed(status, path)

    def statfs(self, path: str) -> dict[str, int]:
        """Return the fields of a struct statvfs."""
        found = os.statvfs(self.root + path if path != "/" else self.root or "/")
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_") and name != "f_flag"}

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """Return an extended attribute; those of the mount itself are on its root."""
        if path == "/" and name in self.virtual_xattrs:
            return self.virtual_xattrs[name]
        return os.getxattr(self._real(path), name, follow_symlinks=self.unlinked.find(path) is not None)

    def listxattr(self, path: str) -> list[str]:
        """Return the names of extended attributes."""
        return os.listxattr(self._real(path), follow_symlinks=self.unlinked.find(path) is not None)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, position: int = 0) -> None:
        """Set an extended attribute; flags: XATTR_CREATE, XATTR_REPLACE."""
        os.setxattr(self._real(path), name, value, flags, follow_symlinks=self.unlinked.find(path) is not None)

    def removexattr(self, path: str, name: str) -> None:
        """Remove an extended attribute."""
        os.removexattr(self._real(path), name, follow_symlinks=self.unlinked.find(path) is not None)

    # -- open files ----------------------------------------------------------------------------------------------------

    def _open_flags(self, flags: int) -> int:
        access = os.O_RDWR if flags & WRITE_FLAGS else os.O_RDONLY  # partly written pages are read first
        return access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_DIRECT if self.files.direct else 0)

    def _opened(self, path: str, fd: int, info: Any) -> None:
        """Fill in what the kernel is told of an open file."""
        number_of_names = os.fstat(fd).st_nlink
        info.fh = self.files.open(self.root + path, fd, info.flags)
        # The kernel has pages for each name of a file: it may keep those of files with one name.
        info.direct_io = not self.kernel_cache or number_of_names > 1
        if not info.flags & WRITE_FLAGS and hasattr(info, "noflush"):
            info.noflush = 1

    def open(self, path: str, info: Any) -> None:
        """Open a file."""
        real = self._real(path)
        flags = self._open_flags(info.flags)
        if self.unlinked.find(path) is not None:
            flags &= ~os.O_NOFOLLOW
        self._opened(path, os.open(real, flags), info)

    def create(self, path: str, mode: int, info: Any) -> None:
        """Make a file, and open it; its mode does not matter to this handle."""
        real = self._changing(path)
        flags = self._open_flags(info.flags | os.O_RDWR) | os.O_CREAT
        is_new = True
        try:
            fd = os.open(real, flags | os.O_EXCL, mode)
        except FileExistsError:
            if info.flags & os.O_EXCL:
                raise
            is_new = False
            fd = os.open(real, flags, mode)
        if is_new:
            try:
                self._own(real)
            except BaseException:
                os.close(fd)
                raise
        self._opened(path, fd, info)

    def truncate(self, path: str | None, length: int, number: int | None) -> None:
        """Set the size."""
        if number is not None:
            self.files.truncate(number, length)
            return
        real = self._real(str(path))
        fd = os.open(real, self._open_flags(os.O_RDWR))
        number = self.files.open(real, fd, os.O_RDWR)
        try:
            self.files.truncate(number, length)
            self.files.flush(number)
        finally:
            self.files.release(number)

    def fallocate(self, path: str | None, mode: int, offset: int, length: int, info: Any) -> None:
        """Reserve blocks, punch a hole, or zero a range."""
        self.files.allocate(info.fh, mode, offset, length)

    def flush(self, path: str | None, info: Any) -> None:
        """Write back, as a descriptor is closed."""
        self.files.flush(info.fh)

    def fsync(self, path: str | None, datasync: int, info: Any) -> None:
        """Make durable."""
        self.files.fsync(info.fh, bool(datasync))

    def release(self, path: str | None, info: Any) -> None:
        """Close for good."""
        node = self.files.release(info.fh)
        if node is not None:
            self.unlinked.forget_node(node)


def _type_of(entry: os.DirEntry[str]) -> int:
    """Return the type bits of an entry's mode, as far as the directory tells them."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def _rename_with(old: str, new: str, flags: int) -> None:
    if _renameat2 is None:
        raise errno_error(errno.EINVAL, new)
    if _renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise errno_error(number, old)
