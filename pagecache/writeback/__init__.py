"""Write-back: what is dirty goes to the store, and writers wait when too much is."""

from pagecache.units import LAST_PAGE, MARK_DIRTY, MARK_TOWRITE, MARK_WRITEBACK
from pagecache.writeback.own_writes import ForeignChange, own_attributes, own_write
from pagecache.writeback.passes import (
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    WB_SYNC_ALL,
    WB_SYNC_NONE,
    WritebackControl,
    do_writepages,
    filemap_fdatawait_range,
    filemap_fdatawrite_range,
    filemap_write_and_wait_range,
    in_writeback,
    sync_file_range,
    unseen_error,
    write_batch,
    write_cache_pages,
    write_error,
    write_requests,
)
from pagecache.writeback.throttle import balance_dirty_pages, redirty_range, wait_for_dirty_room

__all__ = [
    "LAST_PAGE", "MARK_DIRTY", "MARK_TOWRITE", "MARK_WRITEBACK", "SYNC_FILE_RANGE_WAIT_AFTER",
    "SYNC_FILE_RANGE_WAIT_BEFORE", "SYNC_FILE_RANGE_WRITE", "WB_SYNC_ALL", "WB_SYNC_NONE", "ForeignChange",
    "WritebackControl", "balance_dirty_pages", "do_writepages", "filemap_fdatawait_range", "filemap_fdatawrite_range",
    "filemap_write_and_wait_range", "in_writeback", "own_attributes", "own_write", "redirty_range", "sync_file_range",
    "unseen_error", "wait_for_dirty_room", "write_batch", "write_cache_pages", "write_error", "write_requests",
]  # fmt: skip
