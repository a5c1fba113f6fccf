"""The engine driven from C threads that never take the GIL: lookups, copies, pins, writes, write-back, syncs, truncation,
splits, eviction and background reads of the same pages at the same time. Built in the lanes check, asan and tsan.

Every 8 bytes of a page name their mapping, page, place and version, so a reader knows for each whether it may see it:
    identity    the bytes are this page's, or the zeros of a page that was truncated
    lower bound the version written last before the read began (nothing is lost, nothing comes back)
    upper bound the version begun last before the read ended
    unity       a short read of a page sees one version (sequence counter)
A sync that reports no error has at least the versions from before it in the file.

A run does a fixed number of operations, whatever the clock says; `run` raises AssertionError for what a thread saw,
then for what the segment's own check finds.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from pagecache.core.admit cimport policy_init
from pagecache.core.atomic cimport (add_acq_rel_u32, cpu_relax, load_acquire_u32, pc_u32, store_relaxed_u32,
                                    store_relaxed_u64, store_release_u32)
from pagecache.core.balloon cimport balloon_give_excess, balloon_init, balloon_missing
from pagecache.core.charge cimport balloon_fill, records_ensure
from pagecache.core.config cimport PAGE_SIZE
from pagecache.core.errseq cimport errseq_sample
from pagecache.core.futex cimport futex_setup
from pagecache.core.io_queue cimport io_queue_end, io_queue_init
from pagecache.core.mapping cimport mapping_alloc, mapping_free, mapping_set_tenant
from pagecache.core.memory cimport memory_unmap, memory_unpoison
from pagecache.core.reclaim cimport kswapd_end, kswapd_main, reclaim_pages
from pagecache.core.segment cimport (NR_PRIORITIES, READAHEAD_ERRORS, counted, header_set_budget,
                                     header_set_dirty_limits, segment_create)
from pagecache.core.stamp cimport stamp_take
from pagecache.core.thread cimport pc_thread, thread_join, thread_main as thread_function, thread_start
from pagecache.core.verify cimport Finding, segment_verify

import os

include "tests/engine/engine_threads/oracle.pxi"       # what the bytes of a page must be
include "tests/engine/engine_threads/readers.pxi"      # reads, lines, pins, fills
include "tests/engine/engine_threads/writers.pxi"      # writes, write-back, syncs
include "tests/engine/engine_threads/removers.pxi"     # truncation, eviction, splits
include "tests/engine/engine_threads/truncations.pxi"         # a file that is truncated and written again
include "tests/engine/engine_threads/reuse.pxi"        # pages that change between two steps of a reader

cdef enum:
    THREADS_MAX = 16

OPERATIONS = ("read", "read_pinned", "read_ahead", "write", "write_back", "sync", "truncate", "evict", "split", "sample",
              "read_line", "resize")
POLICIES = ("kernel", "s3fifo", "sieve", "lirs", "adaptive")     # in the order of PolicyNumber


cdef void step(Worker* worker) noexcept nogil:
    """One operation, chosen at random; on few pages only what brings them in, reads them and evicts them, so that the
    same frames come back for the same pages all the time."""
    cdef uint32_t m = random_below(worker, NR_FILES) if worker.work.span == NR_PAGES else 0
    cdef uint32_t page = random_below(worker, worker.work.span)
    cdef uint32_t choice = random_below(worker, 100)
    cdef int what
    if worker.work.span < NR_PAGES and choice >= 60:
        choice = 93
    if choice < 40:
        what = 0
        read_page(worker, m, page)
    elif choice < 50:
        what = 10
        read_line(worker, m, page)
    elif choice < 60:
        what = 1
        read_pinned(worker, m, page)
    elif choice < 64:
        what = 2
        read_ahead(worker, m, page)
    elif choice < 82:
        what = 3
        write_pages(worker, m, page)
    elif choice < 88:
        what = 4
        write_back(worker, m, page, NR_PAGES - 1, MARK_DIRTY, True)
    elif choice < 90:
        what = 5
        sync_pages(worker, m)
    elif choice < 91:
        what = 6
        truncate(worker, m, page)
    elif choice < 96:
        what = 7
        evict(worker, m, page)
    elif choice < 97:
        what = 8
        split(worker, m, page)
    elif choice < 98:
        what = 11
        resize(worker)
    else:
        what = 9
        errseq_sample(&worker.work.seg.mappings[worker.work.files[m].number].wb_err)
        change_priority(worker, m)
        reclaim_pages(&worker.work.seg, 4)
        hold_block(worker)
    worker.counts[what] += 1


cdef void change_priority(Worker* worker, uint32_t m) noexcept nogil:
    """Gives a file another priority and tenant, most often none."""
    cdef Mapping* mapping = &worker.work.seg.mappings[worker.work.files[m].number]
    store_relaxed_u32(&mapping.priority, random_below(worker, 2) * random_below(worker, NR_PRIORITIES))
    mapping_set_tenant(&worker.work.seg, mapping, random_below(worker, 3))


cdef void wait_for_all(Work* work) noexcept nogil:
    """Waits until all threads are there."""
    add_acq_rel_u32(&work.nr_ready, 1)
    while load_acquire_u32(&work.nr_ready) < work.nr_threads:
        cpu_relax()


cdef void* thread_main(void* argument) noexcept nogil:
    """A thread: waits until all are there, then works until it has done its part or one has failed."""
    cdef Worker* worker = <Worker*>argument
    cdef uint64_t i
    wait_for_all(worker.work)
    for i in range(worker.nr_steps):
        if load_acquire_u32(&worker.work.failure):
            break
        step(worker)
    return NULL


cdef void run_threads(Work* work, Worker* workers, thread_function main) noexcept nogil:
    """Runs a thread for each worker, and waits for all."""
    cdef pc_thread[16] threads      # THREADS_MAX of them
    cdef uint32_t i
    memset(threads, 0, sizeof(threads))
    for i in range(work.nr_threads):
        if thread_start(&threads[i], main, &workers[i]) != 0:
            work_failed(work, NO_THREAD, i, 0, 0, 0)
            add_acq_rel_u32(&work.nr_ready, 1)
    for i in range(work.nr_threads):
        thread_join(&threads[i])


cdef int prepare(Work* work, list descriptors, uint32_t nr_frames, uint32_t policy) except -1:
    """Makes the segment and its files, the first version of every page in each."""
    cdef uint32_t m, page
    if segment_create(&work.seg, nr_frames, 8, True, -1, 0) != 0:
        raise MemoryError("no room for the segment")
    policy_init(&work.seg, policy)
    balloon_init(&work.seg, nr_frames)
    store_relaxed_u64(&work.seg.header.tenants[1].share_pages, nr_frames // 2)
    header_set_dirty_limits(work.seg.header, nr_frames // 2, nr_frames // 4)
    io_queue_init(&work.queue, &work.seg, False, False)
    page_bytes = bytearray(PAGE_SIZE)
    for m in range(NR_FILES):
        records_ensure(&work.seg)
        work.files[m].number = mapping_alloc(&work.seg)
        work.files[m].fd = descriptors[m]
        for page in range(NR_PAGES):
            page_fill(<char*>page_bytes, work.files[m].number, page, 1)
            os.pwrite(descriptors[m], page_bytes, <uint64_t>page * PAGE_SIZE)
            store_release_u32(&work.files[m].begun[page], 1)
            store_release_u32(&work.files[m].done[page], 1)
        file_resize(work, m, NR_PAGES)
        stamp_take(&work.seg.mappings[work.files[m].number], work.files[m].fd)
    return 0


cdef int finish(Work* work) except -1:
    """Checks what is left: the files, the segment, and that every frame comes back."""
    cdef Worker last
    cdef Finding finding
    cdef bint good
    cdef uint32_t m
    memset(&last, 0, sizeof(Worker))
    last.work = work
    last.random = 1
    last.no_faults = True
    with nogil:
        for m in range(NR_FILES):
            sync_pages(&last, m)
            sync_pages(&last, m)            # the first may have reported an error of before
    raise_failure(work)
    with nogil:
        header_set_budget(work.seg.header, work.seg.nr_frames)
        balloon_give_excess(&work.seg)
        good = segment_verify(&work.seg, &finding)
    assert good, f"invariant {finding.what} at {finding.where}: expected {finding.expected}, found {finding.found}"
    assert counted(&work.seg, <int>READAHEAD_ERRORS) == 0, "a background read failed"
    with nogil:
        for m in range(NR_FILES):
            remove_from(&last, m, 0)
            mapping_free(&work.seg, work.files[m].number)
        good = segment_verify(&work.seg, &finding)
    assert good, f"invariant {finding.what} at {finding.where}: expected {finding.expected}, found {finding.found}"
    nr_free, nr_frames = load_acquire_u32(&work.seg.header.nr_free), work.seg.nr_frames
    assert nr_free == nr_frames, f"{nr_frames - nr_free} page frames are lost"
    return 0


cdef void give_back(Work* work) noexcept:
    """Lets go of the segment and the work."""
    memory_unpoison(work.seg.base, work.seg.total_bytes)     # what is mapped there next is another's
    memory_unmap(work.seg.base, work.seg.total_bytes)
    free(work)


def run(descriptors: list, nr_frames: int, nr_threads: int, nr_steps: int, seed: int, faults: bool,
        span: int = NR_PAGES, policy: str = "kernel") -> dict:
    """Let threads work on files that start with the first version of every page.

    Arguments:
        descriptors: NR_FILES descriptors of empty files, open for reading and writing.
        nr_frames: page frames of the segment.
        nr_threads: up to 16.
        nr_steps: operations of one thread.
        seed: of the choices; not of the schedule.
        faults: whether some write-back fails.
        span: pages that are used; fewer than all: only reads and evictions.
        policy: one of POLICIES.
    Returns:
        How often each operation was done.
    Raises:
        AssertionError: a thread saw what it must not, or an invariant does not hold in the end.
    Context: without the GIL, but for the beginning and the end.
    """
    cdef Work* work = <Work*>calloc(1, sizeof(Work))
    cdef Worker* workers = <Worker*>calloc(THREADS_MAX, sizeof(Worker))
    cdef pc_thread kswapd
    cdef uint32_t i
    memset(&kswapd, 0, sizeof(kswapd))
    if work == NULL or workers == NULL:
        raise MemoryError
    assert 1 <= nr_threads <= THREADS_MAX and 1 <= span <= NR_PAGES and len(descriptors) == NR_FILES
    prepare(work, descriptors, nr_frames, POLICIES.index(policy))
    work.nr_threads = nr_threads
    work.span = span
    for i in range(work.nr_threads):
        workers[i].work = work
        workers[i].random = <uint64_t>seed * 1000 + i + 1
        workers[i].nr_steps = nr_steps
        workers[i].no_faults = not faults
    with nogil:
        if work.seg.header.watermark_low > 0:
            thread_start(&kswapd, kswapd_main, &work.seg)
        run_threads(work, workers, thread_main)
        io_queue_end(&work.queue)
        if kswapd.started:
            kswapd_end(&work.seg)
            thread_join(&kswapd)
    raise_failure(work)
    finish(work)
    counts = {name: sum(workers[i].counts[number] for i in range(nr_threads)) for number, name in enumerate(OPERATIONS)}
    free(workers)
    give_back(work)
    return counts


futex_setup()
