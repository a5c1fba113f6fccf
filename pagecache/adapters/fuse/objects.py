"""The objects of an fsspec file system as a mounted file system: read-only, or changed as a whole."""

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

import mmh3

from pagecache.adapters.fuse.files import WRITE_FLAGS, errno_error
from pagecache.adapters.fuse.linked import LinkedNames
from pagecache.adapters.fuse.object_files import ObjectFiles, ObjectNode
from pagecache.adapters.fuse.unlinked import HIDDEN
from pagecache.stores.errors import meant_error
from pagecache.stores.fsspec_instances import own_instance

SECTOR, BLOCK = 512, 4096
TIMEOUT_S = 1.0
LISTED_S = 5.0  # how long what a listing said of an object is believed
NS = 10**9
KEPT_MAX = 1 << 16


class ObjectOperations:
    """What libfuse asks for, of the objects below a URL.

    cache: whose pages are used. url, storage_options: as fsspec takes them. write_back: whether objects can be changed.
    kernel_cache, ready: as for `DirectoryOperations`. options: `recheck`, `on_change`.
    Raises ImportError, OSError.
    """

    use_ns = True

    def __init__(
        self,
        cache: Any,
        url: str,
        storage_options: dict[str, Any],
        *,
        write_back: bool = False,
        kernel_cache: bool = False,
        ready: Callable[[], None] | None = None,
        **options: Any,
    ):
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(url, **storage_options)
        self.fs = own_instance(fs)
        self.can_write = write_back
        self.kernel_cache = kernel_cache
        self._ready = ready
        self.files = ObjectFiles(cache, self.fs, **options)
        self.linked = LinkedNames()
        self.virtual_xattrs: dict[str, bytes] = {}
        self._hidden: dict[str, ObjectNode] = {}
        self._directories: set[str] = set()  # made here, and perhaps empty
        self._listed: dict[str, tuple[float, dict[str, Any]]] = {}  # path -> when, what
        self._opened_directories: dict[int, str] = {}
        self._numbers = itertools.count(1)
        self._kept: dict[str, str | None] = {}  # path -> validator of the bytes that the kernel may have
        self._started_ns = time.time_ns()
        self.root, self._only = root.rstrip("/"), ""
        if not url.endswith("/"):
            self._look_at_root()

    def _look_at_root(self) -> None:
        """Find out whether the URL is one object: then that is all there is. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if self._ask(self.fs.info, self.root)["type"] == "file":
                self.root, _, self._only = self.root.rpartition("/")

    def configure(self, conn: Any, config: Any) -> None:
        """Set what libfuse asks for when the mount begins."""
        config.entry_timeout = config.attr_timeout = TIMEOUT_S
        if self._ready is not None:
            self._ready()

    def finish(self) -> None:
        """Put what is not put yet, when the mount is gone. Raises OSError after all was tried."""
        errors = []
        for node in self.files.nodes():
            try:
                self.files.put(node)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # -- asking --------------------------------------------------------------------------------------------------------

    def _ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except Exception as error:
            raise meant_error(error, str(args[0])) or error from error

    def _remote(self, path: str) -> str:
        if self._only and path != f"/{self._only}":
            raise errno_error(errno.ENOENT, path)
        return self.root + path

    def _info(self, path: str) -> dict[str, Any]:
        """Return what fsspec knows of an object or directory. Raises OSError."""
        if path in self._directories:
            return {"type": "directory"}
        when, found = self._listed.get(path, (0.0, None))
        if found is not None and time.monotonic() - when < LISTED_S:
            return found
        remote = self._remote(path)
        self.fs.invalidate_cache(os.path.dirname(remote))
        found = self._ask(self.fs.info, remote)
        self._listed[path] = (time.monotonic(), found)
        return found

    def _list(self, path: str) -> dict[str, dict[str, Any]]:
        """Return what a directory holds, by name."""
        remote = self.root + (path if path != "/" else "")
        if self._only:
            return {self._only: self._info(f"/{self._only}")}
        self.fs.invalidate_cache(remote)
        entries = {}
        try:
            listed = self._ask(self.fs.ls, remote + "/" if "://" in remote else remote, detail=True)
        except FileNotFoundError:
            if path != "/" and path not in self._directories:
                raise
            listed = []
        for info in listed:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if name and info["name"].rstrip("/") != remote.rstrip("/"):
                entries[name] = info
        now, base = time.monotonic(), path.rstrip("/")
        for name, info in entries.items():
            self._listed[f"{base}/{name}"] = (now, info)
        for made in list(self._directories):
            if os.path.dirname(made) == path:
                entries.setdefault(os.path.basename(made), {"type": "directory"})
        return entries

    def _forget(self, *paths: str) -> None:
        for path in paths:
            self._listed.pop(path, None)
            self.fs.invalidate_cache(os.path.dirname(self.root + path))

    # -- attributes ----------------------------------------------------------------------------------------------------

    def attributes(self, path: str | None, number: int | None) -> dict[str, int]:
        """Return the fields of a struct stat: modes and owners are made up, as objects have none."""
        node = self.files.node(number) if number is not None else None
        node = node or self._hidden.get(os.path.basename(path or ""))
        if node is None and path == "/":
            return self._fields(path, stat.S_IFDIR, 0, self._started_ns)
        assert path is not None or node is not None
        node = node or self.files.find(self._remote(str(path)))
        if node is not None and node.size is not None:
            return self._fields(node.remote, stat.S_IFREG, node.size, node.mtime_ns, is_gone=node.is_gone)
        info = self._info(str(path) if path is not None else node.remote[len(self.root) :])  # type: ignore[union-attr]
        if info["type"] == "directory":
            return self._fields(str(path), stat.S_IFDIR, 0, self._started_ns)
        size = info.get("size")
        if size is None:  # a listing may leave it out
            self._listed.pop(str(path), None)
            size = self._info(str(path)).get("size") or 0
        return self._fields(str(path), stat.S_IFREG, size, self._mtime_ns(info))

    def _mtime_ns(self, info: dict[str, Any]) -> int:
        """Return the time of the last change, as far as fsspec tells it, else that of the mount."""
        for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
            value: Any = info.get(name)
            if isinstance(value, (int, float)):
                return int(value * NS)
            if hasattr(value, "timestamp"):
                return int(value.timestamp() * NS)
        return self._started_ns

    def _fields(self, path: str, kind: int, size: int, mtime_ns: int, is_gone: bool = False) -> dict[str, int]:
        bits = 0o755 if kind == stat.S_IFDIR else 0o644
        return {
            "st_mode": kind | (bits if self.can_write else bits & ~0o222),
            "st_ino": mmh3.hash64(path, signed=False)[0] or 1,
            "st_dev": 0,
            "st_nlink": 0 if is_gone else 2 if kind == stat.S_IFDIR else 1,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_size": size,
            "st_blksize": BLOCK,
            "st_blocks": -(-size // SECTOR),
            "st_rdev": 0,
            "st_atime_ns": mtime_ns,
            "st_mtime_ns": mtime_ns,
            "st_ctime_ns": mtime_ns,
        }

    def chmod(self, path: str | None, mode: int, number: int | None) -> None:
        """Refuse: objects have no modes."""
        raise errno_error(errno.EOPNOTSUPP, str(path))

    def chown(self, path: str | None, uid: int, gid: int, number: int | None) -> None:
        """Refuse: objects have no owners."""
        raise errno_error(errno.EOPNOTSUPP, str(path))

    def utimens(self, path: str | None, times: tuple[int | None, int | None], number: int | None) -> None:
        """Do nothing: an object's time is that of its put."""

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """Return an extended attribute of the mount itself."""
        if path == "/" and name in self.virtual_xattrs:
            return self.virtual_xattrs[name]
        raise errno_error(errno.ENODATA, path)

    def listxattr(self, path: str) -> list[str]:
        """Return no names."""
        return []

    # -- names ---------------------------------------------------------------------------------------------------------

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """Yield names with their types."""
        directory = self._opened_directories[fh]
        for name in (".", ".."):
            yield name, {"st_mode": stat.S_IFDIR, "st_ino": 1}, 0
        for name, info in self._list(directory).items():
            kind = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
            yield name, {"st_mode": kind, "st_ino": mmh3.hash64(name, signed=False)[0] or 1}, 0

    def opendir(self, path: str) -> int:
        """Remember which directory a handle is."""
        number = next(self._numbers)
        self._opened_directories[number] = path
        return number

    def releasedir(self, path: str | None, fh: int) -> None:
        """Forget a handle."""
        self._opened_directories.pop(fh, None)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory: in most stores it is there as long as the mount, or something in it."""
        with contextlib.suppress(FileExistsError, NotImplementedError):
            self._ask(self.fs.mkdir, self._remote(path), create_parents=False)
        self._directories.add(path)
        self._forget(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        if self._list(path):
            raise errno_error(errno.ENOTEMPTY, path)
        with contextlib.suppress(FileNotFoundError, NotImplementedError):
            self._ask(self.fs.rmdir, self._remote(path))
        self._directories.discard(path)
        self._forget(path)

    def unlink(self, path: str) -> None:
        """Remove an object."""
        if self._hidden.pop(os.path.basename(path), None) is None:
            self._ask(self.fs.rm_file, self._remote(path))
            self._forget(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename: most stores copy and remove. An open object that is replaced lives on for those who have it open."""
        if flags:
            raise errno_error(errno.EINVAL, new)
        if HIDDEN.fullmatch(os.path.basename(new)):
            node = self.files.remove(self._remote(old))
            if node is not None:
                self._hidden[os.path.basename(new)] = node
            self._ask(self.fs.rm_file, self._remote(old))
            self._forget(old)
            return
        if self._info(old)["type"] == "directory":
            raise errno_error(errno.EXDEV, new)  # programs copy then
        node = self.files.find(self._remote(old))
        if node is not None:
            self.files.put(node)
        self._ask(self.fs.mv, self._remote(old), self._remote(new))
        self.files.renamed(self._remote(old), self._remote(new))
        self._forget(old, new)

    # -- open objects --------------------------------------------------------------------------------------------------

    def open(self, path: str, info: Any) -> None:
        """Open an object."""
        self._opened(path, info, is_new=False)

    def create(self, path: str, mode: int, info: Any) -> None:
        """Make an object, and open it."""
        self._opened(path, info, is_new=True)

    def _opened(self, path: str, info: Any, *, is_new: bool) -> None:
        if info.flags & WRITE_FLAGS and not self.can_write:
            raise errno_error(errno.EROFS, path)
        self._listed.pop(path, None)
        info.fh = self.files.open(self._remote(path), info.flags | (os.O_RDWR if is_new else 0), is_new=is_new)
        info.direct_io = not self.kernel_cache
        validator = self.files.validator(info.fh)
        info.keep_cache = validator is not None and self._kept.get(path) == validator
        self._kept[path] = validator
        while len(self._kept) > KEPT_MAX:
            self._kept.pop(next(iter(self._kept)), None)
        if not info.flags & WRITE_FLAGS and not is_new and hasattr(info, "noflush"):
            info.noflush = 1

    def truncate(self, path: str | None, length: int, number: int | None) -> None:
        """Set the size."""
        if number is not None:
            self.files.truncate(number, length)
            return
        number = self.files.open(self._remote(str(path)), os.O_RDWR)
        try:
            self.files.truncate(number, length)
            self.files.flush(number)
        finally:
            self.files.release(number)

    def flush(self, path: str | None, info: Any) -> None:
        """Put what was changed, as a descriptor is closed."""
        self.files.flush(info.fh)

    def fsync(self, path: str | None, datasync: int, info: Any) -> None:
        """Put what was changed."""
        self.files.flush(info.fh)

    def release(self, path: str | None, info: Any) -> None:
        """Close for good."""
        self.files.release(info.fh)
