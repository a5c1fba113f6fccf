@cython.final
@cython.freelist(32)
@cython.no_gc_clear      # what it holds is given back when it is deallocated
cdef class FolioView:
    """A read-only buffer over part of a folio; keeps the folio's contents until the last buffer is released."""
    cdef Segment segment
    cdef CFolio* folio
    cdef char* address
    cdef Py_ssize_t nbytes

    def __dealloc__(self):
        if self.folio != NULL and not self.segment.seg.dead:
            if sub_acq_rel_u32(&self.folio.nr_pins, 1) == 1:
                count(&self.segment.seg, NR_PINNED, -<int64_t>folio_nr_pages(self.folio))
            folio_put(&self.segment.seg, self.folio)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.nbytes, 1, flags)

    def __len__(self):
        return self.nbytes


cdef object folio_view(Segment segment, CFolio* folio, uint64_t offset, uint64_t nbytes):
    """A memoryview over bytes of a folio; takes over the caller's reference."""
    cdef FolioView view = FolioView.__new__(FolioView)
    view.segment = segment
    view.folio = folio
    view.address = folio_address(&segment.seg, folio) + offset
    view.nbytes = <Py_ssize_t>nbytes
    if add_acq_rel_u32(&folio.nr_pins, 1) == 0:
        count(&segment.seg, NR_PINNED, folio_nr_pages(folio))
    return PyMemoryView_FromObject(view)


cdef extern from "Python.h":
    object PyMemoryView_FromObject(object source)
    int _PyBytes_Resize(PyObject** target, Py_ssize_t nbytes) except -1
    PyObject* PyBytes_FromStringAndSize_raw "PyBytes_FromStringAndSize"(const char* source, Py_ssize_t nbytes) except NULL
    char* PyBytes_AS_STRING_raw "PyBytes_AS_STRING"(PyObject* target)
    void Py_DECREF_raw "Py_DECREF"(PyObject* target)
