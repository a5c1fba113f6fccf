"""What tests of faults share: one file of numbered pages, mapped, whose faults are driven one at a time."""

import contextlib
import threading

from pagecache import mm
from pagecache.filemap import FGP_CREAT, FGP_FOR_MMAP, filemap_fault, filemap_get_folio
from support import PAGE, PATIENCE_S, Store, frame_of, pages_of, wait_until

RA_PAGES = 32


class SizedStore(Store):
    """A store that can be truncated and extended, and looks around while it is read."""

    preferred_request = 64 * PAGE

    def __init__(self, data, key="sized", look=None):
        super().__init__(bytes(data), key)
        self.look = look
        self.seen = []
        self.error = None

    def answer(self, offset, buffers):
        if self.look is not None:
            self.seen.append(self.look())
        if self.error is not None:
            raise self.error
        return super().answer(offset, buffers)

    def writev(self, offset, buffers):
        raise AssertionError("no test writes")

    def truncate(self, size):
        self.data = self.data[:size].ljust(size, b"\0")


class Mapped:
    """A file in a cache, mapped from page `pgoff` on in an address space of its own."""

    def __init__(self, cache, nr_pages, *, store=None, pgoff=0, length=None, vm_flags=0):
        self.cache = cache
        self.data = pages_of(nr_pages * PAGE)
        self.store = store or SizedStore(self.data)
        self.file = cache.open(self.store, "r+b")
        self.mapping = self.file.mapping
        self.ra = self.file.ra
        self.ra.ra_pages = RA_PAGES  # a limit that was set stays, however fast the store is
        self.mm = mm.MemoryMap()
        self.start = self.mm.mmap(self.file, length or (nr_pages - pgoff) * PAGE, pgoff=pgoff)
        self.vma = self.mm.vma_lookup(self.start)
        self.vma.flags |= vm_flags

    def page(self, index):
        """Return the bytes of a page."""
        return self.data[index * PAGE : (index + 1) * PAGE]

    def address(self, index):
        """Return where a page of the object is mapped."""
        return self.start + (index - self.vma.pgoff) * PAGE

    def vmf(self, index, flags=mm.FAULT_FLAG_DEFAULT):
        """Return a fault at a page, with the mmap lock held."""
        self.mm.mmap_lock.lock_shared()
        return mm.VmFault(self.vma, self.address(index), flags)

    def fault(self, index, flags=mm.FAULT_FLAG_DEFAULT):
        """Run filemap_fault once. Returns (vmf, result)."""
        vmf = self.vmf(index, flags)
        return vmf, filemap_fault(vmf)

    def fault_and_leave(self, index, flags=mm.FAULT_FLAG_DEFAULT):
        """The same in a thread that then leaves: a page it got stays locked, the mmap lock does not."""
        vmf, result = self.fault(index, flags)
        if vmf.mmap_locked:
            vmf.drop_mmap_lock()
        return vmf, result

    def release(self, vmf):
        """Give back what a fault that is over holds."""
        if vmf.folio is not None:
            vmf.folio.unlock()
            vmf.folio.put()
            vmf.folio = None
        if vmf.mmap_locked:
            vmf.drop_mmap_lock()

    def bring_in(self, *indexes):
        """Cache single pages, without readahead and without mapping them."""
        for index in indexes:
            ra_pages, self.ra.ra_pages = self.ra.ra_pages, 0
            self.file.pread(1, index * PAGE)
            self.ra.ra_pages = ra_pages

    def create_empty(self, index):
        """Cache a page without data, as a fault does before it reads."""
        filemap_get_folio(self.mapping, index, FGP_CREAT | FGP_FOR_MMAP).put()

    def cached(self):
        """Return the pages that are cached."""
        out = set()
        for first, order, _ in self.mapping.folios():
            out.update(range(first, first + (1 << order)))
        return out

    def marked(self):
        """Return the first pages of the folios that carry the readahead marker."""
        firsts = [first for first, _, _ in self.mapping.folios()]
        return [first for first in firsts if self.mapping.get_folio(first).readahead]

    def mapped(self):
        """Return the pages whose translation holds."""
        pages = range(self.vma.pgoff, self.vma.pgoff + self.vma.nr_pages)
        return {index for index in pages if self.vma.page_table.present(index)}

    def count(self, name):
        """Return a counter of the cache."""
        return self.cache.stats().as_dict()[name]

    def invalidate_lock_is_held(self):
        """Whether a thread shares, or has, invalidate_lock now."""
        if self.mapping.trylock_exclusive():
            self.mapping.unlock_exclusive()
            return False
        return True

    def assert_released(self):
        """Check that no lock is held, and no extra reference."""
        assert self.mm.mmap_lock.nr_readers == 0 and not self.mm.mmap_lock.write_locked
        assert self.file.inode.wait_idle(PATIENCE_S)
        assert not self.invalidate_lock_is_held()
        for first, order, _ in self.mapping.folios():
            folio = self.mapping.get_folio(first)
            assert not folio.locked and folio.refcount == (1 << order) + 1
            folio.put()
        self.cache.check()


@contextlib.contextmanager
def in_thread(target):
    """Run a function beside the block; afterwards it must end. Yields a list that gets its result or exception."""
    results = []

    def run():
        try:
            results.append(target())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    results_of = Running(thread, results)
    yield results_of
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the thread hangs"


class Running:
    """A thread and what came of it."""

    def __init__(self, thread, results):
        self.thread = thread
        self._results = results

    def wait_inside(self, function):
        """Return when the thread is in a function of that name."""
        wait_until(lambda: self.is_inside(function), f"the thread to be in {function}")

    def is_inside(self, function):
        """Whether a function of that name is on the thread's stack."""
        frame = frame_of(self.thread.ident)
        while frame is not None:
            if frame.f_code.co_name == function:
                return True
            frame = frame.f_back
        return False

    def result(self):
        """Return the result, after the thread has ended; raises its exception."""
        self.thread.join(PATIENCE_S)
        assert self._results, "the thread hangs"
        if isinstance(self._results[0], BaseException):
            raise self._results[0]
        return self._results[0]
