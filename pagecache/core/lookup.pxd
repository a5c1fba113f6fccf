"""Reading the index and the data without locks: the hit path.

Optimistic read, folio by folio
    1. entry = walk of the index                            (no lock; the entry gives the data's address: prefetch it)
    2. s = seq (acquire, even), mapping (acquire), index, then state (acquire), in this order
       uptodate, no readahead marker, order of the entry, this mapping, this index: else the slow path
    3. copy
    4. acquire fence, seq still s: the bytes were this page's all the time; else again
No reference is taken and nothing is written if the folio is known to be in use, so threads that read the same page do
not disturb each other.  A removed folio's frame cannot be reused before its seq has changed, so step 4 catches every
reuse; an unlucky walk through a reused node can only end in a descriptor that fails step 2.  The order in step 2
matters when the same frame comes back for the same page: a mapping that is seen set again, after a seq that says it was
cleared, makes the load of state see the new folio, which is not uptodate before its bytes are there.  A state loaded
before could be the old folio's, as it outlives its mapping.

Long reads do the same for eight pages at a time, whose lines are copied in turns (copy.h): each folio is validated before
the copy and again after it, and the bytes count up to the first one that changed.
The pinned variant takes a reference between 1 and 2 (increment unless zero), so that long copies may take their time.
A lookup that finds nothing without the lock looks again under xa_lock before it is believed.

i_size is read before the copy, to clip. A truncation moves it, then counts in Mapping.nr_truncations, and only then
changes bytes. A reader loads nr_truncations before i_size and again after the copy (`mapping_not_truncated_since`), and
copies again if the file was truncated meanwhile: a second look at i_size would not do, as the file may have been written
to the same size since.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport fence_acquire, load_acquire_u32, load_relaxed_u32, prefetch_read
from pagecache.core.buddy cimport FOLIO_ORDER_SHIFT
from pagecache.core.check cimport PC_OPTIMISTIC, pc_assert
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.copy cimport COPY_STREAMS, copy_long, copy_page, copy_pages, prefetch_range
from pagecache.core.folio cimport (FOLIO_DROPBEHIND, FOLIO_ORDER_MASK, FOLIO_READAHEAD, FOLIO_UNUSED, FOLIO_UPTODATE,
                                   folio_index, folio_mapping, folio_mark_accessed, folio_nr_pages, folio_order,
                                   folio_try_get)
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.lru cimport folio_put
from pagecache.core.mapping cimport entry_frame, entry_order
from pagecache.core.segment cimport (OPTIMISTIC_RETRIES, READAHEAD_HITS, Folio, Mapping, Segment, count,
                                     frame_address)
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer
from pagecache.core.xa_walk cimport xa_load

cdef enum:
    COPY_PAGE_MAX = 8192            # bytes; longer pieces are copied with a reference
    COPY_TURNS_MAX = 262144         # bytes of a read that are copied in turns though they lie side by side
    TURNS_ORDER = 6                 # folios of that order lie side by side well enough
    READ_TRIES = 8                  # times an optimistic copy is repeated before the slow path takes over

cdef inline void folio_used(Segment* seg, Folio* folio) noexcept nogil:
    """Notes an access by a reader."""
    if load_relaxed_u32(&folio.state) & FOLIO_UNUSED:
        count(seg, READAHEAD_HITS, folio_nr_pages(folio))
    folio_mark_accessed(folio)


cdef inline bint folio_is(Folio* folio, uint32_t number, uint64_t index) noexcept nogil:
    """Whether the folio caches page `index` of the mapping. Certain only while a reference or the lock is held."""
    if folio_mapping(folio) != number:      # before the index: a new folio has its former one until it is added
        return False
    return index - folio_index(folio) < folio_nr_pages(folio)


cdef inline Folio* filemap_get_locked(Segment* seg, uint32_t number, uint64_t index, xa_entry* entry) noexcept nogil:
    """The authoritative lookup, under xa_lock: a referenced folio, or NULL with the entry (0 or a shadow)."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef Folio* folio = NULL
    futex_lock(&mapping.pages.lock)
    entry[0] = xa_load(&mapping.pages, &seg.pool, index)
    if xa_is_pointer(entry[0]):
        folio = &seg.folios[entry_frame(entry[0])]
        if not folio_try_get(folio):
            pc_assert(False)
    futex_unlock(&mapping.pages.lock)
    return folio


cdef inline Folio* filemap_get_entry(Segment* seg, uint32_t number, uint64_t index, xa_entry* entry) noexcept nogil:
    """Speculative lookup: a referenced folio that caches the page, or NULL with the entry (0 or a shadow)."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef Folio* folio
    entry[0] = xa_load(&mapping.pages, &seg.pool, index)
    if xa_is_pointer(entry[0]):
        folio = &seg.folios[entry_frame(entry[0])]
        if folio_try_get(folio):
            if folio_is(folio, number, index):
                return folio
            folio_put(seg, folio)
    return filemap_get_locked(seg, number, index, entry)


cdef inline bint folio_readable(uint32_t state, uint32_t order) noexcept nogil:
    """Uptodate, of the entry's order, and nothing a reader would have to act on."""
    return (state & (FOLIO_ORDER_MASK | FOLIO_UPTODATE | FOLIO_READAHEAD | FOLIO_DROPBEHIND)) == (
        <uint32_t>FOLIO_UPTODATE | (order << FOLIO_ORDER_SHIFT))


cdef inline uint64_t read_chunk_pinned(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes, char* target,
                                       uint64_t last_index) noexcept nogil:
    """Copies what one cached folio holds of [pos, pos + nbytes), with a reference held meanwhile. Returns the bytes
    copied, 0 if the slow path must help. An access is noted unless the folio also holds page `last_index`, the one read
    before."""
    cdef uint64_t index = pos >> PAGE_SHIFT
    cdef xa_entry entry = xa_load(&seg.mappings[number].pages, &seg.pool, index)
    cdef uint32_t frame, order
    cdef uint64_t first, offset
    cdef Folio* folio
    if not xa_is_pointer(entry):
        return 0
    order = entry_order(entry)
    frame = entry_frame(entry)
    folio = &seg.folios[frame]
    if not folio_try_get(folio):
        return 0
    first = index & ~((<uint64_t>1 << order) - 1)
    offset = pos - (first << PAGE_SHIFT)
    if nbytes > (<uint64_t>PAGE_SIZE << order) - offset:
        nbytes = (<uint64_t>PAGE_SIZE << order) - offset
    if (not folio_readable(load_acquire_u32(&folio.state), order) or folio_mapping(folio) != number
            or folio_index(folio) != first):
        folio_put(seg, folio)
        return 0
    copy_long(target, frame_address(seg, frame) + offset, nbytes)
    if last_index < first or last_index - first >= (<uint64_t>1 << order):
        folio_used(seg, folio)
    folio_put(seg, folio)
    return nbytes


cdef inline uint64_t read_chunk(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes, char* target,
                                uint64_t last_index) noexcept nogil:
    """The same without a reference, except for long pieces."""
    cdef uint64_t index = pos >> PAGE_SHIFT
    cdef xa_entry entry = xa_load(&seg.mappings[number].pages, &seg.pool, index)
    cdef uint32_t frame, order, seq, state
    cdef uint64_t first, offset
    cdef Folio* folio
    cdef const char* source
    if not xa_is_pointer(entry):
        return 0
    order = entry_order(entry)
    frame = entry_frame(entry)
    first = index & ~((<uint64_t>1 << order) - 1)
    offset = pos - (first << PAGE_SHIFT)
    source = frame_address(seg, frame) + offset
    if nbytes > (<uint64_t>PAGE_SIZE << order) - offset:
        nbytes = (<uint64_t>PAGE_SIZE << order) - offset
    if nbytes > COPY_PAGE_MAX:
        return read_chunk_pinned(seg, number, pos, nbytes, target, last_index)
    folio = &seg.folios[frame]
    seq = load_acquire_u32(&folio.seq)
    if seq & 1 or folio_mapping(folio) != number or folio_index(folio) != first:
        return 0
    state = load_acquire_u32(&folio.state)
    if not folio_readable(state, order):
        return 0
    copy_page(target, source, nbytes)
    fence_acquire()
    if load_relaxed_u32(&folio.seq) != seq:
        return 0
    if last_index < first or last_index - first >= (<uint64_t>1 << order):
        folio_used(seg, folio)
    return nbytes


ctypedef struct PageRun:            # folios whose pages are copied in turns
    uint32_t nr_wanted              # pages
    uint32_t nr_folios              # that hold their beginning
    Folio* folios[8]                # COPY_STREAMS of each
    uint32_t[8] seqs
    uint64_t[8] firsts              # index of the first page of each folio
    uint32_t[8] orders
    uint32_t[8] ends                # pages of the run up to the end of each
    const char* sources[8]          # of each page


cdef inline void page_run_find(PageRun* run, Segment* seg, uint32_t number, uint64_t index, uint32_t nr) noexcept nogil:
    """Where the data of the first COPY_STREAMS of `nr` pages from `index` on seems to be, as far as they are there; their
    descriptors and first lines are asked for."""
    cdef xa_entry entry
    cdef const char* address
    cdef uint32_t order, offset, found = 0
    if nr > COPY_STREAMS:
        nr = COPY_STREAMS
    run.nr_wanted = nr
    run.nr_folios = 0
    while found < nr:
        entry = xa_load(&seg.mappings[number].pages, &seg.pool, index + found)
        if not xa_is_pointer(entry):
            return
        order = entry_order(entry)
        offset = <uint32_t>(index + found) & ((<uint32_t>1 << order) - 1)
        address = frame_address(seg, entry_frame(entry)) + (<uint64_t>offset << PAGE_SHIFT)
        prefetch_read(&seg.folios[entry_frame(entry)].state)
        run.folios[run.nr_folios] = &seg.folios[entry_frame(entry)]
        run.firsts[run.nr_folios] = index + found - offset
        run.orders[run.nr_folios] = order
        while found < nr and offset < <uint32_t>1 << order:
            prefetch_read(address)
            run.sources[found] = address
            address += PAGE_SIZE
            offset += 1
            found += 1
        run.ends[run.nr_folios] = found
        run.nr_folios += 1


cdef inline uint32_t page_run_validate(PageRun* run, uint32_t number) noexcept nogil:
    """Ends the run at the first folio that is not to be read, and notes each one's seq. Returns its pages."""
    cdef uint32_t i
    for i in range(run.nr_folios):
        run.seqs[i] = load_acquire_u32(&run.folios[i].seq)
        if (run.seqs[i] & 1 or folio_mapping(run.folios[i]) != number or folio_index(run.folios[i]) != run.firsts[i]
                or not folio_readable(load_acquire_u32(&run.folios[i].state), run.orders[i])):
            run.nr_folios = i
            break
    return run.ends[run.nr_folios - 1] if run.nr_folios > 0 else 0


cdef inline uint32_t page_run_copy(PageRun* run, Segment* seg, uint32_t number, char* target,
                                   uint64_t last_index) noexcept nogil:
    """Copies the pages of a run as far as they are to be read, and were all the time. Returns how many those are."""
    cdef uint32_t i, nr = page_run_validate(run, number)
    if nr == 0:
        return 0
    copy_pages(target, run.sources, nr)
    fence_acquire()
    for i in range(run.nr_folios):
        if load_relaxed_u32(&run.folios[i].seq) != run.seqs[i]:
            return run.ends[i - 1] if i > 0 else 0
        if last_index < run.firsts[i] or last_index - run.firsts[i] >= <uint64_t>1 << run.orders[i]:
            folio_used(seg, run.folios[i])
    return nr


cdef inline uint64_t read_pages(Segment* seg, uint32_t number, uint64_t index, uint32_t nr, char* target,
                                uint64_t last_index) noexcept nogil:
    """Copies up to `nr` whole cached pages from page `index` on, COPY_STREAMS at a time, without a reference; what the next
    ones need travels meanwhile. Returns the bytes copied; 0 as for `read_chunk`."""
    cdef PageRun[2] runs
    cdef uint32_t turn = 0, done = 0, wanted, got
    page_run_find(&runs[0], seg, number, index, nr)
    while True:
        wanted = runs[turn].nr_wanted
        if done + wanted < nr:
            page_run_find(&runs[turn ^ 1], seg, number, index + done + wanted, nr - done - wanted)
        got = page_run_copy(&runs[turn], seg, number, target + (<uint64_t>done << PAGE_SHIFT), last_index)
        done += got
        if got < wanted or done == nr:
            return <uint64_t>done << PAGE_SHIFT
        last_index = index + done - 1
        turn ^= 1


cdef inline uint64_t read_piece(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes, char* target,
                                uint64_t last_index, bint in_turns) noexcept nogil:
    """Copies the next piece of a read: whole pages in turns where that may pay, up to the next page where it will."""
    cdef uint32_t in_page = <uint32_t>pos & (PAGE_SIZE - 1)
    if in_turns and nbytes >= 2 * PAGE_SIZE:
        if in_page != 0:
            return read_chunk(seg, number, pos, PAGE_SIZE - in_page, target, last_index)
        if nbytes > COPY_TURNS_MAX:
            nbytes = COPY_TURNS_MAX
        return read_pages(seg, number, pos >> PAGE_SHIFT, <uint32_t>(nbytes >> PAGE_SHIFT), target, last_index)
    return read_chunk(seg, number, pos, nbytes, target, last_index)


cdef inline uint64_t folio_hint(Segment* seg, uint32_t number, uint64_t pos) noexcept nogil:
    """What a sequential reader may keep to find the folio of byte pos again without a walk: frame and seq in one word,
    worth something while the descriptor says the same. 0 if there is no such folio, or a reader would have to act on it."""
    cdef uint64_t index = pos >> PAGE_SHIFT
    cdef xa_entry entry = xa_load(&seg.mappings[number].pages, &seg.pool, index)
    cdef Folio* folio
    cdef uint32_t seq
    if not PC_OPTIMISTIC or not xa_is_pointer(entry):
        return 0
    folio = &seg.folios[entry_frame(entry)]
    seq = load_acquire_u32(&folio.seq)
    if (seq & 1 or not folio_is(folio, number, index)
            or not folio_readable(load_acquire_u32(&folio.state), entry_order(entry))):
        return 0
    return <uint64_t>entry_frame(entry) << 32 | seq


cdef inline const char* hint_source(Segment* seg, uint32_t number, uint64_t hint, uint64_t pos,
                                    uint64_t* nbytes) noexcept nogil:
    """Where the bytes from `pos` on lie, if the hint's folio is still the one of that page, and how many of nbytes it
    holds; else NULL. Copy them, and ask `hint_holds` afterwards. A hint may be so old that its seq has come round."""
    cdef Folio* folio = &seg.folios[hint >> 32]
    cdef uint32_t state
    cdef uint64_t offset, length
    if hint == 0 or load_acquire_u32(&folio.seq) != <uint32_t>hint or folio_mapping(folio) != number:
        return NULL
    offset = pos - (folio_index(folio) << PAGE_SHIFT)
    state = load_acquire_u32(&folio.state)
    length = <uint64_t>PAGE_SIZE << (state >> FOLIO_ORDER_SHIFT)
    if offset >= length or not state & FOLIO_UPTODATE:
        return NULL
    if nbytes[0] > length - offset:
        nbytes[0] = length - offset
    return frame_address(seg, <uint32_t>(hint >> 32)) + offset


cdef inline bint hint_holds(Segment* seg, uint64_t hint) noexcept nogil:
    """Whether what was copied since `hint_source` are the page's bytes."""
    fence_acquire()
    return load_relaxed_u32(&seg.folios[hint >> 32].seq) == <uint32_t>hint


cdef inline bint in_turns_at(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes) noexcept nogil:
    """Whether a read of nbytes is copied in turns at byte `pos`: a long one where folios are small, a shorter one
    anywhere."""
    cdef xa_entry entry
    if nbytes <= COPY_PAGE_MAX:
        return False
    if nbytes <= COPY_TURNS_MAX:
        return True
    entry = xa_load(&seg.mappings[number].pages, &seg.pool, pos >> PAGE_SHIFT)
    return xa_is_pointer(entry) and entry_order(entry) < TURNS_ORDER


cdef inline uint64_t read_cached(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes, char* target,
                                 uint64_t last_index) noexcept nogil:
    """Copies the cached beginning of [pos, pos + nbytes), which lies inside i_size. Returns the bytes copied."""
    cdef uint64_t done = 0, got
    cdef uint32_t tries = 0
    cdef bint has_lost = False      # a race at this place: the next attempt may take a reference
    while done < nbytes:
        if PC_OPTIMISTIC:
            got = read_piece(seg, number, pos + done, nbytes - done, target + done, last_index,
                             not has_lost and in_turns_at(seg, number, pos + done, nbytes))
        else:
            got = read_chunk_pinned(seg, number, pos + done, nbytes - done, target + done, last_index)
        if got == 0:
            tries += 1
            if tries >= READ_TRIES or not worth_another_try(seg, number, (pos + done) >> PAGE_SHIFT):
                return done
            count(seg, OPTIMISTIC_RETRIES, 1)
            has_lost = True
            continue
        done += got
        has_lost = False
        last_index = (pos + done - 1) >> PAGE_SHIFT
    return done


cdef inline void prefetch_cached(Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes) noexcept nogil:
    """Asks for the cache lines a short read will need, so that they travel while the result is allocated."""
    cdef uint64_t index = pos >> PAGE_SHIFT
    cdef xa_entry entry = xa_load(&seg.mappings[number].pages, &seg.pool, index)
    cdef uint64_t offset
    if not xa_is_pointer(entry):
        return
    offset = pos & ((<uint64_t>PAGE_SIZE << entry_order(entry)) - 1)
    prefetch_read(&seg.folios[entry_frame(entry)].state)
    if nbytes > (<uint64_t>PAGE_SIZE << entry_order(entry)) - offset:
        nbytes = (<uint64_t>PAGE_SIZE << entry_order(entry)) - offset
    prefetch_range(frame_address(seg, entry_frame(entry)) + offset, nbytes)


cdef inline bint worth_another_try(Segment* seg, uint32_t number, uint64_t index) noexcept nogil:
    """Whether the page looks readable now: the last attempt then lost a race."""
    cdef xa_entry entry = xa_load(&seg.mappings[number].pages, &seg.pool, index)
    cdef Folio* folio
    if not xa_is_pointer(entry):
        return False
    folio = &seg.folios[entry_frame(entry)]
    return folio_readable(load_acquire_u32(&folio.state), entry_order(entry)) and folio_mapping(folio) == number
