"""Bytes of cached folios, as they go to a peer: views that pin them, or a copy where the cache is small."""

import errno

from pagecache._core import CacheFullError
from pagecache.adapters.peers import protocol
from pagecache.adapters.peers.server import RefusedError, Views
from pagecache.files.file import File
from pagecache.requests import fill, submit
from pagecache.requests.backing import BackedMapping
from pagecache.units import PAGE_SHIFT

PINNED_SHARE = 16  # what one answer may pin of the cache
TRIES = 4
ORDER_MAX = 9


def cached_pieces(file: File, offset: int, nbytes: int) -> list[memoryview] | None:
    """Return views of a byte range, one a folio, if all of it is cached; else None. They pin it until they are released."""
    mapping, end = file.mapping, offset + nbytes
    pieces: list[memoryview] = []
    while offset < end:
        folio = mapping.get_folio(offset >> PAGE_SHIFT)
        if folio is None or not folio.uptodate:
            for piece in pieces:
                piece.release()
            return None
        step = min(end, (folio.index + folio.nr_pages) << PAGE_SHIFT) - offset
        pieces.append(file._view_folio(folio, offset, step))
        folio.mark_accessed()
        folio.put()
        offset += step
    return pieces


def read_pieces(file: File, offset: int, nbytes: int) -> Views:
    """Return the bytes of a range, read as far as they are not cached; what another thread reads is waited for.

    Raises RefusedError. Context: may sleep in the store; does not wait for memory: it may be held by readers that wait for
    a peer, whose memory is held by readers that wait for this one.
    """
    try:
        share = max(1, file.mapping.segment.nr_frames // PINNED_SHARE) << PAGE_SHIFT
        if nbytes <= share:
            return _read_views(file, offset, nbytes)
        copies = []
        while nbytes:
            step = min(nbytes, share - offset % share)
            views = _read_views(file, offset, step)
            copies.append(b"".join(views))
            for view in views:
                view.release()
            offset, nbytes = offset + step, nbytes - step
        return copies
    except CacheFullError:
        raise RefusedError(protocol.BUSY) from None
    except OSError as error:
        raise RefusedError(protocol.STALE if error.errno == errno.ESTALE else protocol.FAILED) from None
    except ValueError:  # closed meanwhile
        raise RefusedError(protocol.UNKNOWN) from None


def _read_views(file: File, offset: int, nbytes: int) -> list[memoryview]:
    """Return views of a range, read as far as it is not cached. Raises RefusedError if there is no memory; OSError."""
    for _ in range(TRIES):
        _read_missing(file.mapping, offset >> PAGE_SHIFT, (offset + nbytes - 1) >> PAGE_SHIFT)
        pieces = cached_pieces(file, offset, nbytes)
        if pieces is not None:
            return pieces
    raise RefusedError(protocol.BUSY)


def _read_missing(mapping: BackedMapping, first: int, last: int) -> None:
    """Bring in the pages first..last, and wait for those that others bring in. Raises OSError."""
    with mapping.shared():
        for batch in submit.missing_batches(mapping, first, last, min(ORDER_MAX, (last - first + 1).bit_length() - 1)):
            try:
                submit.read_timed(mapping, [batch])  # takes no place: reads that wait for peers may have them all
            finally:
                batch.release()
    index = first
    while index <= last:
        folio = mapping.get_folio(index)
        if folio is None:
            return
        index = folio.index + folio.nr_pages
        if folio.locked and not folio.uptodate:
            fill.wait_for_folio(mapping, folio)
        else:
            folio.put()
