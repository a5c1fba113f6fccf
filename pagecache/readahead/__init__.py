"""Readahead: which pages to read before they are asked for, and how many."""

from pagecache.readahead.ondemand import (
    FORCE_CHUNK_PAGES,
    MIN_FOLIO_PAGES,
    MMAP_LOTSAMISS,
    RA_PAGES_DEFAULT,
    do_page_cache_ra,
    force_page_cache_ra,
    init_ra_size,
    max_window,
    next_ra_size,
    page_cache_async_ra,
    page_cache_ra_order,
    page_cache_ra_unbounded,
    page_cache_sync_ra,
    read_around,
    wanted_order,
)
from pagecache.units import MAX_FOLIO_ORDER, PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "FORCE_CHUNK_PAGES", "MAX_FOLIO_ORDER", "MIN_FOLIO_PAGES", "MMAP_LOTSAMISS", "PAGE_SHIFT", "PAGE_SIZE",
    "RA_PAGES_DEFAULT", "do_page_cache_ra", "force_page_cache_ra", "init_ra_size", "max_window", "next_ra_size",
    "page_cache_async_ra", "page_cache_ra_order", "page_cache_ra_unbounded", "page_cache_sync_ra", "read_around",
    "wanted_order",
]  # fmt: skip
