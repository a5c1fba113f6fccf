"""A software address space: maps of files, their areas, page tables and faults."""

from pagecache.mm import flags as _flags
from pagecache.mm.flags import *  # noqa: F403
from pagecache.mm.memory_map import FAULT_AROUND_PAGES, MMAP_BASE, MemoryMap
from pagecache.mm.mmap_lock import MmapLock
from pagecache.mm.mmap_object import (
    ACCESS_COPY,
    ACCESS_DEFAULT,
    ACCESS_READ,
    ACCESS_WRITE,
    ALLOCATIONGRANULARITY,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    Mmap,
    map_file,
)
from pagecache.mm.page_faults import (
    do_cow_fault,
    do_fault_around,
    do_read_fault,
    do_shared_fault,
    finish_fault,
    handle_fault,
    handle_mm_fault,
)
from pagecache.mm.vm_fault import BusError, VmFault, VmOperations
from pagecache.mm.vma import MappedFile, VirtualMemoryArea, maps_of

__all__ = [
    "ACCESS_COPY", "ACCESS_DEFAULT", "ACCESS_READ", "ACCESS_WRITE", "ALLOCATIONGRANULARITY", "BusError",
    "FAULT_AROUND_PAGES", "MADV_DONTNEED", "MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_NORMAL", "MADV_RANDOM",
    "MADV_SEQUENTIAL", "MADV_WILLNEED", "MMAP_BASE", "MappedFile", "MemoryMap", "Mmap", "MmapLock", "VirtualMemoryArea",
    "VmFault", "VmOperations", "do_cow_fault", "do_fault_around", "do_read_fault", "do_shared_fault", "finish_fault",
    "handle_fault", "handle_mm_fault", "map_file", "maps_of",
]  # fmt: skip
__all__ += [name for name in dir(_flags) if name.startswith(("VM_", "FAULT_FLAG_", "fault_flag_"))]
