"""Ghosts: a short memory of folios that were evicted, four for each page frame.

A hash of mapping and index leads to one 64-bit word; four entries of 16 bits lie in it, newest lowest:

    ten bits of the hash | when the folio was last known to be used, in epochs modulo 63, plus one (0: empty)

The words of the cache lie in the descriptors (`Folio.ghosts`), so the memory costs nothing and is bounded by the layout;
probes have words of their own.  A word that is full forgets its oldest entry.  One lookup in 250 finds an entry that
is another folio's, which costs no more than one wrong guess.  An epoch is a quarter of the capacity, in admissions.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport load_relaxed_u32
from pagecache.core.block cimport block_is_out
from pagecache.core.segment cimport Segment, segment_budget

cdef enum:
    EPOCHS = 63
    EPOCHS_OF_CAPACITY = 4          # so that the clock of epochs goes round no sooner than in 15 capacities
    GHOST_TAG_MASK = 1023


cdef inline uint32_t folio_hash(uint32_t mapping, uint64_t index) noexcept nogil:
    cdef uint64_t z = index * <uint64_t>0x9E3779B97F4A7C15 + mapping * <uint64_t>0xC2B2AE3D27D4EB4F
    z ^= z >> 32
    z *= <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>(z >> 32)


cdef inline uint32_t ghost_slot(uint32_t key, uint32_t nr_words) noexcept nogil:
    return <uint32_t>((<uint64_t>key * nr_words) >> 32)


cdef inline uint64_t* ghost_word(Segment* seg, uint32_t key) noexcept nogil:
    """Where the cache remembers a folio; NULL: in a descriptor that is not in use (block.pxd). lru_lock is held."""
    cdef uint32_t slot = ghost_slot(key, segment_budget(seg))
    if slot >= load_relaxed_u32(&seg.header.nr_opened) or block_is_out(seg, slot):
        return NULL
    return &seg.folios[slot].ghosts


cdef inline uint32_t epoch_length(uint32_t capacity) noexcept nogil:
    return capacity // EPOCHS_OF_CAPACITY if capacity >= EPOCHS_OF_CAPACITY else 1


cdef inline void ghost_add(uint64_t* word, uint32_t key, uint32_t stamp, uint32_t capacity) noexcept nogil:
    """Remembers a folio that was last known to be used at `stamp` (admissions)."""
    cdef uint32_t epoch = (stamp // epoch_length(capacity)) % EPOCHS + 1
    word[0] = (word[0] << 16) | ((key & GHOST_TAG_MASK) << 6) | epoch


cdef inline bint ghost_take(uint64_t* word, uint32_t key, uint32_t clock, uint32_t capacity,
                            uint32_t* stamp) noexcept nogil:
    """Forgets a folio that is remembered, and says since when. Returns whether it was."""
    cdef uint32_t length = epoch_length(capacity), shift, entry, epoch, age
    for shift in range(0, 64, 16):
        entry = (word[0] >> shift) & 0xFFFF
        if entry == 0 or entry >> 6 != key & GHOST_TAG_MASK:
            continue
        epoch = (entry & 63) - 1
        age = (clock // length + EPOCHS - epoch) % EPOCHS
        word[0] = (word[0] & ((<uint64_t>1 << shift) - 1)) | (((word[0] >> shift) >> 16) << shift)
        if age > clock // length:
            return False
        stamp[0] = (clock // length - age) * length
        return True
    return False
