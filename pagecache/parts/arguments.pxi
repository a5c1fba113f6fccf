import io as _io
from operator import index as _index

OFFSET_MAX = (1 << 63) - 1

cdef extern from "Python.h":
    int PyObject_GetBuffer_raw "PyObject_GetBuffer"(object source, Py_buffer* view, int flags) noexcept


cdef bint is_cached_memory(CSegment* seg, const void* address) noexcept nogil:
    """Whether an address lies in the page frames: what is there is a view of something cached."""
    return seg.frames <= <const char*>address < seg.frames + (<uint64_t>seg.nr_frames << PAGE_SHIFT)


cdef int64_t to_signed(object value) except? -1:
    """An integer argument; too large ones raise OverflowError."""
    cdef int overflow
    cdef int64_t result
    if type(value) is not int:
        value = _index(value)
    result = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow != 0:
        raise OverflowError(f"{value} is beyond the largest offset and length, {OFFSET_MAX}")
    return result


cdef uint64_t to_count(object nbytes) except? 0xFFFFFFFFFFFFFFFF:
    cdef int64_t value = to_signed(nbytes)
    if value < 0:
        raise ValueError(f"nbytes must not be negative, not {value}")
    return <uint64_t>value


cdef uint64_t to_offset(object offset) except? 0xFFFFFFFFFFFFFFFF:
    cdef int64_t value = to_signed(offset)
    if value < 0:
        raise ValueError(f"offset must not be negative, not {value}")
    return <uint64_t>value
