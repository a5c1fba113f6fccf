"""Mapped memory, huge-page advice, and the copy loop of the hit path."""

cdef extern from "core/memory.h" nogil:
    void* memory_map(size_t bytes, size_t alignment, int fd) noexcept
    int memory_unmap(void* base, size_t bytes) noexcept
    void memory_poison(void* address, size_t bytes) noexcept
    void memory_unpoison(void* address, size_t bytes) noexcept
    int memory_file(size_t bytes) noexcept
    void memory_advise_huge(void* base, size_t bytes) noexcept
    void memory_advise_nodump(void* base, size_t bytes) noexcept
    void copy_page(char* target, const char* source, size_t nbytes) noexcept
    void copy_page_ahead(char* target, const char* source, size_t nbytes, const char* next) noexcept
    void prefetch_range(const char* address, size_t nbytes) noexcept
    void copy_shared(char* target, const char* source, size_t nbytes) noexcept
