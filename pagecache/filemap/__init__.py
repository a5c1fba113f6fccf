"""The page cache of one file: lookup, reads, writes and faults, step by step as the kernel does them."""

from pagecache.filemap.fault import (
    filemap_fault,
    filemap_map_pages,
    generic_file_vm_ops,
    lock_folio_maybe_drop_mmap,
)
from pagecache.filemap.fault_readahead import do_async_mmap_readahead, do_sync_mmap_readahead, maybe_unlock_mmap_for_io
from pagecache.filemap.read import (
    FGP_ACCESSED,
    FGP_CREAT,
    FGP_DONTCACHE,
    FGP_FOR_MMAP,
    FGP_LOCK,
    FGP_NOFS,
    FGP_NOWAIT,
    FGP_STABLE,
    FGP_WRITE,
    FGP_WRITEBEGIN,
    fgf_set_order,
    filemap_add_folio,
    filemap_create_folio,
    filemap_get_folio,
    filemap_get_pages,
    filemap_read,
    filemap_update_page,
    nr_file_pages,
    read_folio_synchronously,
)
from pagecache.filemap.write import filemap_page_mkwrite, generic_perform_write, write_begin

__all__ = [
    "FGP_ACCESSED", "FGP_CREAT", "FGP_DONTCACHE", "FGP_FOR_MMAP", "FGP_LOCK", "FGP_NOFS", "FGP_NOWAIT", "FGP_STABLE",
    "FGP_WRITE", "FGP_WRITEBEGIN", "do_async_mmap_readahead", "do_sync_mmap_readahead", "fgf_set_order",
    "filemap_add_folio", "filemap_create_folio", "filemap_fault", "filemap_get_folio", "filemap_get_pages",
    "filemap_map_pages", "filemap_page_mkwrite", "filemap_read", "filemap_update_page", "generic_file_vm_ops",
    "generic_perform_write", "lock_folio_maybe_drop_mmap", "maybe_unlock_mmap_for_io", "nr_file_pages",
    "read_folio_synchronously", "write_begin",
]  # fmt: skip
