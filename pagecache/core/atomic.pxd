"""C11 atomics named by memory order; `pc_u32` and `pc_u64` can only be touched through them."""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "core/atomic.h" nogil:
    ctypedef struct pc_u32:
        pass
    ctypedef struct pc_u64:
        pass

    uint32_t load_relaxed_u32(const pc_u32* a) noexcept
    uint32_t load_acquire_u32(const pc_u32* a) noexcept
    void store_relaxed_u32(pc_u32* a, uint32_t v) noexcept
    void store_release_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t exchange_acq_rel_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t add_relaxed_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t add_acq_rel_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t sub_acq_rel_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t or_relaxed_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t or_acq_rel_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t and_acq_rel_u32(pc_u32* a, uint32_t v) noexcept
    uint32_t xor_acq_rel_u32(pc_u32* a, uint32_t v) noexcept
    bint cas_acq_rel_u32(pc_u32* a, uint32_t* expected, uint32_t desired) noexcept
    bint cas_relaxed_u32(pc_u32* a, uint32_t* expected, uint32_t desired) noexcept

    uint64_t load_relaxed_u64(const pc_u64* a) noexcept
    uint64_t load_acquire_u64(const pc_u64* a) noexcept
    void store_relaxed_u64(pc_u64* a, uint64_t v) noexcept
    void store_release_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t exchange_acq_rel_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t add_relaxed_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t add_acq_rel_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t sub_acq_rel_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t or_relaxed_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t or_acq_rel_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t and_acq_rel_u64(pc_u64* a, uint64_t v) noexcept
    uint64_t xor_acq_rel_u64(pc_u64* a, uint64_t v) noexcept
    bint cas_acq_rel_u64(pc_u64* a, uint64_t* expected, uint64_t desired) noexcept
    bint cas_relaxed_u64(pc_u64* a, uint64_t* expected, uint64_t desired) noexcept

    uint32_t hint_u32(const uint32_t* a) noexcept
    uint64_t hint_u64(const uint64_t* a) noexcept
    void set_hint_u32(uint32_t* a, uint32_t v) noexcept
    void set_hint_u64(uint64_t* a, uint64_t v) noexcept

    void fence_acquire() noexcept
    void fence_release() noexcept
    void fence_seq_cst() noexcept
    void cpu_relax() noexcept
    void prefetch_read(const void* address) noexcept
    uint32_t ctz32(uint32_t v) noexcept
    uint32_t clz64(uint64_t v) noexcept
    uint32_t ctz64(uint64_t v) noexcept
