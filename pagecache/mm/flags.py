"""The words of the software address space: flags of areas and faults, results of faults, one fault, its lock."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pagecache._core import EventCount, Mutex

if TYPE_CHECKING:
    from pagecache._core import AddressSpace, Folio
    from pagecache.mm.memory_map import VirtualMemoryArea

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
WAIT_SLICE_S = 0.05  # a waiting thread looks again this often, even if nobody wakes it

# What an area allows, and how it will be read.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_LOCKED = 0x2000
VM_SEQ_READ = 0x8000
VM_RAND_READ = 0x10000
VM_DONTCOPY = 0x20000
VM_HUGEPAGE = 0x20000000
VM_NOHUGEPAGE = 0x40000000

# What came of a fault (a set of bits).
VM_FAULT_OOM = 0x1
VM_FAULT_SIGBUS = 0x2
VM_FAULT_MAJOR = 0x4
VM_FAULT_SIGSEGV = 0x40
VM_FAULT_NOPAGE = 0x100  # the page is mapped already
VM_FAULT_LOCKED = 0x200  # vmf.folio comes back locked and referenced
VM_FAULT_RETRY = 0x400  # the mmap lock was dropped: look the area up again
VM_FAULT_DONE_COW = 0x1000
VM_FAULT_COMPLETED = 0x4000  # the mmap lock was dropped, and all is done
VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV

# How a fault may be served.
FAULT_FLAG_WRITE = 0x1
FAULT_FLAG_MKWRITE = 0x2
FAULT_FLAG_ALLOW_RETRY = 0x4
FAULT_FLAG_RETRY_NOWAIT = 0x8  # give up with RETRY, lock kept, rather than wait for a folio lock
FAULT_FLAG_KILLABLE = 0x10
FAULT_FLAG_TRIED = 0x20  # the second attempt: the mmap lock is kept from now on
FAULT_FLAG_USER = 0x40
FAULT_FLAG_REMOTE = 0x80
FAULT_FLAG_INSTRUCTION = 0x100
FAULT_FLAG_INTERRUPTIBLE = 0x200
FAULT_FLAG_ORIG_PTE_VALID = 0x800  # vmf.orig_pte says what the page table held
FAULT_FLAG_MISSED = 0x10000  # an earlier attempt at this fault missed: it is counted, and readahead was done
FAULT_FLAG_DEFAULT = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE | FAULT_FLAG_INTERRUPTIBLE


def fault_flag_allow_retry_first(flags: int) -> bool:
    """Return whether the mmap lock may be dropped: only on the first attempt."""
    return flags & (FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED) == FAULT_FLAG_ALLOW_RETRY


class BusError(OSError):
    """An access to mapped memory that cannot be served: what hardware reports as SIGBUS.

    errno is EFAULT for a page beyond the end of the file, else the store's; the failed read is the cause.
    """


class MmapLock:
    """The lock of an address space: faults share it, changes of the areas exclude them.

    A waiting writer keeps new readers out, so it waits only for the faults that are under way. The lock knows its
    threads: to share it again, or to give back what one does not hold, does nothing. So take it inside `try` and give
    it back in `finally`; an exception from outside, wherever it strikes, then blocks nobody.
    Context: waits may be interrupted by a signal handler that raises.
    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._changed = EventCount()
        self._readers: set[int] = set()
        self._writer = 0
        self._writers_waiting: set[int] = set()

    @property
    def nr_readers(self) -> int:
        """Threads that share the lock now."""
        return len(self._readers)

    @property
    def write_locked(self) -> bool:
        """Whether a thread excludes all others now."""
        return self._writer != 0

    def lock_shared(self) -> None:
        """Share the lock with other readers."""
        me = threading.get_ident()
        if me not in self._readers:
            self._wait_until(lambda: self._try_share(me))

    def _try_share(self, me: int) -> bool:
        with self._lock.held():
            if self._writer or self._writers_waiting:
                return False
            self._readers.add(me)
            return True

    def unlock_shared(self) -> None:
        """Give this thread's share back, if it has one."""
        with self._lock.held():
            self._readers.discard(threading.get_ident())
            if self._writers_waiting and not self._readers:
                self._changed.advance()

    def lock_exclusive(self) -> None:
        """Exclude everybody else; a share that this thread has is given back first."""
        me = threading.get_ident()
        self.unlock_shared()
        try:
            self._writers_waiting.add(me)
            self._wait_until(lambda: self._try_exclude(me))
        finally:
            self._writers_waiting.discard(me)
            self._changed.advance()

    def _try_exclude(self, me: int) -> bool:
        with self._lock.held():
            if self._writer or self._readers:
                return False
            self._writer = me
            return True

    def unlock_exclusive(self) -> None:
        """Let the others in, if this thread has kept them out."""
        if self._writer == threading.get_ident():
            self._writer = 0
        self._changed.advance()

    def _wait_until(self, is_taken: Callable[[], bool]) -> None:
        while True:
            seen = self._changed.value
            if is_taken():
                return
            self._changed.wait(seen, WAIT_SLICE_S)


class VmFault:
    """One attempt at one fault: where, how, and what came of it.

    address: byte address in the map. flags: FAULT_FLAG_* of this attempt. pgoff: page of the object.
    folio: the page's folio, locked and referenced, when the result says LOCKED. error: what to raise for an error.
    mmap_locked: whether this attempt still holds the mmap lock.
    """

    __slots__ = ("address", "error", "flags", "folio", "mmap_locked", "orig_pte", "pgoff", "vma")

    def __init__(self, vma: "VirtualMemoryArea", address: int, flags: int) -> None:
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


class FaultWalk:
    """What a fault holds on its way to the page, to be given back wherever it ends.

    fpin: the file, kept by a fault that has dropped the mmap lock, else None.
    """

    __slots__ = ("folio", "folio_locked", "fpin", "mapping", "mapping_locked")

    def __init__(self, vmf: VmFault) -> None:
        self.mapping: AddressSpace = vmf.vma.file.mapping
        self.folio: Folio | None = None
        self.folio_locked = False
        self.mapping_locked = False
        self.fpin: Any = None

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
