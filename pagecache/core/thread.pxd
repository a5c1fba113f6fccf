"""Thread slots for counters, what started a thread, threads that need no GIL, the monotonic clock."""
from libc.stdint cimport int64_t, uint32_t

ctypedef void* (*thread_main)(void* argument) noexcept nogil

cdef extern from "core/thread.h" nogil:
    ctypedef struct pc_thread:
        bint started
    enum:
        PC_THREAD_SLOTS
    uint32_t thread_slot() noexcept
    void thread_count_event() noexcept
    uint32_t thread_events() noexcept
    int THREAD_KIND_UNKNOWN, THREAD_KIND_PYTHON, THREAD_KIND_NATIVE
    int thread_kind() noexcept
    void thread_kind_set(int kind) noexcept
    int thread_start(pc_thread* thread, thread_main run, void* argument) noexcept
    void thread_join(pc_thread* thread) noexcept
    void thread_nap(int64_t ns) noexcept
    int64_t monotonic_ns() noexcept
    int64_t COARSE_TICK_NS
    int64_t monotonic_coarse_ns() noexcept
