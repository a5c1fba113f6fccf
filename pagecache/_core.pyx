# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True, embedsignature=True
"""The engine of pagecache: extension types over the C-level core.

The core (`pagecache/core`, C structs and free functions without the GIL) is compiled into this one module.  The parts
below are its boundary: each parses arguments, releases the GIL once, calls the engine and maps errors.
"""
include "parts/imports.pxi"     # what the parts use of the core
include "parts/errors.pxi"      # negative errno to exceptions; waiting with signals, and without the GIL
include "parts/segment.pxi"     # Segment: the mapped region, its counters, its check, the background reclaimer
include "parts/directory.pxi"   # ObjectKey: what is known of objects that are not open
include "parts/memory_wait.pxi" # MemoryWait: waiting for page frames, with no chance missed
include "parts/folio.pxi"       # Folio: one reference to a folio
include "parts/batch.pxi"       # FolioBatch: a run of folios that is filled, copied or removed together
include "parts/mapping.pxi"     # AddressSpace: the cached pages of one store object
include "parts/guard.pxi"       # LockGuard: one hold on a lock of a mapping
include "parts/grab.pxi"        # the steps of truncation: folios of a range, locked or referenced
include "parts/view.pxi"        # FolioView: a buffer that keeps its folio
include "parts/writeback.pxi"   # WritebackBatch: a run of dirty folios on its way to the store; its errors
include "parts/position.pxi"    # FilePosition: where reads without an offset begin, for threads that share a file
include "parts/file.pxi"        # FileCore: position, readahead state, the hit path
include "parts/arguments.pxi"   # what Python callers give, as C integers and buffers
include "parts/lines.pxi"       # FileLines: reading line by line
include "parts/pagetable.pxi"   # PageTable: the translations of one mapped area
include "parts/budget.pxi"      # the size of the cache, the balloon, where the memory is
include "parts/priority.pxi"    # priorities of objects, shares of tenants
include "parts/trace.pxi"       # access traces through the engine
include "parts/places.pxi"      # Places: how many requests of a store run at once
include "parts/mutex.pxi"       # Mutex, EventCount: what the Python layers lock and sleep on
include "parts/versioned.pxi"   # VersionedCore: reads at the position where the version is looked at
include "parts/xa_entry.pxi"    # XArray on its own: objects as entries
include "parts/xarray.pxi"      # XArray: a sparse array with marks and multi-index entries
include "parts/xa_cursor.pxi"   # its cursor
include "parts/fuse.pxi"        # FuseHandles: open files of a mount, served without the GIL
include "parts/c_api.pxi"       # the table of functions for other extension modules

futex_setup()
pc_python_setup()
fork_setup(fork_before, fork_parent, fork_child)
