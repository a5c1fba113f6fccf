"""`pc_assert`: aborts with file and line in checking builds (`PAGECACHE_CHECKS`), nothing elsewhere."""

cdef extern from "core/check.h" nogil:
    const int PAGECACHE_CHECKS
    const bint PC_OPTIMISTIC
    void pc_assert(bint condition) noexcept
