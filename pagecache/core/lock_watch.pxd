"""Page faults under engine locks, counted in checking builds."""
from libc.stdint cimport int64_t

cdef extern from "core/lock_watch.h" nogil:
    void lock_watch_taken() noexcept
    void lock_watch_released() noexcept
    int64_t lock_watch_set(bint watches) noexcept
