"""The objects of an fsspec file system as a mounted file system: read-only, or changed as a whole."""

import contextlib
import errno
import itertools
import os
import posixpath
import stat
import tempfile
import time
from collections.abc import Callable
from typing import Any

from pagecache._core import Mutex
from pagecache.adapters.fuse import object_puts
from pagecache.adapters.fuse.credentials import Caller
from pagecache.adapters.fuse.files import SECTOR, WRITE_FLAGS
from pagecache.adapters.fuse.mounting import is_within
from pagecache.adapters.fuse.object_files import ObjectFiles, OpenObject
from pagecache.adapters.fuse.object_nodes import ObjectNode, ObjectNodes
from pagecache.adapters.fuse.protocol import Attributes, Changes, Opened, dirent
from pagecache.cache import PageCache
from pagecache.stores.errors import failed_request, meant_error
from pagecache.stores.fsspec_instances import instance_of_url

BLOCK = 4096
LISTED_S = 5.0  # how long what a listing said of an object is believed
NS = 10**9
ROOM_BLOCKS = (1 << 50) // BLOCK  # what is shown as free: stores do not say how much they take
NAME_BYTES_MAX = 255
NO_FLAGS = 0

Info = dict[str, Any]


def refused(number: int, path: str = "") -> OSError:
    """Return the OSError of an errno."""
    return OSError(number, os.strerror(number), path)


class ObjectOperations:
    """What the kernel asks for, of the objects below a URL.

    cache: whose pages are used. url, storage_options: as fsspec takes them. mountpoint: where it will be. write_back:
    whether objects can be changed. kernel_cache: whether the kernel may keep pages too. options: `recheck`, `on_change`.
    Raises ImportError, OSError.
    """

    def __init__(
        self,
        cache: PageCache,
        url: str,
        storage_options: dict[str, Any],
        *,
        mountpoint: str | None = None,
        write_back: bool = False,
        kernel_cache: bool = False,
        **options: Any,
    ):
        if write_back and mountpoint is not None and is_within(tempfile.gettempdir(), mountpoint):
            reason = "objects are changed in files of TMPDIR, which may not be below the mount point"
            raise OSError(errno.EINVAL, reason, tempfile.gettempdir())
        self.instance, root = instance_of_url(url, storage_options)
        self._is_http = "http" in self.instance.template.protocol
        self.can_write = write_back
        self.kernel_cache = kernel_cache
        self.files = ObjectFiles(cache, self.instance, **options)
        self.nodes = ObjectNodes()
        self.directories = ObjectDirectories(self)
        self.virtual_xattrs: dict[bytes, Callable[[], bytes]] = {}
        self.invalidate: Callable[[int], None] = lambda number: None
        self._made: set[str] = set()  # directories made here, and perhaps empty
        self._listed: dict[str, tuple[float, Info]] = {}  # path -> when, what
        self._started_ns = time.time_ns()
        self.root, self._only = root.rstrip("/"), ""
        if not url.endswith("/"):
            self._look_at_root()

    def _look_at_root(self) -> None:
        """Find out whether the URL is one object: then that is all there is. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if self._ask("info", self.root)["type"] == "file":
                self.root, _, self._only = self.root.rpartition("/")

    def finish(self) -> None:
        """Put what is not put yet, when the mount is gone. Raises OSError after all was tried."""
        errors = []
        for opened in self.files.all():
            try:
                self.files.put(opened)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # -- asking --------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Return what a method of the file system returns. Raises OSError."""
        try:
            with self.instance.turn() as fs:
                return getattr(fs, method)(*args, **options)
        except Exception as error:
            raise meant_error(error, str(args[0])) or failed_request(error, str(args[0])) from error

    def _remote(self, path: str) -> str:
        if self._only and path != f"/{self._only}":
            raise refused(errno.ENOENT, path)
        return self.root + path

    def _find(self, path: str) -> OpenObject | None:
        """Return the open object of a path, if there is one that the store does not have so."""
        opened = self.files.find(self.root + path)
        return opened if opened is not None and opened.spool is not None else None

    def _info(self, path: str) -> Info:
        """Return what the store knows of an object or directory. Raises OSError."""
        if not path or path in self._made:
            return {"type": "directory"}
        when, found = self._listed.get(path, (0.0, None))
        if found is not None and (time.monotonic() - when < LISTED_S or found["type"] == "directory"):
            return found
        asked_at = time.monotonic()
        found = self._ask_about(self._remote(path))
        self._listed[path] = (asked_at, found)
        return found

    def _ask_about(self, remote: str) -> Info:
        """Return what the store says of an object or directory now. Raises OSError."""
        if self._is_http:  # where fsspec takes every failure for a missing object
            return {"type": "file", **object_puts.described(self.instance, remote)}
        self._ask("invalidate_cache", posixpath.dirname(remote))
        found: Info = self._ask("info", remote)
        return found

    def listing(self, path: str) -> dict[str, Info]:
        """Return what a directory holds, by name. Raises OSError."""
        remote = self.root + path
        if self._only:
            return {self._only: self._info(f"/{self._only}")}
        entries = self._list_store(path, remote)
        now = time.monotonic()
        for known in [known for known in self._listed if posixpath.dirname(known) == path]:
            self._listed.pop(known, None)
        for name, info in entries.items():
            self._listed[f"{path}/{name}"] = (now, info)
        for made in list(self._made):
            if posixpath.dirname(made) == path:
                entries.setdefault(posixpath.basename(made), {"type": "directory"})
        for opened in self.files.all():
            if opened.is_only_here and posixpath.dirname(opened.remote) == remote:
                entries[posixpath.basename(opened.remote)] = {"type": "file"}
        return entries

    def _list_store(self, path: str, remote: str) -> dict[str, Info]:
        self._ask("invalidate_cache", remote)
        try:
            listed = self._ask("ls", remote + "/" if "://" in remote else remote or "/", detail=True)
        except FileNotFoundError:
            if path and path not in self._made:
                raise
            listed = []
        entries = {}
        for info in listed:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if name and info["name"].rstrip("/") != remote.rstrip("/"):
                entries[name] = info
        return entries

    def _forget(self, *paths: str) -> None:
        for path in paths:
            self._listed.pop(path, None)
            self._ask("invalidate_cache", posixpath.dirname(self.root + path))

    def _below(self, parent: int, name: bytes) -> str:
        """Return the path of a name in a directory."""
        if len(name) > NAME_BYTES_MAX:
            raise refused(errno.ENAMETOOLONG)
        return f"{self.nodes.path_of(parent)}/{os.fsdecode(name)}"

    # -- attributes ----------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> tuple[int, Attributes]:
        """Return number and attributes of what has a name."""
        return self._entry(self._below(parent, name))

    def _entry(self, path: str) -> tuple[int, Attributes]:
        opened = self._find(path)
        kind = stat.S_IFREG if opened is not None or self._info(path)["type"] != "directory" else stat.S_IFDIR
        node = self.nodes.looked_up(path, kind)
        try:
            return node.number, self._attributes(node, opened)
        except BaseException:
            self.nodes.forget(node.number, 1)
            raise

    def forget(self, number: int, nr_lookups: int) -> None:
        """Take back a node that the kernel was given so many times."""
        self.nodes.forget(number, nr_lookups)

    def attributes(self, number: int, handle: int | None) -> Attributes:
        """Return the attributes: modes and owners are made up, as objects have none."""
        node = self.nodes[number]
        return self._attributes(node, self.files.opened(handle) if handle is not None else node.opened)

    def _attributes(self, node: ObjectNode, opened: OpenObject | None) -> Attributes:
        if (opened is None or opened.spool is None) and node.path is not None:
            opened = self._find(node.path)
        size = opened.size if opened is not None else None
        if opened is not None and size is not None:
            return self._fields(node, size, opened.mtime_ns, is_gone=opened.is_gone)
        if node.kind == stat.S_IFDIR:
            return self._fields(node, 0, self._started_ns)
        path = self.nodes.path_of(node.number)
        info = self._info(path)
        if info.get("size") is None:  # a listing may leave it out
            self._listed.pop(path, None)
            info = self._info(path)
        return self._fields(node, info.get("size") or 0, self._mtime_ns(info))

    def _mtime_ns(self, info: Info) -> int:
        """Return the time of the last change, as far as fsspec tells it, else that of the mount."""
        for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
            value: Any = info.get(name)
            if isinstance(value, (int, float)):
                return int(value * NS)
            if hasattr(value, "timestamp"):
                return int(value.timestamp() * NS)
        return self._started_ns

    def _mode(self, kind: int) -> int:
        bits = 0o755 if kind == stat.S_IFDIR else 0o644
        return kind | (bits if self.can_write else bits & ~0o222)

    def _fields(self, node: ObjectNode, size: int, mtime_ns: int, is_gone: bool = False) -> Attributes:
        nr_links = 0 if is_gone else 2 if node.kind == stat.S_IFDIR else 1
        return Attributes(
            node.ino, self._mode(node.kind), nr_links, os.getuid(), os.getgid(), size, -(-size // SECTOR), BLOCK, 0,
            mtime_ns, mtime_ns, mtime_ns,
        )  # fmt: skip

    def change(self, caller: Caller, number: int, changes: Changes) -> Attributes:
        """Set the size. Modes and owners are what they are; an object's time is that of its put. Returns the attributes."""
        node = self.nodes[number]
        if changes.mode not in (None, stat.S_IMODE(self._mode(node.kind))):
            raise refused(errno.EOPNOTSUPP)
        if changes.uid not in (None, os.getuid()) or changes.gid not in (None, os.getgid()):
            raise refused(errno.EOPNOTSUPP)
        if changes.size is not None:
            self._resize(node, changes.size, changes.handle)
        return self.attributes(number, changes.handle)

    def _resize(self, node: ObjectNode, size: int, handle: int | None) -> None:
        if handle is not None:
            self.files.truncate(handle, size)
            return
        if not self.can_write:
            raise refused(errno.EROFS)
        handle = self.files.open(self._remote(self.nodes.path_of(node.number)), os.O_RDWR | (0 if size else os.O_TRUNC))
        try:
            self.files.truncate(handle, size)
            self.files.flush(handle)
        finally:
            self.files.release(handle)

    def statfs(self, number: int) -> os.statvfs_result:
        """Return a great deal of room: no store says how much it takes."""
        free = ROOM_BLOCKS if self.can_write else 0
        return os.statvfs_result((BLOCK, BLOCK, ROOM_BLOCKS, free, free, ROOM_BLOCKS, free, free, NO_FLAGS, NAME_BYTES_MAX))

    def getxattr(self, caller: Caller, number: int, name: bytes) -> bytes:
        """Return an extended attribute of the mount itself."""
        if self.nodes[number] is self.nodes.root and name in self.virtual_xattrs:
            return self.virtual_xattrs[name]()
        raise refused(errno.ENODATA)

    def listxattr(self, caller: Caller, number: int) -> list[bytes]:
        """Return no names."""
        return []

    def setxattr(self, caller: Caller, number: int, name: bytes, value: bytes, flags: int) -> None:
        """Refuse: objects have none."""
        raise refused(errno.EOPNOTSUPP)

    def removexattr(self, caller: Caller, number: int, name: bytes) -> None:
        """Refuse: objects have none."""
        raise refused(errno.EOPNOTSUPP)

    # -- names ---------------------------------------------------------------------------------------------------------

    def opendir(self, caller: Caller, number: int) -> int:
        """Open a directory. Returns the number of the handle."""
        return self.directories.open(self.nodes.path_of(number))

    def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> tuple[int, Attributes]:
        """Make a directory: in most stores it is there as long as the mount, or something in it."""
        path = self._below(parent, name)
        with contextlib.suppress(FileExistsError, NotImplementedError):
            self._ask("mkdir", self._remote(path), create_parents=False)
        self._forget(path)
        self._made.add(path)
        return self._entry(path)

    def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, device: int) -> tuple[int, Attributes]:
        """Make an empty object; there are no files of other types."""
        if not stat.S_ISREG(mode):
            raise refused(errno.EPERM)
        number, attributes, handle, _ = self.create(caller, parent, name, os.O_WRONLY, mode)
        try:
            self.files.flush(handle)
        finally:
            self.files.release(handle)
        return number, attributes

    def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        path = self._below(parent, name)
        if self.listing(path):
            raise refused(errno.ENOTEMPTY, path)
        with contextlib.suppress(FileNotFoundError, NotImplementedError):
            self._ask("rmdir", self._remote(path))
        self._made.discard(path)
        self._forget(path)
        self.nodes.removed(path)

    def unlink(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove an object; those that have it open keep its bytes."""
        path = self._below(parent, name)
        opened = self.files.preserve(self._remote(path))
        with opened.lock.held() if opened is not None else contextlib.nullcontext():
            if opened is None or not opened.is_only_here:
                self._ask("rm_file", self._remote(path))
            if opened is not None:
                self.files.removed(opened)
        self._forget(path)
        self.nodes.removed(path)

    def rename(self, caller: Caller, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> None:
        """Rename: most stores copy and remove. An object that is not put yet only gets another name here; an open object
        that is replaced lives on for those that have it open."""
        old_path, new_path = self._below(*old), self._below(*new)
        if flags:
            raise refused(errno.EINVAL, new_path)
        if self._find(old_path) is None and self._info(old_path)["type"] == "directory":
            raise refused(errno.EXDEV, new_path)  # programs copy then
        opened, replaced = self.files.find(self._remote(old_path)), self.files.preserve(self._remote(new_path))
        with opened.lock.held() if opened is not None else contextlib.nullcontext():
            if opened is None or not opened.is_only_here:
                if opened is not None:
                    self.files.put(opened)
                self._ask("mv", self._remote(old_path), self._remote(new_path))
            if replaced is not None:
                self.files.removed(replaced)
            self._forget(old_path, new_path)
            if opened is not None:
                base = object_puts.present_version(self.instance, self._remote(new_path))
                self.files.renamed(opened, self._remote(new_path), base)
        self.nodes.renamed(old_path, new_path)

    def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> tuple[int, Attributes]:
        """Refuse: there are no links."""
        raise refused(errno.EPERM)

    def link(self, caller: Caller, number: int, parent: int, name: bytes) -> tuple[int, Attributes]:
        """Refuse: there are no links."""
        raise refused(errno.EPERM)

    def readlink(self, number: int) -> bytes:
        """Refuse: there are no links."""
        raise refused(errno.EINVAL)

    # -- open objects --------------------------------------------------------------------------------------------------

    def open(self, caller: Caller, number: int, flags: int, *, drops_privileges: bool = False) -> tuple[int, Opened]:
        """Open an object. Returns the number of the handle, and how the kernel treats it."""
        return self._open(self.nodes[number], flags, is_new=False)

    def create(
        self, caller: Caller, parent: int, name: bytes, flags: int, mode: int
    ) -> tuple[int, Attributes, int, Opened]:
        """Make an object, and open it. Returns the node's number and attributes, the handle's, how the kernel treats it."""
        path = self._below(parent, name)
        node = self.nodes.looked_up(path, stat.S_IFREG)
        try:
            handle, treated = self._open(node, flags, is_new=True)
        except BaseException:
            self.nodes.forget(node.number, 1)
            raise
        return node.number, self._attributes(node, self.files.opened(handle)), handle, treated

    def tmpfile(self, caller: Caller, parent: int, flags: int, mode: int) -> tuple[int, Attributes, int, Opened]:
        """Refuse: an object has a name."""
        raise refused(errno.EOPNOTSUPP)

    def _open(self, node: ObjectNode, flags: int, *, is_new: bool) -> tuple[int, Opened]:
        changes = is_new or flags & (WRITE_FLAGS | os.O_TRUNC)
        path = self.nodes.path_of(node.number)
        if changes and not self.can_write:
            raise refused(errno.EROFS, path)
        self._listed.pop(path, None)
        handle = self.files.open(self._remote(path), flags | (os.O_RDWR if is_new else 0), is_new=is_new)
        node.opened = self.files.opened(handle)
        treated = Opened(0) if changes else Opened.NOFLUSH
        if not self.kernel_cache:
            return handle, treated | Opened.DIRECT_IO
        validator = self.files.validator(handle)
        if validator is not None and validator == node.kept_version:
            treated |= Opened.KEEP_CACHE
        node.kept_version = validator
        return handle, treated


class ObjectDirectories:
    """The open directories of a mounted URL: what was in them when they were read from the beginning."""

    def __init__(self, operations: ObjectOperations):
        self._operations = operations
        self._opened: dict[int, tuple[str, list[bytes]]] = {}
        self._numbers = itertools.count(1)
        self._lock = Mutex()

    def open(self, path: str) -> int:
        """Open a directory by its path. Returns the number of the handle."""
        number = next(self._numbers)
        self._opened[number] = path, []
        return number

    def read(self, number: int, offset: int, nbytes: int) -> bytes:
        """Return entries from an offset as the kernel takes them, at most so many bytes; offset 0 lists anew."""
        path, entries = self._opened[number]
        if not offset:
            entries = self._entries(path)
            self._opened[number] = path, entries
        found = bytearray()
        for entry in entries[offset:]:
            if len(found) + len(entry) > nbytes:
                break
            found += entry
        return bytes(found)

    def _entries(self, path: str) -> list[bytes]:
        ino_of = self._operations.nodes.ino_of
        here = [(".", stat.S_IFDIR, ino_of(path)), ("..", stat.S_IFDIR, ino_of(posixpath.dirname(path)))]
        for name, info in self._operations.listing(path).items():
            kind = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
            here.append((name, kind, ino_of(f"{path}/{name}")))
        return [dirent(ino, at, kind, os.fsencode(name)) for at, (name, kind, ino) in enumerate(here, 1)]

    def sync(self, number: int) -> None:
        """Do nothing: names are the store's."""

    def release(self, number: int) -> None:
        """Forget a handle."""
        self._opened.pop(number, None)
