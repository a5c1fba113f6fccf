"""The C interface of pagecache for Cython: `from pagecache._core cimport pagecache_import, pagecache_pin, ...`.

It declares `pagecache.h` (which says what each function does) and nothing of the engine, so a module that uses it compiles
nothing of the engine either. Compile it with `include_dirs=[pagecache.get_include()]`, and call `pagecache_import()` once
before all else.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "pagecache.h" nogil:
    ctypedef struct pagecache_object:
        pass

    ctypedef struct pagecache_pin_t:
        const char* data
        uint64_t nbytes
        pagecache_object* object
        void* folio

    ctypedef enum pagecache_counter_t:
        PAGECACHE_FRAMES
        PAGECACHE_FREE_FRAMES
        PAGECACHE_CACHED_PAGES
        PAGECACHE_DIRTY_PAGES
        PAGECACHE_WRITEBACK_PAGES
        PAGECACHE_PINNED_PAGES
        PAGECACHE_HITS
        PAGECACHE_MISSES
        PAGECACHE_STORE_READS
        PAGECACHE_STORE_READ_BYTES
        PAGECACHE_STORE_WRITES
        PAGECACHE_STORE_WRITE_BYTES
        PAGECACHE_NR_COUNTERS

    const int PAGECACHE_END
    const int PAGECACHE_ABSENT
    const int PAGECACHE_DEAD
    const unsigned int PAGECACHE_API_VERSION

    # from any thread
    uint64_t pagecache_size(const pagecache_object* object) noexcept
    bint pagecache_is_cached(const pagecache_object* object, uint64_t nbytes, uint64_t offset) noexcept
    int64_t pagecache_read(pagecache_object* object, void* target, uint64_t nbytes, uint64_t offset) noexcept
    int pagecache_pin(pagecache_object* object, uint64_t offset, pagecache_pin_t* pin) noexcept
    void pagecache_unpin(pagecache_pin_t* pin) noexcept
    int64_t pagecache_counter(const pagecache_object* object, int counter) noexcept

cdef extern from "pagecache.h":     # with the GIL
    int pagecache_import() except -1
    pagecache_object* pagecache_acquire(object file) except NULL
    int pagecache_release(pagecache_object* object) except -1
