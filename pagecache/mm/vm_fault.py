"""One attempt at one fault, what it holds on its way to the page, and the operations of an area that serve it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from pagecache._core import FileRaState, Folio, PageTable, PrivatePage
from pagecache.mm.mmap_lock import MmapLock
from pagecache.requests.backing import BackedMapping


class Mm(Protocol):
    """What an area, and a fault in it, need to know of the address space that it belongs to: a `MemoryMap`."""

    mmap_lock: MmapLock
    fault_around_pages: int

    def count_fault(self, result: int, flags: int) -> None:
        """Count a fault that is over."""
        ...


class FaultFile(Protocol):
    """What a fault needs to know of the file that its area maps: a `MappedFile`."""

    mapping: BackedMapping
    ra: FileRaState

    @property
    def is_random(self) -> bool:
        """Whether the file is advised to be read at random."""
        ...

    def fit_window(self) -> None:
        """Fit the file's readahead window to what is known of the store now."""
        ...


class FaultArea(Protocol):
    """What a fault needs to know of the area it is in: a `VirtualMemoryArea`."""

    flags: int
    mmap_lock: MmapLock
    ops: "VmOperations"
    page_table: PageTable
    pgoff: int
    private_pages: dict[int, PrivatePage]

    @property
    def file(self) -> FaultFile:
        """The file that the area maps."""
        ...

    @property
    def mm(self) -> Mm:
        """The address space the area belongs to."""
        ...

    @property
    def nr_pages(self) -> int:
        """Size (pages)."""
        ...

    def page_of(self, address: int) -> int:
        """Return the page of the object that an address shows."""
        ...


class BusError(OSError):
    """An access to mapped memory that cannot be served: what hardware reports as SIGBUS.

    errno is EFAULT for a page beyond the end of the file, else the store's; the failed read is the cause.
    """


class VmFault:
    """One attempt at one fault: where, how, and what came of it.

    address: byte address in the map. flags: FAULT_FLAG_* of this attempt. pgoff: page of the object.
    folio: the page's folio, locked and referenced, when the result says LOCKED. error: what to raise for an error.
    mmap_locked: whether this attempt still holds the mmap lock.
    """

    __slots__ = ("address", "error", "flags", "folio", "mmap_locked", "orig_pte", "pgoff", "vma")

    def __init__(self, vma: FaultArea, address: int, flags: int) -> None:
        self.vma = vma
        self.address = address
        self.flags = flags
        self.pgoff = vma.page_of(address)
        self.folio: Folio | None = None
        self.orig_pte = False
        self.error: OSError | None = None
        self.mmap_locked = True

    def drop_mmap_lock(self) -> None:
        """Give up the mmap lock, and with it the right to look at the area."""
        self.vma.mmap_lock.unlock_shared()
        self.mmap_locked = False

    def fail(self, result: int, error: OSError) -> int:
        """Note the error that explains a result; returns the result."""
        self.error = error
        return result


class VmOperations(NamedTuple):
    """How the pages of an area come: what its faults call."""

    fault: Callable[[VmFault], int]
    map_pages: Callable[[VmFault, int, int], int] | None = None
    page_mkwrite: Callable[[VmFault], int] | None = None


class FaultWalk:
    """What a fault holds on its way to the page, to be given back wherever it ends.

    fpin: the file, kept by a fault that has dropped the mmap lock, else None.
    """

    __slots__ = ("folio", "folio_locked", "fpin", "mapping", "mapping_locked")

    def __init__(self, vmf: VmFault) -> None:
        self.mapping = vmf.vma.file.mapping
        self.folio: Folio | None = None
        self.folio_locked = False
        self.mapping_locked = False
        self.fpin: FaultFile | None = None

    def lock_mapping(self) -> None:
        """Share invalidate_lock, if that is not done yet."""
        if not self.mapping_locked:
            self.mapping.lock_shared()
            self.mapping_locked = True

    def unlock_mapping(self) -> None:
        """Give invalidate_lock back, if it is held."""
        if self.mapping_locked:
            self.mapping_locked = False
            self.mapping.unlock_shared()

    def put_folio(self) -> None:
        """Unlock the folio, if it is locked, and drop it."""
        folio, self.folio = self.folio, None
        if folio is not None:
            if self.folio_locked:
                self.folio_locked = False
                folio.unlock()
            folio.put()

    def give_back(self) -> None:
        """Release everything."""
        self.put_folio()
        self.unlock_mapping()
        self.fpin = None
