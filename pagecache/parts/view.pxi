@cython.final
@cython.freelist(32)
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class FolioView:
    """A read-only buffer over part of a folio; keeps the folio's contents until the last buffer is released.

    That counts, not the end of this object: it comes later where there is no GIL and the thread that made it sleeps.
    """
    cdef Segment segment
    cdef CFolio* folio
    cdef char* address
    cdef Py_ssize_t nbytes
    cdef pc_u32 nr_buffers          # 0 once the folio was let go of
    cdef bint is_new                # the first buffer is counted already

    def __dealloc__(self):
        if self.is_new and self.folio != NULL:      # there was no memory for one
            self.let_go()

    cdef void let_go(self) noexcept:
        if self.segment.seg.dead:
            return
        if sub_acq_rel_u32(&self.folio.nr_pins, 1) == 1:
            count(&self.segment.seg, NR_PINNED, -<int64_t>folio_nr_pages(self.folio))
        folio_put(&self.segment.seg, self.folio)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef uint32_t nr_buffers = load_relaxed_u32(&self.nr_buffers)
        PyBuffer_FillInfo(buffer, self, self.address, self.nbytes, 1, flags)
        if self.is_new:
            self.is_new = False
            return
        while nr_buffers != 0:
            if cas_acq_rel_u32(&self.nr_buffers, &nr_buffers, nr_buffers + 1):
                return
        raise BufferError("the view was released")

    def __releasebuffer__(self, Py_buffer* buffer):
        if sub_acq_rel_u32(&self.nr_buffers, 1) == 1:
            self.let_go()

    def __len__(self):
        return self.nbytes


cdef object folio_view(Segment segment, CFolio* folio, uint64_t offset, uint64_t nbytes):
    """A memoryview over bytes of a folio; takes over the caller's reference."""
    cdef FolioView view = FolioView.__new__(FolioView)
    view.segment = segment
    view.folio = folio
    view.address = folio_address(&segment.seg, folio) + offset
    view.nbytes = <Py_ssize_t>nbytes
    view.is_new = True
    store_relaxed_u32(&view.nr_buffers, 1)
    if add_acq_rel_u32(&folio.nr_pins, 1) == 0:
        count(&segment.seg, NR_PINNED, folio_nr_pages(folio))
    return PyMemoryView_FromObject(view)


def view_of_copy(Folio folio not None, bytes data not None):
    """Copies bytes into a folio that is in no mapping. Returns a memoryview of them, which keeps the folio."""
    cdef CFolio* raw = folio.alive()
    cdef uint64_t nbytes = <uint64_t>len(data)
    if folio_mapping(raw) != 0 or nbytes > <uint64_t>folio_nr_pages(raw) << PAGE_SHIFT:
        raise ValueError("the folio is in a mapping, or too small")
    memcpy(folio_address(&folio.segment.seg, raw), PyBytes_AS_STRING(data), nbytes)
    folio_ref_add(raw, 1)
    return folio_view(folio.segment, raw, 0, nbytes)


cdef extern from "Python.h":
    object PyMemoryView_FromObject(object source)
    int _PyBytes_Resize(PyObject** target, Py_ssize_t nbytes) except -1
    PyObject* PyBytes_FromStringAndSize_raw "PyBytes_FromStringAndSize"(const char* source, Py_ssize_t nbytes) except NULL
    char* PyBytes_AS_STRING_raw "PyBytes_AS_STRING"(PyObject* target)
    void Py_DECREF_raw "Py_DECREF"(PyObject* target)
