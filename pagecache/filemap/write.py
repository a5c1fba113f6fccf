"""Buffered writes, as far as they need more than cached pages that are not held otherwise.

The rules: docs/kernel.md, buffered writes.

The pages of a write are brought into a state in which they can be written one after the other: created, if nothing of
them is in the store or all of it is overwritten; read first, if they are written in part.  Then bytes go in, and i_size
grows, while the folio is locked; what is dirty goes to the store later (`writeback`).
"""

import errno
from typing import Protocol

from pagecache._core import CopySource, Folio
from pagecache.mm import flags
from pagecache.mm.vm_fault import BusError, VmFault
from pagecache.requests import fill
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import look_of
from pagecache.units import MAX_FOLIO_ORDER, PAGE_SHIFT, PAGE_SIZE
from pagecache.writeback.throttle import wait_for_dirty_room

ORDER_PART = 8  # a folio that is made for a write is at most this part of what may be dirty, and of the cache


class WrittenFile(Protocol):
    """What writing needs to know of an open file: a `File`."""

    @property
    def mapping(self) -> BackedMapping:
        """The cached pages of its object."""
        ...

    @property
    def drop_behind(self) -> bool:
        """Whether pages that it brings in leave the cache once they have been written back."""
        ...

    def _write_cached(self, source: CopySource, done: int, pos: int) -> int:
        """Go on on the hit path. Return how much of the source is written."""
        ...


def generic_perform_write(file: WrittenFile, source: CopySource, done: int, pos: int) -> None:
    """Write source[done:] at byte pos + done of a file's object, all of it.

    Raises OSError: a page that is written in part cannot be read; no page can be had, or become dirty.
    Context: inode lock held; may wait for memory, for folio locks, for the store.
    """
    mapping = file.mapping
    while done < len(source):
        folio = write_begin(mapping, pos + done, len(source) - done, dropbehind=file.drop_behind)
        with folio:
            wrote = _write_folio(mapping, folio, source, done, pos + done)
        if wrote:
            done = file._write_cached(source, done + wrote, pos)
        else:
            wait_for_dirty_room(mapping)


def _write_folio(mapping: BackedMapping, folio: Folio, source: CopySource, done: int, pos: int) -> int:
    """Write what a locked folio holds of the rest. Returns the bytes, 0 when too much is dirty: the folio is then as
    before, or, if it was new, gone."""
    if folio.uptodate:
        if folio.nr_pages > mapping.segment.dirty_limits[0] and not folio.dirty:
            folio.split(pos >> PAGE_SHIFT)
            if not folio.is_page_of(mapping, pos >> PAGE_SHIFT):
                return 0
        return folio.write(mapping, source, done, pos)
    wrote = folio.write_new(mapping, source, done, pos)
    if not wrote:
        mapping.remove_folio(folio)
    return wrote


def write_begin(mapping: BackedMapping, pos: int, nbytes: int, *, dropbehind: bool = False) -> Folio:
    """Return the folio that holds byte pos, locked: uptodate, or new and with nothing of it worth reading.

    dropbehind: a folio that has to be made leaves the cache when it has been written back.
    Raises OSError, CacheFullError. Context: inode lock held.
    """
    while True:
        try:
            folio = _try_to_begin(mapping, pos, nbytes, dropbehind)
        except OSError as error:
            if error.errno != errno.ESTALE or not mapping.backing.look_closer():
                raise
            continue
        if folio is not None:
            return folio


def _try_to_begin(mapping: BackedMapping, pos: int, nbytes: int, dropbehind: bool) -> Folio | None:
    """As `write_begin`; None: look the page up again."""
    index = pos >> PAGE_SHIFT
    folio = mapping.get_folio(index)
    if folio is None:
        return _create(mapping, pos, nbytes, dropbehind)
    return folio if _lock_page(mapping, folio, index) else None


def _lock_page(mapping: BackedMapping, folio: Folio, index: int) -> bool:
    """Lock a cached folio and make it uptodate. False: look the page up again; the reference is gone."""
    try:
        folio.lock(look_of(mapping))
        if folio.is_page_of(mapping, index):
            if folio.uptodate:
                if mapping.backing is not None and mapping.backing.hints.stable_writes:
                    folio.wait_writeback()
                return True
            folio.unlock()
            _read_page(mapping, folio)
        else:
            folio.unlock()
    except BaseException:
        folio.put()
        raise
    folio.put()
    return False


def _read_page(mapping: BackedMapping, folio: Folio) -> None:
    """Read a cached folio, unless others do."""
    with mapping.shared():
        if not folio.trylock():
            return
        if folio.mapping_number == mapping.number and not folio.uptodate:
            fill.read_locked_folio(mapping, folio)
        else:
            folio.unlock()


def _create(mapping: BackedMapping, pos: int, nbytes: int, dropbehind: bool) -> Folio | None:
    """Add the folio of a missing page, locked, or read it in; None: look the page up again."""
    index = pos >> PAGE_SHIFT
    first = index << PAGE_SHIFT
    on_disk = mapping.disk_size
    reads_head = first < min(pos, on_disk)
    reads_tail = pos + nbytes < min(first + PAGE_SIZE, on_disk)
    if reads_head or reads_tail:
        _create_and_read(mapping, index)
        return None
    order = _order_for(mapping, index, pos, nbytes)
    folio = mapping.segment.alloc_folio(order, False) if order else None
    if folio is None:
        folio = fill.alloc_folio(mapping.segment)
    result = mapping.add_folio(folio, folio_start(index, folio), writing=True, dropbehind=dropbehind)
    if result == -errno.EEXIST and folio.order > 0:
        folio.put()
        folio = fill.alloc_folio(mapping.segment)
        result = mapping.add_folio(folio, index, writing=True, dropbehind=dropbehind)
    if result == 0:
        return folio
    folio.put()
    if result != -errno.EEXIST:
        raise fill.cache_full(mapping.segment)
    return None


def folio_start(index: int, folio: Folio) -> int:
    """Return the first page of a folio of that size that holds a page."""
    return index & ~(folio.nr_pages - 1)


def _order_for(mapping: BackedMapping, index: int, pos: int, nbytes: int) -> int:
    """Return how large a new folio may be: as large as alignment and the write allow, but a small part of the cache."""
    nr_pages = nbytes >> PAGE_SHIFT if pos == index << PAGE_SHIFT else 0
    nr_pages = min(nr_pages, mapping.segment.dirty_limits[0] // ORDER_PART, mapping.segment.nr_frames // ORDER_PART)
    order = min(max(nr_pages.bit_length() - 1, 0), MAX_FOLIO_ORDER)
    return min(order, (index & -index).bit_length() - 1) if index else order


def _create_and_read(mapping: BackedMapping, index: int) -> None:
    """Read one missing page, which will be written in part."""
    with fill.alloc_folio(mapping.segment) as folio, mapping.shared():
        result = mapping.add_folio(folio, index)
        if result == 0:
            fill.read_locked_folio(mapping, folio)
        elif result != -errno.EEXIST:
            raise fill.cache_full(mapping.segment)


def filemap_page_mkwrite(vmf: VmFault) -> int:
    """Let a page of a shared map be written: it becomes dirty, and waits until the store lets it change.

    Returns LOCKED with vmf.folio locked, NOPAGE if the page was truncated meanwhile, or an error, with vmf.error.
    Context: mmap lock held shared; may wait for write-back.
    """
    mapping, folio = vmf.vma.file.mapping, vmf.folio
    assert folio is not None
    while True:
        folio.lock(look_of(mapping))
        if not folio.is_page_of(mapping, vmf.pgoff) or not folio.uptodate:
            folio.unlock()
            return flags.VM_FAULT_NOPAGE
        if folio.nr_pages > mapping.segment.dirty_limits[0] and not folio.dirty and folio.split(vmf.pgoff):
            folio.unlock()
            return flags.VM_FAULT_NOPAGE
        if folio.mark_dirty():
            if mapping.backing.hints.stable_writes:
                folio.wait_writeback()
            return flags.VM_FAULT_LOCKED
        folio.unlock()
        try:
            wait_for_dirty_room(mapping)
        except OSError as error:
            bus_error = BusError(error.errno, error.strerror)
            bus_error.__cause__ = error
            return vmf.fail(flags.VM_FAULT_SIGBUS, bus_error)
