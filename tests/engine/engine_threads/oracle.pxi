from pagecache.core.atomic cimport cas_acq_rel_u32, load_acquire_u64, store_release_u64
from pagecache.core.io_queue cimport IoQueue
from pagecache.core.segment cimport Segment

cdef enum:
    NR_FILES = 2
    NR_PAGES = 256                  # of each file
    PAGE_WORDS = 512                # of 8 bytes

cdef enum:                          # Work.failure
    FOREIGN_BYTES = 1
    OLD_BYTES
    FUTURE_BYTES
    TORN_BYTES
    UNEXPECTED_ZEROS
    FILE_CHANGED
    SHORT_FILE
    LOST_ON_SYNC
    NO_THREAD

_FAILURES = {
    FOREIGN_BYTES: "bytes of another page", OLD_BYTES: "bytes older than the last write",
    FUTURE_BYTES: "bytes that were not written yet", TORN_BYTES: "two versions in one short read",
    UNEXPECTED_ZEROS: "zeros where something was written", FILE_CHANGED: "an own write was taken for a foreign one",
    SHORT_FILE: "the file ended early", LOST_ON_SYNC: "a sync without an error left the file as it was",
    NO_THREAD: "no thread",
}

ctypedef struct File:
    uint32_t number                 # of the mapping
    int fd
    pc_u32 cuts                     # odd during a truncation
    pc_u32[256] begun               # version of each page whose writing has begun last
    pc_u32[256] done                # and ended last; 0 after a truncation

ctypedef struct Work:               # what all threads share
    Segment seg
    IoQueue queue
    File[2] files
    uint32_t nr_threads
    uint32_t span                   # pages that are used
    pc_u32 nr_ready
    pc_u32 nr_done                  # threads
    pc_u32 failure
    uint64_t[4] details             # by the thread that set `failure`

ctypedef struct Worker:
    Work* work
    uint64_t random
    uint64_t nr_steps
    uint64_t[16] counts
    uint32_t[2] since               # errors seen (errseq)
    bint no_faults
    uint64_t[6144] buffer           # READ_PAGES_MAX pages


cdef uint32_t random_below(Worker* worker, uint32_t limit) noexcept nogil:
    worker.random = worker.random * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
    return <uint32_t>((worker.random >> 33) % limit)


cdef void work_failed(Work* work, uint32_t what, uint64_t where, uint64_t found, uint64_t low,
                      uint64_t high) noexcept nogil:
    """Notes the first failure."""
    cdef uint32_t none = 0
    if cas_acq_rel_u32(&work.failure, &none, what):
        work.details[0] = where
        work.details[1] = found
        work.details[2] = low
        work.details[3] = high


cdef int raise_failure(Work* work) except -1:
    """Raises what a thread noted. All have ended."""
    what = load_acquire_u32(&work.failure)
    if what:
        raise AssertionError(f"{_FAILURES[what]}: page {work.details[0]}, found {work.details[1]:#x}, "
                             f"allowed versions {work.details[2]} to {work.details[3]}")
    return 0


cdef inline uint64_t word_of(uint32_t number, uint32_t page, uint32_t version, uint32_t place) noexcept nogil:
    return <uint64_t>number << 60 | <uint64_t>page << 44 | <uint64_t>version << 12 | place


cdef void page_fill(char* target, uint32_t number, uint32_t page, uint32_t version) noexcept nogil:
    cdef uint32_t place
    for place in range(PAGE_WORDS):
        (<uint64_t*>target)[place] = word_of(number, page, version, place)


cdef bint words_good(Work* work, uint32_t m, const uint64_t* words, uint64_t first, uint64_t nr, uint32_t low,
                     uint32_t high, bint whole) noexcept nogil:
    """Checks words `first` and following of a file, all of one page, against the versions that they may have."""
    cdef uint32_t number = work.files[m].number
    cdef uint32_t page = <uint32_t>(first // PAGE_WORDS), version
    cdef uint64_t i, word
    for i in range(nr):
        word = words[i]
        version = <uint32_t>(word >> 12)
        if word == 0:
            if low > 0:
                work_failed(work, UNEXPECTED_ZEROS, page, word, low, high)
                return False
        elif word != word_of(number, page, version, <uint32_t>((first + i) % PAGE_WORDS)):
            work_failed(work, FOREIGN_BYTES, page, word, number, high)
            return False
        elif version < low:
            work_failed(work, OLD_BYTES, page, word, low, high)
            return False
        elif version > high:
            work_failed(work, FUTURE_BYTES, page, word, low, high)
            return False
        if whole and <uint32_t>(words[0] >> 12) != version:
            work_failed(work, TORN_BYTES, page, word, words[0] >> 12, high)
            return False
    return True


cdef void file_resize(Work* work, uint32_t m, uint32_t nr_pages) noexcept nogil:
    store_release_u64(&work.seg.mappings[work.files[m].number].disk_size, <uint64_t>nr_pages * PAGE_SIZE)
    store_release_u64(&work.seg.mappings[work.files[m].number].size, <uint64_t>nr_pages * PAGE_SIZE)
