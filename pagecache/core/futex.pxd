"""Sleep on a 32-bit word: futex on Linux, a table of condition variables elsewhere."""
from libc.stdint cimport int64_t, uint32_t

cdef extern from "core/futex.h" nogil:
    void futex_setup() noexcept
    bint futex_is_native() noexcept
    int futex_wait(void* word, uint32_t expected, int64_t timeout_ns) noexcept
    void futex_wake(void* word, int count) noexcept
