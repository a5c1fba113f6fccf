"""Areas of a software address space: ranges of addresses that map consecutive pages of one file.

A page of an area is shown through a translation (`PageTable`), which holds no reference
(docs/decisions/0003-page-tables-hold-no-references.md), or, where a private area was written to, by a copy of its own.
"""

import os
import sys
import weakref
from collections.abc import Callable
from typing import Protocol, cast

from pagecache._core import CopySource, CopyTarget, FileRaState, Mutex, PageTable, PrivatePage
from pagecache.mm.flags import VM_SHARED
from pagecache.mm.vm_fault import Mm, VmOperations
from pagecache.requests.backing import BackedMapping
from pagecache.units import PAGE_SHIFT, PAGE_SIZE
from pagecache.weak_members import WeakMembers


class MappableInode(Protocol):
    """What a map needs to know of the object behind a file: an `Inode`."""

    def acquire(self, *, writes: bool = False) -> None:
        """Count one more user of the object."""
        ...

    def release(self, *, writes: bool = False) -> None:
        """Count one user less."""
        ...

    def raise_if_changed(self, pos: int) -> None:
        """Raise OSError (ESTALE) if the object is not the one whose bytes are cached."""
        ...

    def set_size(self, size: int) -> None:
        """Truncate or extend the object, cache and store. Raises OSError."""
        ...


class Closable(Protocol):
    """What can be closed: a map."""

    def close(self) -> None:
        """Give it up. Idempotent."""
        ...


class MapOwner(Protocol):
    """What a map needs to know of its file's cache."""

    def closes_with(self, mapped: Closable) -> None:
        """Close a map, which may outlive its file, when the cache is closed."""
        ...


class MappableFile(Protocol):
    """What a map needs to know of an open file: a `File`."""

    is_random: bool

    @property
    def cache(self) -> MapOwner | None:
        """The cache that it was opened through, if any."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        ...

    @property
    def inode(self) -> MappableInode:
        """The object."""
        ...

    @property
    def mapping(self) -> BackedMapping:
        """Its cached pages."""
        ...

    @property
    def may_read(self) -> bool:
        """Whether it was opened for reading."""
        ...

    @property
    def may_write(self) -> bool:
        """Whether it was opened for writing."""
        ...

    @property
    def ra(self) -> FileRaState:
        """What readahead knows of it."""
        ...

    @property
    def vm_ops(self) -> VmOperations:
        """How the pages of its areas come."""
        ...

    def fit_window(self) -> None:
        """Fit the readahead window to what is known of the store now."""
        ...

    def _sync_pages(self, first: int, last: int, *, durable: bool, datasync: bool = False) -> None:
        """Write pages back and wait. Raises OSError."""
        ...


class MappedFile:
    """A file as its areas hold it: the object stays open until the last area, and the last fault in it, is gone.

    writes: whether stores into the areas change the object.
    """

    __slots__ = ("_inode", "_writes", "file", "mapping", "ra", "vm_ops")

    def __init__(self, file: MappableFile, writes: bool = False) -> None:
        file.inode.acquire(writes=writes)
        self._inode = file.inode
        self._writes = writes
        self.file = file
        self.mapping = file.mapping
        self.ra = file.ra
        self.vm_ops = file.vm_ops

    @property
    def is_random(self) -> bool:
        """Whether the file is advised to be read at random."""
        return self.file.is_random

    def fit_window(self) -> None:
        """Fit the file's readahead window, as long as the file itself is open."""
        if not self.file.closed:
            self.file.fit_window()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_inode") and not _is_finalizing():
            self._inode.release(writes=self._writes)


_maps_lock = Mutex()


def _after_fork_in_child() -> None:
    global _maps_lock
    _maps_lock = Mutex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def maps_of(mapping: BackedMapping) -> "WeakMembers[VirtualMemoryArea]":
    """Return the areas that map an object (i_mmap): what truncation has to visit."""
    if mapping.maps is None:
        with _maps_lock.held():
            if mapping.maps is None:
                mapping.maps = WeakMembers()
    return cast("WeakMembers[VirtualMemoryArea]", mapping.maps)


class VirtualMemoryArea:
    """A range of addresses that maps consecutive pages of one file.

    start, end: byte addresses, multiples of the page size. pgoff: page of the object at `start`. flags: VM_*.
    page_table, private_pages: shared with the other areas of the same `MemoryMap.mmap`.
    Context: changed with the mmap lock held exclusively.
    """

    __slots__ = (
        "__weakref__", "_mm", "end", "file", "flags", "mmap_lock", "ops", "page_table", "pgoff", "private_pages", "start",
    )  # fmt: skip

    def __init__(self, mm: Mm, start: int, end: int, flags: int, pgoff: int, file: MappedFile) -> None:
        self._mm = weakref.ref(mm)
        self.mmap_lock = mm.mmap_lock
        self.start = start
        self.end = end
        self.flags = flags
        self.pgoff = pgoff
        self.file = file
        self.ops = file.vm_ops
        self.page_table = PageTable(file.mapping, pgoff, (end - start) >> PAGE_SHIFT)
        self.private_pages: dict[int, PrivatePage] = {}
        maps_of(file.mapping).add(self)

    @property
    def mm(self) -> Mm:
        """The address space the area belongs to."""
        mm = self._mm()
        if mm is None:
            raise ReferenceError("the memory map of this area is gone")
        return mm

    @property
    def nr_pages(self) -> int:
        """Size (pages)."""
        return (self.end - self.start) >> PAGE_SHIFT

    def page_of(self, address: int) -> int:
        """Return the page of the object that an address shows."""
        return self.pgoff + ((address - self.start) >> PAGE_SHIFT)

    def unmap_object_pages(self, start: int, end: int, even_cows: bool = False) -> int:
        """Forget the translations of the object's pages [start, end). Returns how many there were.

        even_cows: private copies too.
        """
        start, end = max(start, self.pgoff), min(end, self.pgoff + self.nr_pages)
        if even_cows:
            for page in [page for page in tuple(self.private_pages) if start <= page < end]:
                self.private_pages.pop(page, None)
        return self.page_table.clear(start, end)

    def read_present(self, target: CopyTarget, done: int, address: int, nbytes: int) -> int:
        """Copy the mapped beginning of nbytes at an address to target[done:]. Returns the bytes copied."""
        position = (self.pgoff << PAGE_SHIFT) + address - self.start
        if not self.private_pages:
            return self.page_table.read_into(target, done, position, nbytes)
        copied = 0
        while copied < nbytes:
            piece = min(nbytes - copied, PAGE_SIZE - position % PAGE_SIZE)
            private = self.private_pages.get(position >> PAGE_SHIFT)
            if private is not None:
                got = private.read_into(target, done + copied, position % PAGE_SIZE, piece)
            else:
                got = self.page_table.read_into(target, done + copied, position, piece)
            copied += got
            position += got
            if got < piece:
                break
        return copied

    def write_present(self, source: CopySource, done: int, address: int, nbytes: int) -> int:
        """Store source[done:], nbytes of it, at an address, as far as the pages are mapped and free. Returns the bytes."""
        position = (self.pgoff << PAGE_SHIFT) + address - self.start
        if self.flags & VM_SHARED:
            return self.page_table.write_from(source, done, position, nbytes)
        stored = 0
        while stored < nbytes:
            private = self.private_pages.get(position >> PAGE_SHIFT)
            if private is None:
                break
            piece = min(nbytes - stored, PAGE_SIZE - position % PAGE_SIZE)
            private.write_from(source, done + stored, position % PAGE_SIZE, piece)
            stored += piece
            position += piece
        return stored

    def split(self, address: int) -> "VirtualMemoryArea":
        """Divide the area; returns the upper one, which keeps the translations."""
        upper = VirtualMemoryArea.__new__(VirtualMemoryArea)
        for name in ("_mm", "mmap_lock", "end", "flags", "file", "ops", "page_table", "private_pages"):
            setattr(upper, name, getattr(self, name))
        upper.start = address
        upper.pgoff = self.page_of(address)
        maps_of(self.file.mapping).add(upper)
        self.end = address
        return upper

    def continues(self, lower: "VirtualMemoryArea") -> bool:
        """Whether this area and the one below could be one."""
        return lower.end == self.start and lower.page_table is self.page_table and lower.flags == self.flags

    def __repr__(self) -> str:
        name = self.file.mapping.name
        return f"<VirtualMemoryArea {self.start:#x}-{self.end:#x} flags={self.flags:#x} page {self.pgoff} of {name!r}>"
