"""Reads in the background, for stores with a file descriptor: submitted, carried out and completed without the GIL.

A request is a run of locked, new folios and what to read into them.  It owns the folios' locks and one reference each.
Completion makes them uptodate and unlocks them, or, after an error or when the file is not the one that is cached any
more, takes them out of the mapping: no reader asked for them yet, so the error is counted and a reader that needs such a
page reads it itself and sees it.

Two backends, chosen per request
    ring      one thread owns an io_uring: it takes requests from the queue, keeps up to RING_ENTRIES in flight and
              completes them. Used for O_DIRECT files; others wake it through an eventfd.
    threads   a few threads that call preadv. Used for buffered files (a buffered read often blocks, or copies, in the
              thread that submits it), and for everything where io_uring is missing or forbidden.
Threads are started when the first request needs them and end with the segment.

`Mapping.nr_inflight` counts requests: a descriptor may be closed, and a mapping freed, when it is 0.
"""
from libc.errno cimport EAGAIN, EINTR, ESTALE
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from pagecache.core.atomic cimport add_acq_rel_u32, load_acquire_u32, pc_u32, store_release_u32, sub_acq_rel_u32
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.folio cimport folio_end_read, folio_mapping, folio_unlock
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.io cimport iovec, read_vector, run_vector, run_zero_tail, vector_advance
from pagecache.core.lock cimport WAKE_ALL, FutexLock, futex_lock, futex_unlock
from pagecache.core.lru cimport folio_put
from pagecache.core.mapping cimport filemap_remove_folio
from pagecache.core.ring cimport (RING_WAKE_DATA, pc_ring, ring_arm_wake, ring_close, ring_read, ring_register,
                                  ring_setup, ring_submit_and_wait, ring_take, ring_wake)
from pagecache.core.segment cimport (READAHEAD_ERRORS, Folio, Segment, count, count_store_read)
from pagecache.core.stamp cimport stamp_is_current
from pagecache.core.thread cimport pc_thread, thread_join, thread_start

cdef enum:
    RING_ENTRIES = 64
    NR_IO_THREADS = 4

cdef enum:                          # IoQueue.backend
    IO_THREADS = 1
    IO_RING = 2

ctypedef struct IoRequest:
    IoRequest* next
    uint32_t mapping
    int fd
    bint direct
    int64_t offset                  # of the first folio, bytes
    uint64_t nbytes                 # wanted; the rest of the folios is zeroed
    uint64_t done
    uint32_t nr
    int nr_pieces
    iovec* vector                   # what is left to read
    Folio** folios                  # behind the request in one block, as is the vector's memory

ctypedef struct IoList:
    IoRequest* first
    IoRequest* last

ctypedef struct IoQueue:
    Segment* seg
    FutexLock lock                   # guards the lists
    IoList buffered                 # for the threads
    IoList direct                   # for the ring
    pc_u32 event                    # changes when the threads have something to do
    pc_u32 ending
    pc_u32 nr_inflight
    int backend                     # what O_DIRECT requests use
    uint32_t nr_ring_inflight       # owned by the ring's thread
    pc_ring ring
    pc_thread ring_thread
    pc_thread threads[4]
    bint started_threads


# -- requests --------------------------------------------------------------------------------------------------------

cdef inline IoRequest* io_request_new(Segment* seg, uint32_t mapping, Folio** folios, uint32_t nr) noexcept nogil:
    """A request for a run of folios, all in one block of memory. NULL without memory."""
    cdef uint64_t nbytes = sizeof(IoRequest) + nr * (sizeof(iovec) + sizeof(Folio*))
    cdef IoRequest* request = <IoRequest*>malloc(nbytes)
    cdef uint32_t i
    if request == NULL:
        return NULL
    request.next = NULL
    request.mapping = mapping
    request.done = 0
    request.nr = nr
    request.vector = <iovec*>(request + 1)
    request.folios = <Folio**>(request.vector + nr)
    for i in range(nr):
        request.folios[i] = folios[i]
    return request


cdef inline void io_prepare(Segment* seg, IoRequest* request) noexcept nogil:
    """Describes the memory to read into; direct files are asked for whole pages."""
    cdef uint64_t asked = request.nbytes
    if request.direct:
        asked = (asked + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
    request.nr_pieces = run_vector(seg, request.folios, request.nr, asked, request.vector)


cdef inline void io_complete(IoQueue* queue, IoRequest* request, int error) noexcept nogil:
    """Ends a request: its folios become readable, or leave the mapping."""
    cdef Segment* seg = queue.seg
    cdef uint32_t i
    if error == 0 and not stamp_is_current(&seg.mappings[request.mapping], request.fd):
        error = -ESTALE
    count_store_read(seg, &seg.mappings[request.mapping], request.done)
    if error == 0:
        run_zero_tail(seg, request.folios, request.nr, request.nbytes)
    else:
        count(seg, READAHEAD_ERRORS, 1)
    for i in range(request.nr):
        if error == 0:
            folio_end_read(seg, request.folios[i], True)
        else:
            if folio_mapping(request.folios[i]) != 0:
                filemap_remove_folio(seg, request.folios[i])
            folio_unlock(seg, request.folios[i])
        folio_put(seg, request.folios[i])
    sub_acq_rel_u32(&seg.mappings[request.mapping].nr_inflight, 1)
    futex_wake(&seg.mappings[request.mapping].nr_inflight, WAKE_ALL)
    sub_acq_rel_u32(&queue.nr_inflight, 1)
    free(request)


cdef inline bint io_advance(IoRequest* request, int64_t got) noexcept nogil:
    """Accounts for bytes that arrived. Returns whether more must be read."""
    request.done += <uint64_t>got
    if request.done >= request.nbytes:
        request.done = request.nbytes
        return False
    vector_advance(&request.vector, &request.nr_pieces, <uint64_t>got)
    return True


cdef inline void io_run(IoQueue* queue, IoRequest* request) noexcept nogil:
    """Carries a request out in the calling thread."""
    cdef int64_t got
    while True:
        got = read_vector(request.fd, request.vector, request.nr_pieces, request.offset + <int64_t>request.done)
        if got <= 0:
            io_complete(queue, request, <int>got if got < 0 else -ESTALE)
            return
        if not io_advance(request, got):
            io_complete(queue, request, 0)
            return


# -- queue -----------------------------------------------------------------------------------------------------------

cdef inline void io_push(IoQueue* queue, IoList* items, IoRequest* request) noexcept nogil:
    futex_lock(&queue.lock)
    if items.last == NULL:
        items.first = request
    else:
        items.last.next = request
    items.last = request
    futex_unlock(&queue.lock)


cdef inline IoRequest* io_pop(IoQueue* queue, IoList* items) noexcept nogil:
    cdef IoRequest* request
    futex_lock(&queue.lock)
    request = items.first
    if request != NULL:
        items.first = request.next
        if items.first == NULL:
            items.last = NULL
    futex_unlock(&queue.lock)
    return request


cdef inline bint io_is_empty(IoQueue* queue, IoList* items) noexcept nogil:
    cdef bint empty
    futex_lock(&queue.lock)
    empty = items.first == NULL
    futex_unlock(&queue.lock)
    return empty


cdef inline void* io_thread_main(void* argument) noexcept nogil:
    """One of the threads: takes requests until the queue ends and is empty."""
    cdef IoQueue* queue = <IoQueue*>argument
    cdef IoRequest* request
    cdef uint32_t event
    while True:
        event = load_acquire_u32(&queue.event)
        request = io_pop(queue, &queue.buffered)
        if request != NULL:
            io_run(queue, request)
        elif load_acquire_u32(&queue.ending):
            return NULL
        else:
            futex_wait(&queue.event, event, -1)


cdef inline void io_ring_submit(IoQueue* queue, IoRequest* request) noexcept nogil:
    ring_read(&queue.ring, request.fd, request.vector, <unsigned>request.nr_pieces,
              request.offset + <int64_t>request.done, <uint64_t>request, queue.seg.frames)


cdef inline void io_ring_complete(IoQueue* queue, IoRequest* request, int32_t result) noexcept nogil:
    if result == -EAGAIN or result == -EINTR or (result > 0 and io_advance(request, result)):
        io_ring_submit(queue, request)
        return
    queue.nr_ring_inflight -= 1
    io_complete(queue, request, 0 if result > 0 else result if result < 0 else -ESTALE)


cdef inline void* io_ring_main(void* argument) noexcept nogil:
    """The ring's owner: keeps it filled from the queue and completes what comes back."""
    cdef IoQueue* queue = <IoQueue*>argument
    cdef IoRequest* request
    cdef uint64_t data
    cdef int32_t result
    ring_arm_wake(&queue.ring)
    while True:
        while queue.nr_ring_inflight < RING_ENTRIES - 2:
            request = io_pop(queue, &queue.direct)
            if request == NULL:
                break
            queue.nr_ring_inflight += 1
            io_ring_submit(queue, request)
        if load_acquire_u32(&queue.ending) and queue.nr_ring_inflight == 0 and io_is_empty(queue, &queue.direct):
            return NULL
        ring_submit_and_wait(&queue.ring)
        while ring_take(&queue.ring, &data, &result):
            if data == RING_WAKE_DATA:
                ring_arm_wake(&queue.ring)
            else:
                io_ring_complete(queue, <IoRequest*>data, result)


# -- life ------------------------------------------------------------------------------------------------------------

cdef inline void io_queue_init(IoQueue* queue, Segment* seg, bint allow_ring, bint register_frames) noexcept nogil:
    """Prepares a zeroed queue; chooses the backend."""
    queue.seg = seg
    queue.backend = IO_THREADS
    if not allow_ring or ring_setup(&queue.ring, RING_ENTRIES) != 0:
        return
    if register_frames:
        seg.is_pinned = ring_register(&queue.ring, seg.frames, <size_t>seg.nr_frames << PAGE_SHIFT) == 0
    if thread_start(&queue.ring_thread, io_ring_main, queue) != 0:
        ring_close(&queue.ring)
        return
    queue.backend = IO_RING


cdef inline bint io_start_threads(IoQueue* queue) noexcept nogil:
    """Starts the threads once. Returns whether there is at least one."""
    cdef int i
    futex_lock(&queue.lock)
    if not queue.started_threads:
        queue.started_threads = True
        for i in range(NR_IO_THREADS):
            thread_start(&queue.threads[i], io_thread_main, queue)
    futex_unlock(&queue.lock)
    return queue.threads[0].started


cdef inline void io_submit(IoQueue* queue, IoRequest* request) noexcept nogil:
    """Starts a prepared request; without threads it is carried out at once."""
    add_acq_rel_u32(&queue.seg.mappings[request.mapping].nr_inflight, 1)
    add_acq_rel_u32(&queue.nr_inflight, 1)
    if request.direct and queue.backend == IO_RING:
        io_push(queue, &queue.direct, request)
        ring_wake(&queue.ring)
    elif io_start_threads(queue):
        io_push(queue, &queue.buffered, request)
        add_acq_rel_u32(&queue.event, 1)
        futex_wake(&queue.event, 1)
    else:
        io_run(queue, request)


cdef inline void io_queue_end(IoQueue* queue) noexcept nogil:
    """Carries out what is queued, then ends the threads."""
    cdef int i
    if queue.seg == NULL:
        return
    store_release_u32(&queue.ending, 1)
    add_acq_rel_u32(&queue.event, 1)
    futex_wake(&queue.event, WAKE_ALL)
    for i in range(NR_IO_THREADS):
        thread_join(&queue.threads[i])
    if queue.backend == IO_RING:
        ring_wake(&queue.ring)
        thread_join(&queue.ring_thread)
        ring_close(&queue.ring)
