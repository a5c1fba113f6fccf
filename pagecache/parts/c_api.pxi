from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef extern from "pagecache.h":
    const char* PAGECACHE_CAPSULE
    ctypedef struct pagecache_api:
        uint32_t version
        uint32_t struct_size
        pagecache_object* (*acquire)(object) except NULL
        int (*release)(pagecache_object*) except -1
        uint64_t (*size)(const pagecache_object*) noexcept nogil
        int (*is_cached)(const pagecache_object*, uint64_t, uint64_t) noexcept nogil
        int64_t (*read)(pagecache_object*, void*, uint64_t, uint64_t) noexcept nogil
        int (*pin)(pagecache_object*, uint64_t, pagecache_pin_t*) noexcept nogil
        void (*unpin)(pagecache_pin_t*) noexcept nogil
        int64_t (*counter)(const pagecache_object*, int) noexcept nogil

ctypedef struct CObject:            # what a pagecache_object is
    PyObject* mapping               # a reference to the AddressSpace, which keeps the rest
    CSegment* seg
    CMapping* m
    uint32_t number
    pc_u32 nr_pins


cdef pagecache_object* api_acquire(object source) except NULL:
    cdef AddressSpace mapping
    cdef CObject* handle
    if isinstance(source, FileCore):
        if (<FileCore>source).mapping is None:
            raise ValueError("the file was not opened")
        (<FileCore>source).ready()
        mapping = (<FileCore>source).mapping
    elif isinstance(source, AddressSpace):
        mapping = source
    else:
        raise TypeError(f"an open pagecache.File is needed, not {type(source).__name__}")
    if not mapping.seg.header.has_data:
        raise ValueError("the segment has descriptors only, no bytes")
    handle = <CObject*>PyMem_RawCalloc(1, sizeof(CObject))
    if handle == NULL:
        raise MemoryError("no memory for the handle of an object")
    Py_INCREF(mapping)
    handle.mapping = <PyObject*>mapping
    handle.seg = mapping.seg
    handle.m = mapping.m
    handle.number = mapping.number
    return <pagecache_object*>handle


cdef int api_release(pagecache_object* public) except -1:
    cdef CObject* handle = <CObject*>public
    cdef uint32_t nr_pins = load_acquire_u32(&handle.nr_pins)
    if nr_pins != 0 and not handle.seg.dead:
        raise RuntimeError(f"{nr_pins} pins of {(<AddressSpace>handle.mapping).name} are held: "
                           f"end them with pagecache_unpin before pagecache_release")
    mapping = <object>handle.mapping
    PyMem_RawFree(handle)
    Py_DECREF(mapping)
    return 0


cdef uint64_t api_size(const pagecache_object* public) noexcept nogil:
    return load_acquire_u64(&(<CObject*>public).m.size)


cdef int api_is_cached(const pagecache_object* public, uint64_t nbytes, uint64_t offset) noexcept nogil:
    cdef CObject* handle = <CObject*>public
    cdef uint64_t size = load_acquire_u64(&handle.m.size)
    if handle.seg.dead:
        return 0
    if offset >= size or nbytes == 0:
        return 1
    return range_is_cached(handle.seg, handle.m, offset, nbytes if nbytes < size - offset else size - offset)


cdef int64_t api_read(pagecache_object* public, void* target, uint64_t nbytes, uint64_t offset) noexcept nogil:
    cdef CObject* handle = <CObject*>public
    cdef uint64_t size, wanted, done
    cdef uint32_t nr_truncations
    if handle.seg.dead:
        return PAGECACHE_DEAD
    while True:
        nr_truncations = load_acquire_u32(&handle.m.nr_truncations)
        size = load_acquire_u64(&handle.m.size)
        if offset >= size or nbytes == 0:
            return 0
        wanted = nbytes if nbytes < size - offset else size - offset
        done = read_cached(handle.seg, handle.number, offset, wanted, <char*>target, <uint64_t>-1)
        if mapping_not_truncated_since(handle.m, nr_truncations):
            break
    if done == wanted:
        count(handle.seg, HITS, 1)
        count(handle.seg, BYTES_ASKED, <int64_t>done)
    return <int64_t>done


cdef int api_pin(pagecache_object* public, uint64_t offset, pagecache_pin_t* pin) noexcept nogil:
    cdef CObject* handle = <CObject*>public
    cdef CSegment* seg = handle.seg
    cdef CFolio* folio
    cdef xa_entry entry
    cdef uint64_t size, first, end
    cdef uint32_t nr_truncations
    memset(pin, 0, sizeof(pagecache_pin_t))
    if seg.dead:
        return PAGECACHE_DEAD
    while True:
        nr_truncations = load_acquire_u32(&handle.m.nr_truncations)
        size = load_acquire_u64(&handle.m.size)
        if offset >= size:
            return PAGECACHE_END
        folio = filemap_get_entry(seg, handle.number, offset >> PAGE_SHIFT, &entry)
        if folio == NULL:
            return PAGECACHE_ABSENT
        if not folio_readable(folio_state(folio), folio_order(folio)):
            folio_put(seg, folio)
            return PAGECACHE_ABSENT
        if mapping_not_truncated_since(handle.m, nr_truncations):
            break
        folio_put(seg, folio)
    folio_used(seg, folio)
    if add_acq_rel_u32(&folio.nr_pins, 1) == 0:
        count(seg, NR_PINNED, folio_nr_pages(folio))
    add_acq_rel_u32(&handle.nr_pins, 1)
    first = folio_index(folio) << PAGE_SHIFT
    end = first + (<uint64_t>folio_nr_pages(folio) << PAGE_SHIFT)
    pin.data = folio_address(seg, folio) + (offset - first)
    pin.nbytes = (end if end < size else size) - offset
    pin.object = public
    pin.folio = folio
    count(seg, HITS, 1)
    count(seg, BYTES_ASKED, <int64_t>pin.nbytes)
    return 0


cdef void api_unpin(pagecache_pin_t* pin) noexcept nogil:
    cdef CFolio* folio = <CFolio*>pin.folio
    cdef CObject* handle = <CObject*>pin.object
    if folio == NULL:
        return
    memset(pin, 0, sizeof(pagecache_pin_t))
    if handle.seg.dead:
        return
    if sub_acq_rel_u32(&folio.nr_pins, 1) == 1:
        count(handle.seg, NR_PINNED, -<int64_t>folio_nr_pages(folio))
    folio_put(handle.seg, folio)
    sub_acq_rel_u32(&handle.nr_pins, 1)


cdef int64_t api_counter(const pagecache_object* public, int counter) noexcept nogil:
    cdef CSegment* seg = (<CObject*>public).seg
    if counter == PAGECACHE_FRAMES:
        return segment_budget(seg)
    if counter == PAGECACHE_FREE_FRAMES:
        return load_relaxed_u32(&seg.header.nr_free)
    if counter < 0 or counter >= PAGECACHE_NR_COUNTERS:
        return -1
    return counted(seg, engine_counter(counter))


cdef Counter engine_counter(int counter) noexcept nogil:
    """The engine's number for a public one: the engine's may change, the public ones never do."""
    if counter == PAGECACHE_CACHED_PAGES:
        return NR_FILE_PAGES
    if counter == PAGECACHE_DIRTY_PAGES:
        return NR_DIRTY
    if counter == PAGECACHE_WRITEBACK_PAGES:
        return NR_WRITEBACK
    if counter == PAGECACHE_PINNED_PAGES:
        return NR_PINNED
    if counter == PAGECACHE_HITS:
        return HITS
    if counter == PAGECACHE_MISSES:
        return MISSES
    if counter == PAGECACHE_STORE_READS:
        return STORE_READS
    if counter == PAGECACHE_STORE_READ_BYTES:
        return STORE_READ_BYTES
    if counter == PAGECACHE_STORE_WRITES:
        return STORE_WRITES
    return STORE_WRITE_BYTES


cdef pagecache_api api_table
api_table.version = PAGECACHE_API_VERSION
api_table.struct_size = sizeof(pagecache_api)
api_table.acquire = api_acquire
api_table.release = api_release
api_table.size = api_size
api_table.is_cached = api_is_cached
api_table.read = api_read
api_table.pin = api_pin
api_table.unpin = api_unpin
api_table.counter = api_counter
_C_API = PyCapsule_New(&api_table, PAGECACHE_CAPSULE, NULL)
