"""Mapped memory, and advice about it."""

cdef extern from "core/memory.h" nogil:
    void* memory_map(size_t bytes, size_t alignment, int fd) noexcept
    int memory_unmap(void* base, size_t bytes) noexcept
    void memory_poison(void* address, size_t bytes) noexcept
    void memory_unpoison(void* address, size_t bytes) noexcept
    int memory_file(size_t bytes) noexcept
    void memory_advise_huge(void* base, size_t bytes) noexcept
    void memory_advise_nodump(void* base, size_t bytes) noexcept
    int memory_advise_fork(void* base, size_t bytes, bint inherited) noexcept
    void memory_advise_small(void* base, size_t bytes) noexcept
    int memory_give_back(void* base, size_t bytes, bint shared) noexcept
    void memory_populate(void* base, size_t bytes) noexcept
