"""A directory of this machine as a mounted file system: names and attributes pass through, bytes go through the cache.

Each operation finds the file or the directory below the source by descriptors (`beneath`, `nodes`), and does what changes
or opens something with the rights of the program that asks (`credentials`).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from pagecache.adapters.fuse import beneath
from pagecache.adapters.fuse.credentials import Caller, Rights, mode_for
from pagecache.adapters.fuse.entries import OpenDirectories
from pagecache.adapters.fuse.files import WRITE_FLAGS, Files, Status, status_of
from pagecache.adapters.fuse.nodes import Key, Node, Nodes
from pagecache.adapters.fuse.protocol import Attributes, Changes, Opened
from pagecache.cache import PageCache

ACL_ATTRIBUTES = (b"system.posix_acl_access", b"system.posix_acl_default")


class DirectoryOperations:
    """What the kernel asks for, of a directory.

    cache: whose pages are used. source: path of the directory. kernel_cache: whether the kernel may keep pages too.
    serves_others: whether this is root's mount for other users as well. options: of `Files`.
    Raises OSError: there is no such directory; others cannot be served.
    """

    can_write = True

    def __init__(
        self, cache: PageCache, source: str, *, kernel_cache: bool = False, serves_others: bool = False, **options: Any
    ):
        root_fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.rights = Rights(serves_others)
            self.files = Files(cache, place=source, changed=self._has_changed, **options)
        except BaseException:
            os.close(root_fd)
            raise
        self.nodes = Nodes(root_fd)
        self.directories = OpenDirectories(self.nodes)
        self.kernel_cache = kernel_cache
        self.virtual_xattrs: dict[bytes, Callable[[], bytes]] = {}
        self.invalidate: Callable[[int], None] = lambda number: None  # has the kernel forget attributes of a node

    def finish(self) -> None:
        """End what waits when the mount is gone; the cache is closed by its maker. Raises nothing."""
        for opened in self.files.all():
            with contextlib.suppress(OSError):  # `PageCache.sync` reports it
                self.files.settle(opened)
        self.directories.close()
        self.nodes.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reach(self, node: Node, *, by_name: bool = False) -> Iterator[int]:
        """Give a descriptor of a node's file for a while: of the open file, if it is open, whatever became of its names.

        by_name: only if it has none; where it has, and another file has its name by now, ESTALE lets the kernel look again.
        """
        opened = self.files.find(node.key)
        if opened is not None and not (by_name and node.names):
            yield opened.fd
            return
        with self.nodes.reach(node) as fd:
            yield fd

    def _attributes(self, status: Status) -> Attributes:
        source = status.source
        return Attributes(
            self.nodes.shown_ino(source.st_dev, source.st_ino), source.st_mode, source.st_nlink, source.st_uid,
            source.st_gid, status.size, status.blocks, source.st_blksize, source.st_rdev, source.st_atime_ns,
            status.mtime_ns, status.ctime_ns,
        )  # fmt: skip

    def _entry(self, found: os.stat_result, directory: Node, name: bytes) -> tuple[int, Attributes]:
        """Return a node's number, counted as given to the kernel, and the attributes."""
        node = self.nodes.looked_up(found, directory, name)
        opened = self.files.find(node.key)
        return node.number, self._attributes(opened.status() if opened is not None else status_of(found))

    def lookup(self, parent: int, name: bytes) -> tuple[int, Attributes]:
        """Return number and attributes of what has a name."""
        directory = self.nodes[parent]
        with self.nodes.reach(directory) as dir_fd:
            return self._entry(_stat(name, dir_fd), directory, name)

    def forget(self, number: int, nr_lookups: int) -> None:
        """Take back a node that the kernel was given so many times."""
        self.nodes.forget(number, nr_lookups)

    def attributes(self, number: int, handle: int | None) -> Attributes:
        """Return the attributes. Those of a file that is not written back yet are the cache's."""
        opened = self.files.opened(handle) if handle is not None else self.files.find(self.nodes[number].key)
        if opened is not None:
            return self._attributes(opened.status())
        with self.nodes.reach(self.nodes[number]) as fd:
            return self._attributes(status_of(os.fstat(fd)))

    def readlink(self, number: int) -> bytes:
        """Return where a symbolic link points."""
        with self.nodes.reach(self.nodes[number]) as fd:
            return os.readlink(b"", dir_fd=fd)

    def opendir(self, caller: Caller, number: int) -> int:
        """Open a directory. Returns the number of the handle."""
        node = self.nodes[number]
        with self.nodes.reach(node) as fd, self.rights.of(caller):
            return self.directories.open(node, fd)

    def statfs(self, number: int) -> os.statvfs_result:
        """Return the room of the source's file system."""
        with self._reach(self.nodes[number]) as fd:
            return os.fstatvfs(fd)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def change(self, caller: Caller, number: int, changes: Changes) -> Attributes:
        """Set what is given of mode, owner, size and times. Returns the attributes."""
        node = self.nodes[number]
        opened = self.files.opened(changes.handle) if changes.handle is not None else self.files.find(node.key)
        with self._reach(node) if opened is None else contextlib.nullcontext(opened.fd) as fd:
            path = beneath.of_descriptor(fd)
            with self.files.own_change(node.key, fd), self.rights.of(caller):
                if changes.mode is not None:
                    os.chmod(path, changes.mode)
                if changes.uid is not None or changes.gid is not None:
                    os.chown(path, *(-1 if one is None else one for one in (changes.uid, changes.gid)))
                elif changes.is_empty:
                    # For an open file it may be a write that follows, by any that may, and not a chown to no other owner.
                    with contextlib.suppress(PermissionError) if opened is not None else contextlib.nullcontext():
                        os.chown(path, -1, -1)
            if changes.size is not None:
                self._resize(caller, node, fd, changes)
            if changes.sets_times:
                if opened is not None and (changes.mtime_ns is not None or changes.is_mtime_now):
                    self.files.settle(opened)  # what is written back later would change it again
                with self.files.own_change(node.key, fd), self.rights.of(caller):
                    beneath.set_times(
                        fd, changes.atime_ns, changes.mtime_ns, (changes.is_atime_now, changes.is_mtime_now)
                    )
            status = opened.status() if opened is not None else status_of(os.fstat(fd))
        if opened is not None:
            opened.note_mode(status.source.st_mode)
        return self._attributes(status)

    def _resize(self, caller: Caller, node: Node, fd: int, changes: Changes) -> None:
        """Set the size: of an open file by its handle, of another one as if it were opened for that."""
        size, handle = changes.size, changes.handle
        assert size is not None
        if handle is not None:
            self.files.truncate(handle, size)
            if changes.drops_privileges:
                self.files.opened(handle).drop_privileges(caller)
            return
        source_fd, _ = self._open_source(caller, fd, os.O_WRONLY)
        handle = self.files.open(_name_of(node), source_fd, os.O_RDWR)
        try:
            opened = self.files.opened(handle)
            if opened.is_touched or opened.status().size != size:
                self.files.truncate(handle, size)
                self.files.flush(handle)
            else:  # whether that is a change is for the source to say
                with opened.own_change():
                    os.truncate(beneath.of_descriptor(opened.fd), size)
            if changes.drops_privileges:
                opened.drop_privileges(caller)
        finally:
            self.files.release(handle)

    def _has_changed(self, key: Key) -> None:
        """Have the kernel look again at attributes that change without its doing."""
        node = self.nodes.find(key)
        if node is not None:
            self.invalidate(node.number)

    def getxattr(self, caller: Caller, number: int, name: bytes) -> bytes:
        """Return an extended attribute; those of the mount itself are on its root."""
        node = self.nodes[number]
        if node is self.nodes.root and name in self.virtual_xattrs:
            return self.virtual_xattrs[name]()
        try:
            with self._reach(node) as fd, self._reading(caller, name):
                return os.getxattr(beneath.of_descriptor(fd), name)
        except OSError as error:
            if name in ACL_ATTRIBUTES and error.errno == errno.EOPNOTSUPP:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None  # the kernel asks before it lets in
            raise

    def _reading(self, caller: Caller, name: bytes) -> contextlib.AbstractContextManager[Any]:
        """Within the block an attribute is read: with the caller's rights, if rights count for it."""
        return self.rights.of(caller) if name.startswith(b"user.") else contextlib.nullcontext()

    def listxattr(self, caller: Caller, number: int) -> list[bytes]:
        """Return the names of extended attributes."""
        with self._reach(self.nodes[number]) as fd:
            return [os.fsencode(name) for name in os.listxattr(beneath.of_descriptor(fd))]

    def setxattr(self, caller: Caller, number: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; flags: XATTR_CREATE, XATTR_REPLACE."""
        node = self.nodes[number]
        with self._reach(node) as fd, self.files.own_change(node.key, fd), self.rights.of(caller):
            os.setxattr(beneath.of_descriptor(fd), name, value, flags)
        self._note_acl(node, name)

    def removexattr(self, caller: Caller, number: int, name: bytes) -> None:
        """Remove an extended attribute."""
        node = self.nodes[number]
        with self._reach(node) as fd, self.files.own_change(node.key, fd), self.rights.of(caller):
            os.removexattr(beneath.of_descriptor(fd), name)
        self._note_acl(node, name)

    def _note_acl(self, node: Node, name: bytes) -> None:
        """An ACL is a part of the mode, which the kernel takes for unchanged."""
        if name in ACL_ATTRIBUTES:
            self.invalidate(node.number)
            opened = self.files.find(node.key)
            if opened is not None:
                opened.note_mode(os.fstat(opened.fd).st_mode)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _make(
        self, caller: Caller, parent: int, name: bytes, make: Callable[[int], None]
    ) -> tuple[int, Attributes]:
        """Have a name made by a function of the directory's descriptor. Returns the new node's number and attributes."""
        _check(name)
        directory = self.nodes[parent]
        with self.nodes.reach(directory) as dir_fd:
            with self.rights.of(caller):
                make(dir_fd)
            return self._entry(_stat(name, dir_fd), directory, name)

    def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> tuple[int, Attributes]:
        """Make a directory."""
        mode = mode_for(caller, mode)
        return self._make(caller, parent, name, lambda dir_fd: os.mkdir(name, mode, dir_fd=dir_fd))

    def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, device: int) -> tuple[int, Attributes]:
        """Make a file of any type."""
        mode = mode_for(caller, mode)
        return self._make(caller, parent, name, lambda dir_fd: os.mknod(name, mode, device, dir_fd=dir_fd))

    def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> tuple[int, Attributes]:
        """Make a symbolic link."""
        return self._make(caller, parent, name, lambda dir_fd: os.symlink(target, name, dir_fd=dir_fd))

    def link(self, caller: Caller, number: int, parent: int, name: bytes) -> tuple[int, Attributes]:
        """Give a file another name."""
        node = self.nodes[number]
        with self._reach(node) as fd, self.files.own_change(node.key, fd):
            return self._make(caller, parent, name, lambda dir_fd: beneath.link(fd, dir_fd, name))

    def unlink(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove a name. The cached pages go with the last name of a file that is not open."""
        self._remove(caller, parent, name, os.unlink)

    def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._remove(caller, parent, name, os.rmdir)

    def _remove(self, caller: Caller, parent: int, name: bytes, remove: Callable[..., None]) -> None:
        _check(name)
        directory = self.nodes[parent]
        with self.nodes.reach(directory) as dir_fd:
            fd = os.open(name, beneath.PATH_FLAGS, dir_fd=dir_fd)
            try:
                status = os.fstat(fd)
                with self.files.own_change(_key(status), fd), self.rights.of(caller):
                    remove(name, dir_fd=dir_fd)
            except BaseException:
                os.close(fd)
                raise
        self._has_lost_name(status, directory, name, fd)

    def _has_lost_name(self, status: os.stat_result, directory: Node, name: bytes, fd: int) -> None:
        """Note that a file has lost a name; its pages go with the last one. fd: O_PATH, which is given away."""
        key = _key(status)
        is_last = stat.S_ISREG(status.st_mode) and os.fstat(fd).st_nlink == 0
        self.nodes.remove_name(key, directory, name, fd)
        if is_last:
            self.files.discard(key)

    def rename(self, caller: Caller, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> None:
        """Rename in one step. old, new: directory and name. flags: of renameat2(2)."""
        (old_parent, old_name), (new_parent, new_name) = old, new
        _check(old_name, new_name)
        old_directory, new_directory = self.nodes[old_parent], self.nodes[new_parent]
        with (
            self.nodes.moving.held(),
            self.nodes.reach(old_directory) as old_fd,
            self.nodes.reach(new_directory) as new_fd,
            contextlib.ExitStack() as stack,
        ):
            moved_fd, replaced_fd = _open_path(old_name, old_fd), _open_path(new_name, new_fd)
            for fd in (moved_fd, replaced_fd):
                if fd >= 0:
                    stack.callback(os.close, fd)
            if moved_fd < 0:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(old_name))
            key = _key(os.fstat(moved_fd))
            replaced = os.fstat(replaced_fd) if replaced_fd >= 0 else None
            stack.enter_context(self.files.own_change(key, moved_fd))
            if replaced is not None and _key(replaced) != key:
                stack.enter_context(self.files.own_change(_key(replaced), replaced_fd))
            with self.rights.of(caller):
                beneath.rename(old_fd, old_name, new_fd, new_name, flags)
            if replaced is not None and _key(replaced) == key:
                return  # two names of one file stay
            old_place, new_place = (old_directory, old_name), (new_directory, new_name)
            if replaced is not None and flags & beneath.RENAME_EXCHANGE:
                self.nodes.renamed(_key(replaced), new_place, old_place)
            elif replaced is not None:
                self._has_lost_name(replaced, new_directory, new_name, os.dup(replaced_fd))
            self.nodes.renamed(key, old_place, new_place)

    # -- open files ----------------------------------------------------------------------------------------------------

    def _open_source(self, caller: Caller, fd: int, flags: int) -> tuple[int, bool]:
        """Open a file of the source by a descriptor of it, with the caller's rights.

        Returns the new one, which can read wherever it can write, because pages that are written in part are read first;
        and whether the source lets it append only. Raises OSError.
        """
        more = os.O_NONBLOCK | (os.O_DIRECT if self.files.direct else 0)
        if not flags & (WRITE_FLAGS | os.O_TRUNC):
            with self.rights.of(caller):
                return beneath.open_again(fd, os.O_RDONLY | more), False
        with self.rights.of(caller):
            try:
                return beneath.open_again(fd, os.O_RDWR | more), False
            except PermissionError as error:
                if error.errno == errno.EPERM and flags & os.O_APPEND and not flags & os.O_TRUNC:
                    return beneath.open_again(fd, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK), True
                if error.errno != errno.EACCES or not flags & os.O_WRONLY:
                    raise
                checked_fd = beneath.open_again(fd, os.O_WRONLY | os.O_NONBLOCK)
        try:  # the caller may write, and will not be shown what is read
            return beneath.open_again(checked_fd, os.O_RDWR | more), False
        finally:
            os.close(checked_fd)

    def open(self, caller: Caller, number: int, flags: int, *, drops_privileges: bool = False) -> tuple[int, Opened]:
        """Open a file. Returns the number of the handle, and how the kernel treats it."""
        node = self.nodes[number]
        with self._reach(node, by_name=True) as fd:
            source_fd, appends_only = self._open_source(caller, fd, flags)
        handle = self.files.open(_name_of(node), source_fd, flags, appends_only=appends_only)
        if drops_privileges:
            self.files.opened(handle).drop_privileges(caller)
        return handle, self._treated(node, handle, flags)

    def _treated(self, node: Node, handle: int, flags: int) -> Opened:
        """Return how the kernel treats an open file: its pages stay if the file is as it was when it was opened last."""
        self.files.note_node(handle, node.number, self.nodes.shown_ino(*node.key))
        treated = Opened(0) if flags & (WRITE_FLAGS | os.O_TRUNC) else Opened.NOFLUSH
        if not self.kernel_cache:
            return treated | Opened.DIRECT_IO | Opened.PARALLEL_DIRECT_WRITES
        status = self.files.status(handle)
        version = (status.mtime_ns, status.ctime_ns, status.size)
        if version == node.kept_version:
            treated |= Opened.KEEP_CACHE
        node.kept_version = version
        return treated

    def create(
        self, caller: Caller, parent: int, name: bytes, flags: int, mode: int
    ) -> tuple[int, Attributes, int, Opened]:
        """Make a file if there is none, and open it. Its mode does not matter to this handle.

        Returns the node's number and attributes, the handle's number, and how the kernel treats it.
        """
        _check(name)
        directory = self.nodes[parent]
        wanted = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        wanted |= os.O_DIRECT if self.files.direct else 0
        with self.nodes.reach(directory) as dir_fd:
            mode = mode_for(caller, mode)
            try:
                with self.rights.of(caller):
                    fd = os.open(name, wanted, mode, dir_fd=dir_fd)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                number, attributes = self._entry(_stat(name, dir_fd), directory, name)
                try:
                    handle, treated = self.open(caller, number, flags)
                except BaseException:
                    self.forget(number, 1)
                    raise
                return number, attributes, handle, treated
        return self._created(directory, name, fd, flags & ~os.O_TRUNC)

    def tmpfile(self, caller: Caller, parent: int, flags: int, mode: int) -> tuple[int, Attributes, int, Opened]:
        """Make a file without a name, and open it. Returns as `create`."""
        directory = self.nodes[parent]
        wanted = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | (flags & os.O_EXCL) | (os.O_DIRECT if self.files.direct else 0)
        with self.nodes.reach(directory) as dir_fd:
            mode = mode_for(caller, mode)
            with self.rights.of(caller):
                fd = os.open(b".", wanted, mode, dir_fd=dir_fd)
        return self._created(directory, b"", fd, flags & ~os.O_TRUNC)

    def _created(self, directory: Node, name: bytes, fd: int, flags: int) -> tuple[int, Attributes, int, Opened]:
        """Open what has been made. name: b"" for a file without."""
        try:
            status = os.fstat(fd)
            node = self.nodes.looked_up(status, directory, name)
            if not name:
                path_fd = os.open(beneath.of_descriptor(fd), os.O_PATH | os.O_CLOEXEC)
                self.nodes.remove_name(node.key, directory, name, path_fd)
        except BaseException:
            os.close(fd)
            raise
        try:
            handle = self.files.open(os.fsdecode(name), fd, flags | os.O_RDWR)
            treated = self._treated(node, handle, flags)
        except BaseException:
            self.forget(node.number, 1)
            raise
        return node.number, self._attributes(status_of(status)), handle, treated


def _check(*names: bytes) -> None:
    """Raise OSError (EINVAL) for what is no name of one entry."""
    if not all(map(beneath.is_plain, names)):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def _stat(name: bytes, dir_fd: int) -> os.stat_result:
    _check(name)
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _open_path(name: bytes, dir_fd: int) -> int:
    """Return an O_PATH descriptor of a name, -1 if there is none."""
    try:
        return os.open(name, beneath.PATH_FLAGS, dir_fd=dir_fd)
    except FileNotFoundError:
        return -1


def _name_of(node: Node) -> str:
    return os.fsdecode(node.names[-1][1]) if node.names else "a removed file"
