"""Which version of an object is cached, and what happens when the store has another.

Local files are distinguished by mtime, ctime and size (core/stamp.pxd); a change of bytes moves ctime, which no program can
set.  But so does every change of mode, owner, names and attributes.  So when ctime alone has moved, the bytes that are
cached are compared with the file's: if they agree, it is the version that is cached, and if not, it is another.  If there
is too much to compare, clean pages are dropped instead, and read anew: readers that are under way start over.
What is written here and not yet in the file cannot be compared.  Then the change of ctime has to have another reason that
can be seen: mode, owner, number of names or name of the file are others than they were.  Without one, the file is taken
for changed.
"""

import errno
import operator
import os
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from pagecache import _core, truncate
from pagecache._core import STAMP_DOUBTFUL, STAMP_SAME
from pagecache.requests import fill
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import look_of
from pagecache.stores.base import BackingStore
from pagecache.stores.validators import Version
from pagecache.units import LAST_PAGE, PAGE_SHIFT
from pagecache.writeback.flusher import is_dirty
from pagecache.writeback.own_writes import ForeignChange, foreign_change

SIZE_MAX = (1 << 63) - 1
ALL_ON_DISK = (1 << 64) - 1
COMPARED_PAGES_MAX = 16384  # 64 MiB; above that reading what is wanted again costs less than comparing all
_Result = TypeVar("_Result")
Attributes = tuple[int, int, int, int, str | bool]  # mode, owner, group, names; its name, or whether it has its own


class DescriptorStore(BackingStore, Protocol):
    """A store that is read through an open file of the system."""

    fd: int


class ObjectVersion:
    """The side of an `Inode` that knows which version its pages are of."""

    mapping: BackedMapping
    store: BackingStore | None
    known_version: Version | None
    nr_open: int

    def __init__(self) -> None:
        self.nr_versions = 0  # how often a version was taken for that of the cached bytes
        self._attributes: Attributes | None = None  # of the local file, when that was last done

    @property
    def _serving(self) -> BackingStore:
        """The store of an object that is open."""
        assert self.store is not None
        return self.store

    # -- looking -------------------------------------------------------------------------------------------------------

    def is_version(self, store: BackingStore) -> bool:
        """Whether another store of the same key has the bytes that are cached here."""
        if getattr(store, "is_immutable", False):  # its user promises that it never changes
            known = self.known_version if self.store is None else getattr(self.store, "known_version", None)
            return known is None or known.validator in (None, self.mapping.validator)
        return self.mapping.validator is not None and self.mapping.backing.is_current(self.mapping, store)

    def serves(self, store: BackingStore) -> bool:
        """Whether a file opened on another store of the same key shares the pages: they are one version, or that is not
        known, and the object is in use."""
        if self.mapping.validator is None:
            return self.nr_open > 0 or is_dirty(self)
        return self.is_version(store)

    def is_doubtful(self, store: BackingStore) -> bool:
        """Whether only `look_closer` can see if another store of the same key has the bytes that are cached here. For an
        object that is not used it is not worth it."""
        fd = getattr(store, "fd", -1)
        if self.mapping.fd < 0 or not isinstance(fd, int) or fd < 0 or not (self.nr_open or is_dirty(self)):
            return False
        return self.mapping.stamp_state(fd) == STAMP_DOUBTFUL

    def raise_if_changed(self, pos: int) -> None:
        """Raise OSError (ESTALE) if the object is not the one whose bytes are cached."""
        if self.store is None:
            return
        if not self.mapping.backing.is_current(self.mapping) and not self.look_closer():
            raise fill.stale_error(self.mapping, pos)

    def look_closer(self) -> bool:
        """Whether an object that seems to be another one is the one that is cached after all: nothing but attributes of the
        file were changed, and it is taken for known as it is now.

        Raises OSError: the file cannot be read. Context: no folio lock, no invalidate_lock held; waits for reads.
        """
        if self.mapping.fd < 0:
            return False
        with self.mapping.exclusive():
            return self._look_closer()

    def holds_after_all(self, error: OSError) -> bool:
        """Whether what failed with this error is to be tried again. Context: as `look_closer`."""
        return error.errno == errno.ESTALE and self.look_closer()

    def _is_current(self) -> bool:
        """Whether the object is the one that is cached. Context: invalidate_lock exclusive."""
        return self.mapping.backing.is_current(self.mapping) or self._look_closer()

    def _look_closer(self) -> bool:
        """Context: invalidate_lock exclusive, so no read is under way; store_lock keeps write-back out."""
        mapping = self.mapping
        if mapping.fd < 0 or self.store is None:
            return False
        with mapping.store_lock.held():
            state = mapping.stamp_state()
            if state != STAMP_DOUBTFUL:
                return state == STAMP_SAME
            status, attributes = os.fstat(mapping.fd), self._attributes_of_file()
            stamp = mapping.stamp
            if (status.st_mtime_ns, status.st_size) != (stamp[0], stamp[2]):
                return False
            if (is_dirty(self) and attributes == self._attributes) or not agrees_with_file(mapping):
                return False
            self._note_version()
            self._attributes = attributes
            mapping.set_stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        return True

    # -- taking --------------------------------------------------------------------------------------------------------

    def _take_version(self) -> None:
        """Take the store's present version for that of the cached bytes. Size and bytes are read afterwards."""
        mapping = self.mapping
        before = mapping.stamp if mapping.fd >= 0 else mapping.validator
        mapping.validator = self._serving.validator()
        mapping.backing.has_lost_version = False
        if mapping.fd >= 0:
            self._attributes = self._attributes_of_file()
            mapping.take_stamp()
        if before != (mapping.stamp if mapping.fd >= 0 else mapping.validator):
            self._note_version()

    def _note_name(self) -> None:
        """Note by which name the file is known from now on: another descriptor may be of another name."""
        if self._attributes is not None and isinstance(getattr(self.store, "fd", None), int):
            self._attributes = (*self._attributes[:-1], self._attributes_of_file()[-1])

    def _attributes_of_file(self) -> Attributes:
        return attributes_of(cast(DescriptorStore, self.store))

    def _note_version(self) -> None:
        """Have reads that are under way start over: what they have copied may be of another version."""
        self.nr_versions += 1
        self.mapping.recount_reads()

    def take_anew(self) -> None:
        """Go on with the object as it is in the store now, with nothing cached. Context: inode lock, invalidate_lock
        exclusive. Raises OSError (EBUSY)."""
        truncate.invalidate_inode_pages2_range(self.mapping, 0, LAST_PAGE)
        self._take_version()
        self.mapping.size = size_of(self._serving)
        self.mapping.disk_size = ALL_ON_DISK

    def invalidate(self, offset: int = 0, length: int = 0, *, discard: bool = False) -> None:
        """Drop pages of a byte range; with no range take size and version anew.

        discard: what is dirty goes too, unwritten, of the whole object; else it is an OSError (EBUSY).
        """
        mapping = self.mapping
        with mapping.inode_locked(), mapping.exclusive():  # a writer may not extend what is taken anew
            if discard:
                truncate.truncate_inode_pages(mapping, 0)
            if offset == 0 and length == 0:
                self.take_anew()
                return
            last = (offset + length - 1) >> PAGE_SHIFT if length else LAST_PAGE
            truncate.invalidate_inode_pages2_range(mapping, offset >> PAGE_SHIFT, last)

    def before_change(self, at_end: bool) -> None:
        """Before something becomes dirty and nothing was: see that others have not changed the object. If they have, an
        append goes on with it as it is. Raises ForeignChange. Context: inode lock held."""
        with self.mapping.exclusive():
            self.before_change_locked(at_end)

    def before_change_locked(self, at_end: bool) -> None:
        """The same. Context: invalidate_lock exclusive, too."""
        mapping = self.mapping
        if self._is_current() and (mapping.validator is not None or size_of(self._serving) == self._known_size()):
            return
        if not at_end or is_dirty(self):
            raise foreign_change(mapping)
        self.take_anew()

    def _known_size(self) -> int:
        """Return how large the store's object is, as far as the cache knows (bytes)."""
        disk_size = self.mapping.disk_size
        return self.mapping.size if disk_size == ALL_ON_DISK else disk_size

    # -- changing ------------------------------------------------------------------------------------------------------

    def own_change(self, change: Callable[[], _Result]) -> _Result:
        """Make a change of the store, which `own_write` lets through if others have not changed it. Raises ForeignChange.

        Context: invalidate_lock exclusive.
        """
        while True:
            if self.mapping.fd >= 0 and not self._is_current():
                raise foreign_change(self.mapping)
            try:
                return change()
            except ForeignChange as error:
                if not error.is_doubtful:
                    raise


def size_of(store: BackingStore) -> int:
    """Return the size of a store's object (bytes). Raises TypeError and ValueError for what is no size."""
    try:
        size = operator.index(store.size())
    except TypeError as error:
        raise TypeError(f"size() of store {store.key!r} returned no number of bytes: {error}") from None
    if not 0 <= size <= SIZE_MAX:
        raise ValueError(f"size() of store {store.key!r} returned {size}: it must be in 0..{SIZE_MAX}")
    return size


def attributes_of(store: DescriptorStore) -> Attributes:
    """Return what of an open local file explains why its ctime has moved though its bytes are the same."""
    status = os.fstat(store.fd)
    try:
        name: str | bool = os.readlink(f"/proc/self/fd/{store.fd}")
    except OSError:
        name = _is_named(status, getattr(store, "path", ""))
    return status.st_mode, status.st_uid, status.st_gid, status.st_nlink, name


def _is_named(status: os.stat_result, path: str) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False


def agrees_with_file(mapping: BackedMapping) -> bool:
    """Whether the clean cached pages of a local file have its bytes; more than a certain amount is dropped instead.

    Raises OSError. Context: invalidate_lock exclusive, store_lock held; reads the file, waits for folio locks.
    """
    drops = mapping.nrpages > COMPARED_PAGES_MAX
    index: int | None = 0
    while index is not None:
        folios, index = _core.find_folios(mapping, index, LAST_PAGE)
        with truncate.referenced(folios):
            for folio in folios:
                folio.lock(look_of(mapping))
                try:
                    if folio.mapping_number != mapping.number or folio.dirty or folio.writeback or not folio.uptodate:
                        continue
                    if drops:
                        truncate.unmap_mapping_pages(mapping, folio.index, folio.nr_pages)
                        mapping.remove_unless_dirty(folio)
                    elif not mapping.file_agrees(folio):
                        return False
                finally:
                    folio.unlock()
    return True
