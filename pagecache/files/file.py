"""An open file: everything of its interface that is not hot.  The hit path is in the extension type it extends."""

import io
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from pagecache import filemap, truncate, writeback
from pagecache._core import CacheFullError, CopyTarget, FileRaState, Folio, view_of_copy
from pagecache.buffers import Buffer
from pagecache.files import aio
from pagecache.files import ranges as _ranges
from pagecache.files.inode import Inode
from pagecache.files.prefetch import Prefetch
from pagecache.files.reopening import Reduced, reduced
from pagecache.files.writing import FileWrites
from pagecache.mm.mmap_object import Mmap, map_file
from pagecache.mm.vma import Closable
from pagecache.requests import fill
from pagecache.stats.numbers import FileStats
from pagecache.stores.abandoned import Calls
from pagecache.units import MAX_FOLIO_ORDER, PAGE_SHIFT, PAGE_SIZE

ACCESS_DEFAULT, ACCESS_READ, ACCESS_WRITE, ACCESS_COPY = 0, 1, 2, 3
FADV_NORMAL, FADV_RANDOM, FADV_SEQUENTIAL, FADV_WILLNEED, FADV_DONTNEED, FADV_NOREUSE = range(6)
VIEW_REMEDY = "use iter_views, which copies nothing, or pread"
VIEW_BYTES_MIN = 16 * 1024  # below it a copy costs less than a view, and pins nothing
PINNED_SHARE = 4  # buffers that others keep may pin a quarter of the cache


def _checked_range(offset: int, length: int) -> tuple[int, int]:
    """Return a byte range as two ints. Raises TypeError and ValueError."""
    offset, length = operator.index(offset), operator.index(length)
    if offset < 0 or length < 0:
        raise ValueError(f"offset and length must not be negative, not {offset} and {length}")
    return offset, length


class CacheStat(NamedTuple):
    """What `File.cachestat` counts (pages)."""

    nr_cache: int
    nr_dirty: int
    nr_writeback: int
    nr_evicted: int
    nr_recently_evicted: int


_Predicate = Callable[[], bool]


class CacheOfFiles(Protocol):
    """What a file needs to know of the cache that it was opened through: a `PageCache`."""

    @property
    def recorder(self) -> "AccessRecorder | None":
        """What notes the accesses, if anything does."""
        ...

    def closes_with(self, mapped: Closable) -> None:
        """Close a map, which may outlive its file, when the cache is closed."""
        ...

    def note_closed(self, inode: Inode) -> None:
        """Note that a file of an object was closed."""
        ...


class AccessRecorder(Protocol):
    """What accesses are noted by: a `Recorder`."""

    def note(self, file: "File", pos: int, nbytes: int) -> None:
        """Note an access."""
        ...


class File(FileWrites):
    """A file read and written through the cache, with the contract of io.RawIOBase and positional access beside it.

    Files come from `PageCache.open`; any number may be open on one object and share its pages. Any number of threads
    may use one: those of Python share its position, as io has it; a thread of native code reads where it has sought itself,
    and with `seeks_by_thread` so does each. `close` writes back what is dirty, and gives up the file, not the cached pages.
    """

    vm_ops = filemap.generic_file_vm_ops

    def __init__(self, inode: Inode, mode: str, durability: str = "write-back"):
        self.inode = inode
        self.cache: CacheOfFiles | None = None
        self.mode = mode
        self.durability = durability
        self.no_reuse = False
        self.calls: Calls | None = None  # reads that miss can be abandoned by it
        self._window_factor = 1
        self._is_stream = False
        self._attach(
            inode.mapping,
            FileRaState(inode.ra_pages, inode.io_pages),
            may_read=mode != "ab",
            may_write=mode != "rb",
            is_append=mode.startswith("a"),
            is_through=durability != "write-back",
        )
        self._fitted_pages = self.ra.ra_pages

    @property
    def drop_behind(self) -> bool:
        """Whether pages that this file brings in leave the cache once they have been read to their end (DONTCACHE)."""
        return self.ra.dropbehind

    @drop_behind.setter
    def drop_behind(self, value: bool) -> None:
        self.ra.dropbehind = value

    @property
    def priority(self) -> str:
        """Which pages leave when frames are short; the object's, for all files open on it.

        "normal": the policy decides. "low": before anything else. "high": not while pages of normal priority can leave.
        "keep": what is cached while there is room stays, and what is read when the cache is full passes through: for
        data that is read once an epoch in random order. Setting it holds for "low" and "keep" for pages that are brought
        in from then on. Raises ValueError for another.
        """
        return self.inode.priority

    @priority.setter
    def priority(self, value: str) -> None:
        self._check_usable()
        self.inode.priority = value

    def fit_window(self) -> None:
        """Fit the largest readahead window to the store's measured speed and this file's share of the budget.

        A window that an error or another caller has changed is left alone until advice is given again.
        """
        if self.ra.ra_pages != self._fitted_pages:
            return
        if not self._is_stream and self.ra.size:
            self._is_stream = True
            self.inode.streams.add(self)
        self.ra.ra_pages = self._fitted_pages = self.inode.ra_pages * self._window_factor

    # -- the slow side of reads --------------------------------------------------------------------------------------

    def _read_slow(self, target: CopyTarget, done: int, pos: int) -> int:
        if self.calls is not None:
            nbytes: int = self.calls.run(self._read_missing, target, done, pos)
            return nbytes
        return self._read_missing(target, done, pos)

    def _read_missing(self, target: CopyTarget, done: int, pos: int) -> int:
        inode = self.inode
        try:
            while True:
                nr_versions = inode.nr_versions
                try:
                    nbytes = filemap.filemap_read(self, target, done, pos)
                except OSError as error:
                    if not inode.holds_after_all(error):
                        raise
                else:
                    if inode.nr_versions == nr_versions:
                        return nbytes
                done = 0  # what is copied may be of another version
        finally:
            self._read_ended()

    def _read_ended(self) -> None:
        """Close what could not be closed while this read was under way."""
        if self.closed:
            self.inode.close_retired()

    def _grown(self, pos: int) -> bool:
        """Whether the object has bytes at `pos` that the cache does not know of; raises ESTALE if it changed."""
        self.inode.raise_if_changed(pos)
        return pos < self.mapping.size

    def _leaves_pages(self) -> bool:
        """Whether pages may leave when they have been read to their end."""
        return self.drop_behind or self.mapping.backing.replicate != "all"

    def _view_slow(self, nbytes: int, pos: int) -> memoryview:
        """Serve a view that is not in one cached folio: bring the pages in, then one folio's memory or a copy."""
        if nbytes == 0 or (pos >= self.mapping.size and not self._grown(pos)):
            return memoryview(b"")
        view = self._view_piece(nbytes, pos)
        if view is None or len(view) == min(nbytes, self.mapping.size - pos):
            return memoryview(b"") if view is None else view
        view.release()
        return self._view_of_copy(min(nbytes, self.mapping.size - pos), pos)

    def _view_of_copy(self, nbytes: int, pos: int) -> memoryview:
        """Copy a range into page frames of its own, so that it is inside the budget. Raises CacheFullError."""
        segment = self.mapping.segment
        order = (max(0, nbytes - 1) >> PAGE_SHIFT).bit_length()
        if order > MAX_FOLIO_ORDER or 2 << order > segment.nr_frames:
            what = f"{nbytes} bytes of {self.name} at offset {pos} cannot be seen as one: folios hold parts of them"
            raise fill.cache_full(segment, what, VIEW_REMEDY)
        with self._frames_for_view(order) as folio:
            view = self._view_copied(folio, pos, nbytes)
        if view is None:
            data = self.pread(nbytes, pos)  # while no frame is held
            with self._frames_for_view(order) as folio:
                view = view_of_copy(folio, data)
        return view

    def _frames_for_view(self, order: int) -> Folio:
        try:
            return fill.alloc_folio(self.mapping.segment, order)
        except CacheFullError as error:
            what = f"no {1 << order} page frames for a copy of what is to be seen of {self.name}"
            raise fill.cache_full(self.mapping.segment, what, VIEW_REMEDY) from error

    def _view_piece(self, nbytes: int, pos: int) -> memoryview | None:
        """Return a view of what one folio holds of a range, or None at the end of the file."""
        mapping = self.mapping
        while True:
            nr_truncations = mapping.nr_truncations
            folio = mapping.get_folio(pos >> PAGE_SHIFT)
            is_hit = folio is not None and folio.uptodate and not folio.readahead
            if not is_hit:
                folio = None  # no reference is held while others may wait for the page
                folio = self._uptodate_folio(pos)
            if folio is None:
                return None
            with folio:
                length = min(nbytes, mapping.size - pos, ((folio.index + folio.nr_pages) << PAGE_SHIFT) - pos)
                if length <= 0:
                    return None
                if mapping.nr_truncations == nr_truncations:
                    return self._view_used(folio, pos, length, is_hit)

    def _view_used(self, folio: Folio, pos: int, nbytes: int, is_hit: bool) -> memoryview:
        """Return a view of bytes of a folio, and count it as a read."""
        mapping = self.mapping
        folio.mark_accessed()
        self.ra.prev_pos = pos + nbytes
        if is_hit:
            mapping.segment.add_count("hits", 1)
            mapping.segment.add_count("bytes_asked", nbytes)
        else:
            mapping.count_miss(nbytes)
        return self._view_folio(folio, pos, nbytes)

    def _uptodate_folio(self, pos: int) -> Folio | None:
        """Return the folio that holds byte `pos`, uptodate and referenced, or None at the end of the file."""
        while True:
            try:
                batch = filemap.filemap_get_pages(self, pos, 1)
                break
            except OSError as error:
                if not self.inode.holds_after_all(error):
                    raise
        try:
            return batch.folio(0) if pos < self.mapping.size and len(batch) else None
        finally:
            batch.release()
            if self.closed:
                self.inode.close_retired()

    def iter_views(self, nbytes: int, offset: int) -> Iterator[memoryview]:
        """Iterate over read-only memoryviews that together show up to nbytes at `offset`: one per folio, no copies.

        Each view pins its folio until it is released. Raises as `pread`, when iterated.
        """
        nbytes, offset = operator.index(nbytes), operator.index(offset)
        if nbytes < 0 or offset < 0:
            raise ValueError(f"nbytes and offset must not be negative, not {nbytes} and {offset}")
        self._check_usable()
        if nbytes and offset >= self.mapping.size:
            self._grown(offset)
        end = offset + nbytes
        while offset < min(end, self.mapping.size):
            self._check_usable()
            view = self._view_piece(end - offset, offset)
            if view is None:
                return
            offset += len(view)
            yield view

    def mmap(self, length: int = 0, offset: int = 0, access: int = ACCESS_READ) -> Mmap:
        """Map the file: an object with the interface of the standard library's mmap.mmap.

        length: bytes, 0 for all up to the end. offset: bytes, a multiple of the page size. access: ACCESS_READ,
        ACCESS_WRITE (stores change the object), or ACCESS_COPY (stores stay in the map).
        """
        self._check_usable()
        return map_file(self, length, offset, access)

    # -- the contract of io.RawIOBase --------------------------------------------------------------------------------

    def readable(self) -> bool:
        """Return whether the file can be read: not in mode "ab"."""
        self._check_open()
        return self.mode != "ab"

    def writable(self) -> bool:
        """Return whether the file can be changed."""
        self._check_open()
        return self.may_write

    def seekable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def fileno(self) -> int:
        """Raise io.UnsupportedOperation: a descriptor would bypass the cache."""
        raise io.UnsupportedOperation("fileno: a cached file has no descriptor of its own")

    def isatty(self) -> bool:
        """Return False."""
        self._check_open()
        return False

    def detach(self) -> None:
        """Raise io.UnsupportedOperation: there is no other stream below."""
        raise io.UnsupportedOperation("detach")

    @property
    def name(self) -> str:
        """The object's name, as in error messages."""
        return self.inode.name

    @property
    def size(self) -> int:
        """The size of the object, as far as the cache knows (bytes)."""
        return self.mapping.size

    def __reduce__(self) -> Reduced:
        """Pickle how to open the file again, its mode and position; never contents. Raises ValueError when closed."""
        return reduced(self, self.tell(), {})

    def __copy__(self) -> "File":
        raise TypeError("a file cannot be copied, as both would close one store: open it again")

    def __enter__(self) -> "File":
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> "File":
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        await aio.in_worker(self.close)

    def close(self) -> None:
        """Close the file; its pages stay cached. Closing again does nothing.

        What was written through any file of the object is written back first, if this one could write. Raises OSError as
        `fsync`; the file is closed nevertheless, and what could not be written is still tried in the background. What
        may not be written because others have changed the object (ESTALE) is given up when the last file is closed.
        """
        error = None
        if not self.closed and self.may_write and not self.mapping.segment.dead:
            error = self.inode.sync_pages(0, writeback.LAST_PAGE, durable=False)
        if self._give_up() and self.may_write:
            if error is not None:
                self.inode.give_up_changed()
            self._raise_wb_error(error)

    def _give_up(self) -> bool:
        """Detach from the object. Returns whether the file was open."""
        was_open = self._detach()
        if was_open:
            if self._is_stream:
                self.inode.streams.discard(self)
            if self.no_reuse:
                self.inode.advise_reuse(-1)
            self.inode.release(writes=self.may_write)
            if self.cache is not None:
                self.cache.note_closed(self.inode)
        return was_open

    def __del__(self, _warn: Callable[..., None] = warnings.warn, _is_finalizing: _Predicate = sys.is_finalizing) -> None:
        if not self.closed:
            if not self.mapping.segment.dead:
                _warn(f"unclosed cached file {self.name!r}", ResourceWarning, stacklevel=2, source=self)
            if not _is_finalizing():  # then modules are gone, and what is dirty is written
                self._give_up()  # the flusher writes what is dirty: nothing may wait where objects are collected

    def __repr__(self) -> str:
        if not hasattr(self, "inode"):
            return "<File, not opened>"
        return f"<File {self.name!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    # -- many reads at once ------------------------------------------------------------------------------------------

    def preadv_many(self, ranges: Sequence[tuple[int, int]], *, hole_size: int | None = None) -> list[bytes]:
        """Read many ranges: what is missing is found first, joined, and fetched in parallel.

        ranges: (nbytes, offset) of each, as `pread` takes them. hole_size: gaps up to this many bytes between missing
        pages are read through; None: those that cost less than another request.

        Returns the bytes of each range, in order. Raises as `pread`.
        """
        self._check_usable()
        return self._read_many([(offset, nbytes) for nbytes, offset in ranges], hole_size)

    def _read_many(self, ranges: Sequence[tuple[int, int]], hole_size: int | None) -> list[bytes]:
        """Read ranges of (offset, nbytes), all of one version."""
        while True:
            nr_versions = self.inode.nr_versions
            found = _ranges.read_many(self, ranges, hole_size)
            if self.inode.nr_versions == nr_versions:
                return found

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read ranges given as offsets and sizes (bytes); as `preadv_many`."""
        self._check_usable()
        return self._read_many(list(zip(offsets, sizes, strict=True)), None)

    def read_buffer(self, size: int | None = -1, /) -> bytes | memoryview:
        """Read up to `size` bytes (-1: to the end) from the position, as `read`, without a copy where that is possible.

        Returns bytes, or a read-only memoryview of cached pages when one folio holds them all; it keeps them in memory as
        long as it lives. Where such views pin a quarter of the cache already, the answer is a copy. Raises as `pread`.
        """
        self._check_usable()
        position, size = self.tell(), -1 if size is None else operator.index(size)
        nbytes = max(0, self.mapping.size - position) if size < 0 else size
        pinned_max = -(-self.mapping.segment.nr_frames // PINNED_SHARE)
        buffer = self._view_cached(nbytes, position, VIEW_BYTES_MIN, pinned_max)
        if buffer is None:
            return self.read(size)
        self.seek(position + len(buffer))
        return buffer

    def prefetch(self, offset: int = 0, nbytes: int = 0) -> Prefetch:
        """Bring a byte range (nbytes 0: to the end) in in the background, as much as the cache can hold.

        Returns a Prefetch: wait on it, or look at its progress.
        """
        self._check_usable()
        offset, nbytes = _checked_range(offset, nbytes)
        return self._prefetch_pages(*self._pages_touched(offset, nbytes))

    def _prefetch_pages(self, first: int, last: int) -> Prefetch:
        return Prefetch(self.mapping, first, last)

    async def pread_async(self, nbytes: int, offset: int) -> bytes:
        """As `pread`, for asyncio: a hit returns without a trip through the loop, a miss waits in a worker thread, or, for
        a store without `background_reads`, in this one."""
        data = self.pread_cached(nbytes, offset)
        return data if data is not None else await aio.read(self.inode, self.pread, nbytes, offset)

    async def preadinto_async(self, buffer: Buffer, offset: int) -> int:
        """As `preadinto`, for asyncio. The buffer belongs to the read until it has ended."""
        nbytes = memoryview(buffer).nbytes
        if self.mapping.all_cached(offset, min(nbytes, max(0, self.mapping.size - offset))):
            return self.preadinto(buffer, offset)
        return await aio.read(self.inode, self.preadinto, buffer, offset)

    async def prefetch_async(self, offset: int = 0, nbytes: int = 0) -> None:
        """As `prefetch`, awaited; cancelling it skips what has not begun. Raises OSError."""
        await aio.finished(self.prefetch(offset, nbytes))

    # -- advice and introspection ------------------------------------------------------------------------------------

    def fadvise(self, advice: int, offset: int = 0, length: int = 0) -> None:
        """Advise how the file will be read.

        NOREUSE: what is read is not needed again: it leaves before anything else, as long as all files open on the object
        say so and no other priority is set.

        advice: pagecache.FADV_*. offset, length: bytes of the range for WILLNEED and DONTNEED; 0: to the end.
        Raises ValueError for unknown advice or a negative range.
        """
        self._check_usable()
        offset, length = _checked_range(offset, length)
        if advice in (FADV_NORMAL, FADV_SEQUENTIAL):
            self._window_factor = 2 if advice == FADV_SEQUENTIAL else 1
            self.ra.ra_pages = self._fitted_pages = self.inode.ra_pages * self._window_factor
            self.is_random = False
            if advice == FADV_NORMAL:
                self._set_no_reuse(False)
        elif advice == FADV_RANDOM:
            self.is_random = True
        elif advice == FADV_NOREUSE:
            self._set_no_reuse(True)
        elif advice == FADV_WILLNEED:
            self._prefetch_pages(*self._pages_touched(offset, length))
        elif advice == FADV_DONTNEED:
            self._drop_range(offset, length)
        else:
            raise ValueError(f"unknown advice {advice!r}")

    def _set_no_reuse(self, value: bool) -> None:
        if value != self.no_reuse:
            self.no_reuse = value
            self.inode.advise_reuse(1 if value else -1)

    def take_advice_of(self, other: "File") -> None:
        """Be read as another file of the object, of its former version, was advised to be."""
        self.is_random, self.drop_behind = other.is_random, other.drop_behind
        self._window_factor = other._window_factor
        self.ra.ra_pages = self._fitted_pages = self.inode.ra_pages * self._window_factor
        self._set_no_reuse(other.no_reuse)
        if other.priority != self.priority:
            self.priority = other.priority

    def _pages_touched(self, offset: int, length: int) -> tuple[int, int]:
        """Return first and last page of a byte range, partial ones included; length 0 is up to the end."""
        end = min(offset + length, self.mapping.size) if length else self.mapping.size
        return offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT if end > offset else -1

    def _drop_range(self, offset: int, length: int) -> None:
        """Drop the whole pages of a range; the last, partial one only if it ends the file."""
        end = min(offset + length, self.mapping.size) if length else self.mapping.size
        first = -(-offset >> PAGE_SHIFT)
        after = -(-end >> PAGE_SHIFT) if end == self.mapping.size else end >> PAGE_SHIFT
        if after > first:
            self.inode.start_writeback(first, after - 1)
            truncate.invalidate_mapping_pages(self.mapping, first, after - 1)

    def cachestat(self, offset: int = 0, length: int = 0) -> CacheStat:
        """Count the pages of a byte range (length 0: to the end) by what the cache knows of them."""
        self._check_usable()
        offset, length = _checked_range(offset, length)
        last = (offset + length - 1) >> PAGE_SHIFT if length else (1 << 52) - 1
        return CacheStat(*self.mapping.cachestat(offset >> PAGE_SHIFT, last))

    def stats(self) -> FileStats:
        """Return what was counted for the object of this file, by whichever file: misses, requests, bytes, readahead.

        Context: walks the cached pages.
        """
        self._check_usable()
        return self.inode.stats()

    def mincore(self, offset: int = 0, length: int = 0) -> bytes:
        """Return one byte per page of a byte range (length 0: to the end): 1 if the page is cached and uptodate.

        Raises ValueError when offset is not a multiple of the page size.
        """
        self._check_usable()
        offset, length = _checked_range(offset, length)
        if offset % PAGE_SIZE:
            raise ValueError(f"offset must be a multiple of the page size, not {offset}")
        end = min(offset + length, self.mapping.size) if length else self.mapping.size
        return self.mapping.mincore(offset >> PAGE_SHIFT, max(0, -(-(end - offset) >> PAGE_SHIFT)))

    def invalidate(self, offset: int = 0, length: int = 0, *, discard: bool = False) -> None:
        """Drop the cached pages of a byte range, waiting for those in use; with no range take the object as new.

        discard: what was written to the object and is not in the store yet is given up, too: the way out when others have
        changed it, and it must not be overwritten (ESTALE). It takes no range (ValueError).
        Raises OSError with EBUSY when pages are dirty: fsync first, or discard them.
        Context: takes invalidate_lock exclusive.
        """
        self._check_usable()
        offset, length = _checked_range(offset, length)
        if discard:
            self._check_writable()
            if offset or length:
                raise ValueError("discard gives up the whole object: give no range")
        self.inode.invalidate(offset, length, discard=discard)
        if discard:
            self._check_and_advance_wb_err()  # giving up what could not be written reports that it could not


io.RawIOBase.register(File)
