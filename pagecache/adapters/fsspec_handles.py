"""Files that a file system keeps open for calls that name a path and not a file, and the versions it has seen."""

from collections import OrderedDict
from collections.abc import Collection, Iterable

from pagecache._core import Mutex
from pagecache.cache import PageCache
from pagecache.files.file import File
from pagecache.files.versioned import VersionedFile
from pagecache.stores.base import is_within
from pagecache.stores.validators import Version

HANDLES_MAX = 512
VERSIONS_MAX = 8192


class Handles:
    """The files used most recently, by path, with the options of the call behind a "#" if there are any.

    epoch: how often something was forgotten. What was opened in an earlier epoch is not kept: it may be of before a change.
    Context: any thread; no lock is held while a file is closed.
    """

    def __init__(self, limit: int = HANDLES_MAX):
        self.epoch = 0
        self._limit = limit
        self._files: OrderedDict[str, File | VersionedFile] = OrderedDict()
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._lock = Mutex()

    def get(self, path: str, cache: PageCache) -> File | VersionedFile | None:
        """Return the open file of a path in a cache, or None."""
        with self._lock.held():
            file = self._files.get(path)
            if file is None or file.closed or file.cache is not cache:
                return None
            self._files.move_to_end(path)
            return file

    def put(self, path: str, file: File | VersionedFile, epoch: int) -> tuple[File | VersionedFile, bool]:
        """Keep a file of an epoch, unless another thread was faster. Returns the one to use, and whether it is kept."""
        closing = []
        with self._lock.held():
            if epoch != self.epoch:
                return file, False
            kept = self._files.get(path)
            if kept is not None and not kept.closed and kept.cache is file.cache:
                closing.append(file)
                file = kept
            else:
                self._files[path] = file
                self._files.move_to_end(path)
                if kept is not None:
                    closing.append(kept)
                if len(self._files) > self._limit:
                    closing.append(self._files.popitem(last=False)[1])
        for surplus in closing:
            surplus.close()
        return file, True

    def drop(self, path: str, file: File | VersionedFile) -> None:
        """Close a file, and keep it no longer."""
        with self._lock.held():
            if self._files.get(path) is file:
                del self._files[path]
        file.close()

    def forget(self, paths: Collection[str] | None) -> None:
        """Close the files of paths and of all below them, or all; and know no version of them any more."""
        with self._lock.held():
            self.epoch += 1
            files = [self._files.pop(known) for known in _within(self._files, paths)]
            for known in _within(self._versions, paths):
                del self._versions[known]
        for file in files:
            file.close()

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    def note_version(self, path: str, version: Version | None, epoch: int) -> None:
        """Remember what was seen of an object in an epoch."""
        with self._lock.held():
            if version is None or epoch != self.epoch:
                return
            self._versions[path] = version
            self._versions.move_to_end(path)
            if len(self._versions) > VERSIONS_MAX:
                self._versions.popitem(last=False)

    def known_version(self, path: str, recheck: bool | str | float) -> Version | None:
        """Return what is known of an object, if that is as recent as `recheck` wants it."""
        if recheck is True or isinstance(recheck, str):
            return None
        with self._lock.held():
            file, noted = self._files.get(path), self._versions.get(path)
        store = None if file is None or file.closed else file.inode.store
        seen = [version for version in (getattr(store, "known_version", None), noted) if version is not None]
        version: Version | None = max(seen, key=lambda one: one.checked_at, default=None)
        if version is None or (recheck is not False and version.age_s() >= recheck):
            return None
        return version


def _within(names: Iterable[str], paths: Collection[str] | None) -> list[str]:
    """Return the names that are one of the paths or below it, with any options; all for None."""
    return [name for name in names if paths is None or is_within(name, paths)]
