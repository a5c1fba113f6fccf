"""Errors of write-back, each reported once to each open file (errseq).

The rules: docs/kernel.md, errors of write-back.

One 32-bit word a mapping: bits 0..11 errno, bit 12 SEEN, bits 13.. a counter that grows when an error follows one that
a file has seen.  0: there never was one.  Every open file keeps the word it saw last.

    set       new = (counter, SEEN cleared, errno), counter + 1 only if SEEN was set, by compare-and-swap; a thread that
              finds the very word that it would write is done.
    sample    the word if it was seen, else 0: an error that no file has seen is left to the next that is opened.
    advance   a word that differs from the one seen last is an error: SEEN is set in it (losing that race to a newer
              error leaves the newer one unseen), and it becomes the one seen last.
The latest errno wins; two errors between two looks are reported as one.
"""
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport cas_acq_rel_u32, load_acquire_u32, pc_u32

cdef enum:
    ERRSEQ_ERRNO_MAX = 4095
    ERRSEQ_SEEN = 1 << 12
    ERRSEQ_COUNTER = 1 << 13


cdef inline void errseq_set(pc_u32* word, int number) noexcept nogil:
    """Notes an error (positive errno); what is none is ignored."""
    cdef uint32_t old = load_acquire_u32(word), new
    if number <= 0 or number > ERRSEQ_ERRNO_MAX:
        return
    while True:
        new = (old & ~<uint32_t>(ERRSEQ_ERRNO_MAX | ERRSEQ_SEEN)) | <uint32_t>number
        if old & <uint32_t>ERRSEQ_SEEN:
            new += ERRSEQ_COUNTER
        if new == old or cas_acq_rel_u32(word, &old, new):
            return


cdef inline uint32_t errseq_sample(pc_u32* word) noexcept nogil:
    """What a file that is opened now has seen."""
    cdef uint32_t old = load_acquire_u32(word)
    return old if old & <uint32_t>ERRSEQ_SEEN else 0


cdef inline int errseq_check_and_advance(pc_u32* word, uint32_t* since) noexcept nogil:
    """The errno of an error since the last look, or 0; it was looked at now. The caller guards `since`."""
    cdef uint32_t old = load_acquire_u32(word), new
    if old == since[0]:
        return 0
    new = old | <uint32_t>ERRSEQ_SEEN
    if new != old:
        cas_acq_rel_u32(word, &old, new)
    since[0] = new
    return <int>(new & <uint32_t>ERRSEQ_ERRNO_MAX)
