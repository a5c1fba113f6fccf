"""The engine's operations timed in C, in one thread or two, without the GIL.

A run builds a mapping of single-page folios in random frames, starts its threads together and has each repeat one
operation over shuffled page indices, or always over the same page. `measure` returns nanoseconds an operation: elapsed
time over the operations of all threads, so that perfect scaling halves it for two threads. `Pages` does the same round by
round, for those who time something else in between.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec
from pagecache.core.atomic cimport add_acq_rel_u32, cpu_relax, load_acquire_u32, pc_u32, store_relaxed_u32
from pagecache.core.balloon cimport balloon_init
from pagecache.core.charge cimport mapping_add_ensured, records_ensure
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.folio cimport (FOLIO_LOCKED, FOLIO_UPTODATE, folio_alloc_nowait, folio_clear, folio_end_read,
                                   folio_trylock, folio_unlock)
from pagecache.core.futex cimport futex_setup
from pagecache.core.lookup cimport filemap_get_entry, read_cached
from pagecache.core.lru cimport folio_free_last, folio_put
from pagecache.core.mapping cimport entry_frame, filemap_remove_clean, mapping_alloc
from pagecache.core.memory cimport memory_unmap
from pagecache.core.segment cimport Folio, Segment, frame_address, folio_number, segment_create
from pagecache.core.thread cimport monotonic_ns, pc_thread, thread_join, thread_start
from pagecache.core.xa_entry cimport xa_entry
from pagecache.core.xa_node cimport XArray
from pagecache.core.xa_walk cimport xa_load

import random

cdef enum:
    THREADS_MAX = 8
    SPARE_FRAMES = 1024             # for what the insert+evict operation inserts
    RADIX_SHIFT = 6
    RADIX_MASK = 63
    COPY_BYTES = 64

cdef enum Operation:
    RADIX_WALK                      # bare three-level walk, for comparison
    LOOKUP
    LOOKUP_PIN                      # lookup + pin + unpin
    COPY                            # what a small cached read does: optimistic, no reference
    INSERT_EVICT
    LOCK_UNLOCK

OPERATIONS = {
    "radix walk": RADIX_WALK,
    "lookup": LOOKUP,
    "lookup+pin+unpin": LOOKUP_PIN,
    "copy of 64 bytes": COPY,
    "insert+evict": INSERT_EVICT,
    "lock+unlock": LOCK_UNLOCK,
}

cdef uint64_t NO_PAGE = ~<uint64_t>0    # as the page read before: every read counts as an access

ctypedef struct Bench:              # what the threads of a run share
    Segment seg
    uint32_t number                 # of the mapping
    uint32_t nr_pages               # a power of two
    uint32_t* indices               # nr_pages of them, in the order of access
    uint32_t* radix                 # nodes of 64 slots; the root is the first
    uint64_t nr_operations          # of one thread
    uint32_t nr_threads
    Operation operation
    pc_u32 nr_ready                 # threads that wait for the others

ctypedef struct Worker:
    Bench* bench
    uint32_t slot                   # 0, 1 ...
    int64_t start_ns
    int64_t end_ns
    int64_t cpu_ns                  # of this thread
    uint64_t sum                    # of what was found: keeps the compiler from leaving the work out
    int error


cdef inline uint32_t radix_load(const uint32_t* radix, uint32_t index) noexcept nogil:
    cdef uint32_t node = radix[index >> (2 * RADIX_SHIFT)]
    node = radix[(node << RADIX_SHIFT) + ((index >> RADIX_SHIFT) & RADIX_MASK)]
    return radix[(node << RADIX_SHIFT) + (index & RADIX_MASK)]


cdef int insert_evict(Bench* bench, uint64_t index) noexcept nogil:
    """Adds a folio to the mapping and removes it again, leaving a shadow as reclaim does."""
    cdef Segment* seg = &bench.seg
    cdef Folio* folio = folio_alloc_nowait(seg, 0)
    cdef int error
    if folio == NULL:
        return -1
    error = mapping_add_ensured(seg, bench.number, folio, index, FOLIO_UPTODATE, False)
    if error == 0:
        error = filemap_remove_clean(seg, folio, 1, True)
    if error == 0:
        folio_clear(folio, FOLIO_LOCKED)
        folio_free_last(seg, folio)
    return error


cdef void work(Worker* worker, uint64_t nr_operations) noexcept nogil:
    """Repeats the operation."""
    cdef Bench* bench = worker.bench
    cdef Segment* seg = &bench.seg
    cdef uint32_t mask = bench.nr_pages - 1
    cdef uint32_t* indices = bench.indices
    cdef uint64_t first = <uint64_t>worker.slot * (bench.nr_pages // 2)
    cdef uint64_t unused = <uint64_t>bench.nr_pages * (1 + worker.slot)     # where this thread inserts
    cdef uint64_t i, offset, sum = 0
    cdef xa_entry entry = 0
    cdef XArray* pages = &seg.mappings[bench.number].pages      # as an open file keeps it
    cdef Folio* folio
    cdef char[64] target
    if bench.operation == RADIX_WALK:
        for i in range(first, first + nr_operations):
            sum += radix_load(bench.radix, indices[i & mask])
    elif bench.operation == LOOKUP:
        for i in range(first, first + nr_operations):
            sum += entry_frame(xa_load(pages, &seg.pool, indices[i & mask]))
    elif bench.operation == LOOKUP_PIN:
        for i in range(first, first + nr_operations):
            folio = filemap_get_entry(seg, bench.number, indices[i & mask], &entry)
            sum += entry
            folio_put(seg, folio)
    elif bench.operation == COPY:
        for i in range(first, first + nr_operations):
            offset = <uint64_t>indices[i & mask] << PAGE_SHIFT
            sum += read_cached(seg, bench.number, offset, COPY_BYTES, target, NO_PAGE)
        worker.error = sum != nr_operations * COPY_BYTES
    elif bench.operation == INSERT_EVICT:
        for i in range(first, first + nr_operations):
            if insert_evict(bench, unused + indices[i & mask]) != 0:
                worker.error = 1
                break
    else:
        for i in range(first, first + nr_operations):
            entry = xa_load(&seg.mappings[bench.number].pages, &seg.pool, indices[i & mask])
            folio = &seg.folios[entry_frame(entry)]
            while not folio_trylock(folio):
                cpu_relax()
            sum += entry
            folio_unlock(seg, folio)
    worker.sum = sum


cdef int64_t thread_cpu_ns() noexcept nogil:
    """Processor time of this thread."""
    cdef timespec now
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef void* run(void* argument) noexcept nogil:
    """A thread: visits every page, which is not timed, waits until all are there, then works."""
    cdef Worker* worker = <Worker*>argument
    cdef int64_t cpu_ns
    work(worker, worker.bench.nr_pages)
    add_acq_rel_u32(&worker.bench.nr_ready, 1)
    while load_acquire_u32(&worker.bench.nr_ready) < worker.bench.nr_threads:
        cpu_relax()
    cpu_ns = thread_cpu_ns()
    worker.start_ns = monotonic_ns()
    work(worker, worker.bench.nr_operations)
    worker.end_ns = monotonic_ns()
    worker.cpu_ns = thread_cpu_ns() - cpu_ns
    return NULL


cdef int fill(Bench* bench) noexcept nogil:
    """Adds a folio for every index, in the order of `indices`, and fills the bare radix tree."""
    cdef uint32_t i, node, index
    cdef Folio* folio
    cdef int error
    for i in range(bench.nr_pages):
        index = bench.indices[i]
        folio = folio_alloc_nowait(&bench.seg, 0)
        if folio == NULL:
            return -1
        error = mapping_add_ensured(&bench.seg, bench.number, folio, index, 0, False)
        if error != 0:
            return error
        memset(frame_address(&bench.seg, folio_number(&bench.seg, folio)), 1, PAGE_SIZE)
        folio_end_read(&bench.seg, folio, True)
        folio_put(&bench.seg, folio)
        node = 1 + (index >> (2 * RADIX_SHIFT))
        bench.radix[index >> (2 * RADIX_SHIFT)] = node
        bench.radix[(node << RADIX_SHIFT) + ((index >> RADIX_SHIFT) & RADIX_MASK)] = 65 + (index >> RADIX_SHIFT)
        bench.radix[((65 + (index >> RADIX_SHIFT)) << RADIX_SHIFT) + (index & RADIX_MASK)] = index + 1
    return 0


cdef int64_t timed(Bench* bench, int64_t* cpu_ns) except -1:
    """Runs the threads; returns nanoseconds from the first start to the last end, and their processor time."""
    cdef Worker[8] workers
    cdef pc_thread[8] threads
    cdef uint32_t i
    cdef int64_t start_ns, end_ns
    memset(workers, 0, sizeof(workers))
    memset(threads, 0, sizeof(threads))
    store_relaxed_u32(&bench.nr_ready, 0)
    with nogil:
        for i in range(bench.nr_threads):
            workers[i].bench = bench
            workers[i].slot = i
            if thread_start(&threads[i], run, &workers[i]) != 0:
                workers[i].error = 1
                add_acq_rel_u32(&bench.nr_ready, 1)
        for i in range(bench.nr_threads):
            thread_join(&threads[i])
    start_ns, end_ns = workers[0].start_ns, workers[0].end_ns
    cpu_ns[0] = 0
    for i in range(bench.nr_threads):
        if workers[i].error:
            raise RuntimeError("an operation failed, or a thread did not start")
        start_ns = min(start_ns, workers[i].start_ns)
        end_ns = max(end_ns, workers[i].end_ns)
        cpu_ns[0] += workers[i].cpu_ns
    return end_ns - start_ns


cdef class Pages:
    """A mapping of single-page folios in random frames, and a bare radix tree of as many entries.

    Arguments:
        nr_pages: pages of the mapping; a power of two from 64 to 262,144.
    Raises:
        ValueError: an argument is out of range.
        MemoryError: there is no room for the pages.
    """
    cdef Bench bench
    cdef readonly list order            # all page indices, shuffled otherwise than they were added

    def __cinit__(self, nr_pages: int = 65536) -> None:
        cdef uint32_t i
        if nr_pages & (nr_pages - 1) or not 64 <= nr_pages <= 262144:
            raise ValueError(f"nr_pages is {nr_pages}; it must be a power of two from 64 to 262144")
        self.bench.nr_pages = nr_pages
        if segment_create(&self.bench.seg, self.bench.nr_pages + SPARE_FRAMES, 4, True, -1, 0) != 0:
            raise MemoryError("no room for the segment")
        self.bench.indices = <uint32_t*>malloc(self.bench.nr_pages * sizeof(uint32_t))
        self.bench.radix = <uint32_t*>calloc((65 + nr_pages // 64) * 64, sizeof(uint32_t))
        if self.bench.indices == NULL or self.bench.radix == NULL:
            raise MemoryError("no room for the indices")
        for i, index in enumerate(random.Random(1).sample(range(nr_pages), nr_pages)):
            self.bench.indices[i] = index
        balloon_init(&self.bench.seg, self.bench.seg.nr_frames)
        records_ensure(&self.bench.seg)
        self.bench.number = mapping_alloc(&self.bench.seg)
        if fill(&self.bench) != 0:
            raise MemoryError("no room for the pages")
        self.order = random.Random(2).sample(range(nr_pages), nr_pages)

    def __dealloc__(self) -> None:
        free(self.bench.indices)
        free(self.bench.radix)
        if self.bench.seg.base != NULL:
            memory_unmap(self.bench.seg.base, self.bench.seg.total_bytes)

    def run(self, operation: str, nr_threads: int, hot: bool, nr_operations: int) -> tuple[float, float]:
        """Time one round of one of OPERATIONS.

        Arguments:
            operation: its name.
            nr_threads: how many threads do it at once, up to 8.
            hot: always on the same page, instead of shuffled ones.
            nr_operations: how many of them one thread does.
        Returns:
            Nanoseconds of an operation: elapsed time, and processor time, over the operations of all threads.
        Raises:
            ValueError: an argument is out of range.
            RuntimeError: an operation failed.
        """
        cdef uint32_t i
        cdef int64_t elapsed_ns, cpu_ns = 0
        if not 1 <= nr_threads <= THREADS_MAX:
            raise ValueError(f"nr_threads is {nr_threads}; it must be 1 to {THREADS_MAX}")
        self.bench.operation = OPERATIONS[operation]
        self.bench.nr_threads = nr_threads
        self.bench.nr_operations = nr_operations
        for i in range(self.bench.nr_pages):
            self.bench.indices[i] = 0 if hot else self.order[i]
        elapsed_ns = timed(&self.bench, &cpu_ns)
        return elapsed_ns / (nr_operations * nr_threads), cpu_ns / (nr_operations * nr_threads)


def measure(operation: str, nr_threads: int = 1, hot: bool = False, nr_operations: int = 10_000_000,
            nr_pages: int = 65536, rounds: int = 7) -> list[float]:
    """Time one of OPERATIONS on new pages.

    Arguments:
        operation, nr_threads, hot, nr_operations: as for `Pages.run`.
        nr_pages: as for `Pages`.
        rounds: how often it is repeated.
    Returns:
        Nanoseconds of an operation, of every round.
    """
    pages = Pages(nr_pages)
    return [pages.run(operation, nr_threads, hot, nr_operations)[0] for _ in range(rounds)]


futex_setup()
