"""Copies out of page frames: the loops of the hit path."""

cdef extern from "core/copy.h" nogil:
    enum:
        COPY_STREAMS
    void copy_page(char* target, const char* source, size_t nbytes) noexcept
    void copy_pages(char* target, const char** sources, unsigned int nr) noexcept
    void copy_shared(char* target, const char* source, size_t nbytes) noexcept
    void copy_long(char* target, const char* source, size_t nbytes) noexcept
    void prefetch_range(const char* address, size_t nbytes) noexcept
