"""Writers at the limit of dirty pages: slowed down before it, and made to write back at it.

The rules: docs/kernel.md, writers at the limit.
"""

import errno

from pagecache import _core
from pagecache._core import Folio
from pagecache.requests.backing import BackedMapping
from pagecache.units import MARK_DIRTY, MARK_WRITEBACK
from pagecache.writeback.passes import WritebackControl, do_writepages, in_writeback

MAX_PAUSE_S = 0.2
WRITE_OWN_PAGES = 1024  # what a writer at the limit writes back itself before it tries again
WAIT_SLICE_S = 0.02


def balance_dirty_pages(mapping: BackedMapping, nr_pages: int) -> None:
    """Slow a writer of nr_pages down while much is dirty, so that the limit is approached and not hit.

    Context: no lock held that write-back needs; may sleep up to MAX_PAUSE_S.
    """
    segment, flusher = mapping.segment, mapping.backing.flusher
    limit, background = segment.dirty_limits
    dirty, free_run = segment.nr_dirty_charged, (limit + background) // 2
    if dirty <= free_run or flusher is None or in_writeback():
        return
    segment.wake_flusher()
    setpoint = (free_run + limit) / 2
    ratio = 1 + ((setpoint - dirty) / max(limit - setpoint, 0.5)) ** 3
    rate = flusher.pages_per_s * min(max(ratio, 0.0), 2.0)
    pause_s = min(MAX_PAUSE_S, nr_pages / rate) if rate > 0 else MAX_PAUSE_S
    segment.add_count("nr_throttled_written", nr_pages)
    flusher.pause(pause_s)


def wait_for_dirty_room(mapping: BackedMapping) -> None:
    """Make room for one more dirty folio, when the limit is reached: write pages of this object back, or wait for
    others. Returns when something may have changed; try again then.

    Raises OSError: what keeps this object's pages, or all objects', from being written.
    Context: may hold the inode lock; no folio lock.
    """
    segment = mapping.segment
    if in_writeback() and not _core.has_mark(mapping, MARK_DIRTY):
        reason = "the store of another object writes it while that one is written back, and no more pages may be dirty"
        raise OSError(errno.EDEADLK, f"cannot write {mapping.name}: {reason}")
    if _core.has_mark(mapping, MARK_DIRTY):
        wbc = WritebackControl(nr_to_write=WRITE_OWN_PAGES, range_cyclic=True)
        do_writepages(mapping, wbc)
        if wbc.error is not None and wbc.nr_written == 0:
            raise wbc.error
        if wbc.nr_written == 0 and _core.has_mark(mapping, MARK_WRITEBACK):
            segment.wait_for_memory(WAIT_SLICE_S)  # all that is dirty was dirtied again while it is being written
        return
    if _core.has_mark(mapping, MARK_WRITEBACK) or mapping.backing.flusher is None:
        segment.wait_for_memory(WAIT_SLICE_S)
        return
    error = mapping.backing.flusher.make_room()
    if error is not None:
        raise OSError(error.errno, f"cannot write {mapping.name}: no page may become dirty while {error.strerror}")


def redirty_range(mapping: BackedMapping, first: int, last: int) -> None:
    """Make the cached pages of first..last dirty again, writing some back whenever too many are.

    Context: no lock held; waits for the store. Raises OSError.
    """
    while first <= last:
        folios, after = _core.find_folios(mapping, first, last + 1)
        try:
            for folio in folios:
                while not _redirty(mapping, folio):
                    wait_for_dirty_room(mapping)
        finally:
            for folio in folios:
                folio.put()  # an exception keeps the list alive
        if after is None:
            return
        first = after


def _redirty(mapping: BackedMapping, folio: Folio) -> bool:
    """Make one folio dirty, if it is still of the mapping; False if too many are."""
    folio.lock()
    try:
        return folio.mapping_number != mapping.number or not folio.uptodate or folio.mark_dirty()
    finally:
        folio.unlock()
