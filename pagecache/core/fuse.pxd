"""Requests of a mount that are answered without Python: READ, WRITE and GETATTR of open files.

A thread of the mount receives a request, and answers it if all that it asks for is at hand: bytes that are cached, pages
that may be written now, attributes of a file that is open.  Everything else goes up, to the layer that can wait, read and
explain; it finds the request as it came.  So what cannot be done at once has one place, and what is done here is what that
layer would have done: tests run both.

Benefits: no GIL, no objects, and long reads go from the folios to the reader in one copy.
Costs: what a request needs of a file (`FuseSlot`) is registered when it is opened, and has to be taken back in time.

FuseTable: numbers to slots. A number is the slot's place (16 bits) and a count above it, so none comes twice. Slots are
type-stable, in chunks that stay until the table ends.
    serve     fields, then number (release)
    get       number as asked for; nr_users + 1; fence; number still the same: else put
    put       nr_users - 1; the last one wakes the thread that waits in `stop`
    stop      number = 0; fence; wait until nr_users is 0. Either a user sees 0, or this sees the user; what the slot names
              lives until then. Users wait for nothing: they copy, ask for attributes, write an answer.
    nodes     a node's number to the slot of its open file, one place for many nodes: a hint that the slot confirms

READ    of up to FUSE_COPY_MAX bytes as any hit (lookup.pxd): an optimistic copy, thrown away if the file was truncated
        meanwhile. A longer one is answered from the folios themselves, with a reference to each. An answer cannot be taken
        back, so invalidate_lock is held shared meanwhile: nothing is truncated, and i_size does not shrink. Writes may go
        on, and are seen or not, page by page, as anywhere.
WRITE   as the hit path of writes (write.pxd), if the inode lock is free, little is dirty, the file cannot have changed,
        and all pages are cached. If it still ends early, because a folio was locked or evicted just then, all of it is done
        again above: the same bytes, at the same place. An append is done here only if one page holds it: all of it or
        nothing, as it must not be done twice.
GETATTR attributes of the source, but size and times of the last write as long as it may not be there (`FuseStatus`),
        under the lock that also guards the write-back of those times; if it is held, that is for the layer above.

FuseStatus counts writes: `written` is the number of the last, `settled` of the last that is in the source, `shown` of the
one whose time was shown last. A write changes bytes, then the time, then `written`.
"""
from libc.errno cimport EAGAIN, EINTR, ENOENT
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset
from pagecache.core.atomic cimport (add_acq_rel_u32, add_acq_rel_u64, add_relaxed_u64, cpu_relax, fence_seq_cst,
                                    load_acquire_u32, load_acquire_u64, pc_u32, pc_u64, store_release_u64, sub_acq_rel_u32)
from pagecache.core.check cimport pc_assert
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.dirty cimport dirty_is_plenty
from pagecache.core.folio cimport (folio_address, folio_index, folio_nr_pages, folio_order, folio_state, folio_try_get)
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.io cimport iovec
from pagecache.core.lock cimport (SPIN_TRIES, WAIT_SLICE_NS, WAKE_ALL, FutexLock, futex_lock, futex_trylock,
                                  futex_unlock, rwsem_try_read, rwsem_try_write, rwsem_unlock_read, rwsem_unlock_write)
from pagecache.core.lookup cimport folio_is, folio_readable, folio_used, read_cached
from pagecache.core.lru cimport folio_put
from pagecache.core.mapping cimport MARK_DIRTY, MARK_WRITEBACK, entry_frame, mapping_not_truncated_since
from pagecache.core.segment cimport BYTES_ASKED, HITS, Folio, Mapping, Segment, count
from pagecache.core.stamp cimport stamp_is_current
from pagecache.core.write cimport write_cached
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer
from pagecache.core.xa_find cimport xas_find_marked
from pagecache.core.xa_multi cimport xas_get_order
from pagecache.core.xa_state cimport XaState, xas_init
from pagecache.core.xa_walk cimport xa_load
from pagecache.core.xarray cimport xa_marked

cdef extern from "core/fuse.h" nogil:
    int PC_HAS_FUSE
    enum:
        PC_FUSE_GETATTR
        PC_FUSE_READ
        PC_FUSE_WRITE
        PC_FUSE_GETATTR_FH
        PC_FUSE_WRITE_CACHE
        PC_FUSE_WRITE_KILL_SUIDGID
    int O_APPEND
    ctypedef struct pc_fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
    ctypedef struct pc_fuse_out_header:
        uint32_t len
    ctypedef struct pc_fuse_io_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t io_flags
        uint32_t flags
    ctypedef struct pc_fuse_write_out:
        uint32_t size
        uint32_t padding
    ctypedef struct pc_fuse_getattr_in:
        uint32_t getattr_flags
        uint64_t fh
    ctypedef struct pc_fuse_attr:
        uint64_t size
        uint64_t blocks
        uint64_t mtime
        uint64_t ctime
        uint32_t mtimensec
        uint32_t ctimensec
    ctypedef struct pc_fuse_attr_out:
        uint64_t attr_valid
        pc_fuse_attr attr
    int64_t fuse_receive(int fd, char* buffer, size_t room) noexcept
    void fuse_answer(int fd, uint64_t unique, iovec* pieces, int nr) noexcept
    int fuse_attributes(int fd, uint64_t number, pc_fuse_attr* out) noexcept
    int fuse_clone(int fd) noexcept
    int64_t realtime_ns() noexcept

cdef enum:
    FUSE_CHUNK_SHIFT = 8            # slots of a chunk
    FUSE_NR_CHUNKS = 256
    FUSE_PLACE_BITS = 16            # of a number: the slot's place
    FUSE_NR_NODES = 4096
    FUSE_COPY_MAX = 16384           # bytes; longer reads are answered from the folios
    FUSE_COPY_AT = 4096             # where in a buffer they are copied to: behind any request for them
    FUSE_READ_PAGES = 257           # of one request: 256, and one more if it begins inside of a page
    FUSE_TIMEOUT_S = 1              # how long the kernel may take attributes for known
    NS_PER_S = 1000000000
    SECTOR_SHIFT = 9                # of what `blocks` counts
    PAGE_SECTORS = 8

cdef enum FuseKind:                 # what is counted
    FUSE_READS
    FUSE_WRITES
    FUSE_GETATTRS
    FUSE_PASSED_ON
    NR_FUSE_COUNTS

ctypedef struct FuseStatus:         # of one open file, however many handles it has
    FutexLock* lock                 # guards fd, segment and mapping below, and the write-back of times
    int fd                          # of the source
    Segment* seg
    Mapping* mapping                # whose size counts, or NULL: not known here
    uint32_t mapping_number
    pc_u64 node                     # the kernel's number of it, 0 if not known yet
    pc_u64 shown_ino
    pc_u64 mtime_ns                 # of the last write
    pc_u64 written
    pc_u64 settled
    pc_u64 shown
    pc_u32 has_privileges           # bits of its mode that a write takes away

ctypedef struct FuseSlot:
    pc_u64 number                   # 0: serves nothing
    pc_u32 nr_users
    bint may_write
    Segment* seg                    # NULL: no file, attributes only
    Mapping* mapping
    uint32_t mapping_number
    int64_t* prev_pos               # of the file's readahead
    bint* is_open
    bint* is_noting                 # a recorder wants to know what is read
    const int* store_fd             # -1 if the store is no file: only it knows its end
    FuseStatus* status              # or NULL

ctypedef struct FuseTable:
    FuseSlot* chunks[256]           # FUSE_NR_CHUNKS, made before a number of theirs is given away
    pc_u64[4096] nodes              # FUSE_NR_NODES: a number
    pc_u32 has_ended
    pc_u64[4] counts                # NR_FUSE_COUNTS


# -- slots -----------------------------------------------------------------------------------------------------------

cdef inline FuseSlot* fuse_slot_at(FuseTable* table, uint64_t number) noexcept nogil:
    cdef uint32_t place = <uint32_t>number & ((1 << FUSE_PLACE_BITS) - 1)
    cdef FuseSlot* chunk = table.chunks[place >> FUSE_CHUNK_SHIFT]
    return NULL if chunk == NULL else chunk + (place & ((1 << FUSE_CHUNK_SHIFT) - 1))


cdef inline void fuse_slot_put(FuseSlot* slot) noexcept nogil:
    cdef uint32_t before = sub_acq_rel_u32(&slot.nr_users, 1)
    pc_assert(before != 0)
    if before == 1 and load_acquire_u64(&slot.number) == 0:
        futex_wake(&slot.nr_users, WAKE_ALL)


cdef inline FuseSlot* fuse_slot_get(FuseTable* table, uint64_t number) noexcept nogil:
    """The slot of a number, to be put; NULL if it serves nothing."""
    cdef FuseSlot* slot
    if number == 0:
        return NULL
    slot = fuse_slot_at(table, number)
    if slot == NULL or load_acquire_u64(&slot.number) != number:
        return NULL
    add_acq_rel_u32(&slot.nr_users, 1)
    fence_seq_cst()
    if load_acquire_u64(&slot.number) == number:
        return slot
    fuse_slot_put(slot)
    return NULL


cdef inline void fuse_slot_stop(FuseTable* table, uint64_t number) noexcept nogil:
    """Serves a number no more; returns when no thread uses what it named."""
    cdef FuseSlot* slot = fuse_slot_at(table, number)
    cdef uint32_t nr_users, tries = 0
    if slot == NULL or load_acquire_u64(&slot.number) != number:
        return
    store_release_u64(&slot.number, 0)
    fence_seq_cst()
    while True:
        nr_users = load_acquire_u32(&slot.nr_users)
        if nr_users == 0:
            return
        if tries < SPIN_TRIES:      # a thread that has just answered, most of the time
            tries += 1
            cpu_relax()
            continue
        futex_wait(&slot.nr_users, nr_users, WAIT_SLICE_NS)


# -- READ ------------------------------------------------------------------------------------------------------------

cdef inline void fuse_note_read(FuseTable* table, FuseSlot* slot, uint64_t pos, uint64_t nbytes) noexcept nogil:
    """Counts a read, before it is answered: the reader then sees it counted."""
    slot.prev_pos[0] = <int64_t>(pos + nbytes)
    count(slot.seg, HITS, 1)
    count(slot.seg, BYTES_ASKED, <int64_t>nbytes)
    add_relaxed_u64(&table.counts[<int>FUSE_READS], 1)


cdef inline bint fuse_read_in_place(FuseTable* table, FuseSlot* slot, pc_fuse_io_in* request, uint64_t unique, int fd,
                                    uint64_t last_index) noexcept nogil:
    """Answers a long read from the folios. Returns whether it did."""
    cdef Segment* seg = slot.seg
    cdef Mapping* mapping = slot.mapping
    cdef Folio* folios[257]         # FUSE_READ_PAGES
    cdef iovec[258] pieces
    cdef uint64_t at = request.offset, end, size, first, room
    cdef uint32_t nr = 0, i
    cdef int nr_pieces = 1
    cdef xa_entry entry
    cdef Folio* folio
    cdef char* address
    cdef char* expected = NULL
    cdef bint is_whole = True
    if not rwsem_try_read(&mapping.invalidate_lock):
        return False
    size = load_acquire_u64(&mapping.size)
    end = at + request.size if at < size and request.size < size - at else size
    while at < end:
        entry = xa_load(&mapping.pages, &seg.pool, at >> PAGE_SHIFT)
        is_whole = False
        if not xa_is_pointer(entry) or nr == FUSE_READ_PAGES:
            break
        folio = &seg.folios[entry_frame(entry)]
        if not folio_try_get(folio):
            break
        folios[nr] = folio
        nr += 1
        if (not folio_is(folio, slot.mapping_number, at >> PAGE_SHIFT)
                or not folio_readable(folio_state(folio), folio_order(folio))):
            break
        is_whole = True
        first = folio_index(folio)
        address = folio_address(seg, folio) + (at - (first << PAGE_SHIFT))
        room = ((first + folio_nr_pages(folio)) << PAGE_SHIFT) - at
        if room > end - at:
            room = end - at
        if address == expected:
            pieces[nr_pieces - 1].iov_len += room
        else:
            pieces[nr_pieces].iov_base = address
            pieces[nr_pieces].iov_len = room
            nr_pieces += 1
        expected = address + room
        if last_index - first >= folio_nr_pages(folio):
            folio_used(seg, folio)
        at += room
    is_whole = is_whole and at > request.offset
    if is_whole:
        fuse_note_read(table, slot, request.offset, at - request.offset)
        fuse_answer(fd, unique, pieces, nr_pieces)
    for i in range(nr):
        folio_put(seg, folios[i])
    rwsem_unlock_read(&mapping.invalidate_lock)
    return is_whole


cdef inline bint fuse_read_copied(FuseTable* table, FuseSlot* slot, pc_fuse_io_in* request, uint64_t unique, int fd,
                                  char* buffer, uint64_t last_index) noexcept nogil:
    """Answers a short read by way of the buffer, behind the request, which stays. Returns as above."""
    cdef uint32_t nr_truncations = load_acquire_u32(&slot.mapping.nr_truncations)
    cdef uint64_t size = load_acquire_u64(&slot.mapping.size)
    cdef uint64_t nbytes = request.size
    cdef iovec[2] pieces
    if request.offset >= size:
        return False
    if nbytes > size - request.offset:
        nbytes = size - request.offset
    if (read_cached(slot.seg, slot.mapping_number, request.offset, nbytes, buffer + FUSE_COPY_AT, last_index) < nbytes
            or not mapping_not_truncated_since(slot.mapping, nr_truncations)):
        return False
    pieces[1].iov_base = buffer + FUSE_COPY_AT
    pieces[1].iov_len = nbytes
    fuse_note_read(table, slot, request.offset, nbytes)
    fuse_answer(fd, unique, pieces, 2)
    return True


cdef inline bint fuse_read(FuseTable* table, FuseSlot* slot, pc_fuse_io_in* request, uint64_t unique, int fd,
                           char* buffer, uint64_t room) noexcept nogil:
    """Answers a READ of cached bytes. At the end of the file the layer above asks whether there are more by now."""
    cdef int64_t prev_pos = slot.prev_pos[0]
    cdef uint64_t last_index = <uint64_t>-1 if prev_pos <= 0 else <uint64_t>(prev_pos - 1) >> PAGE_SHIFT
    if request.size == 0 or request.offset > <uint64_t>INT64_MAX:
        return False
    if request.size > FUSE_COPY_MAX or room < FUSE_COPY_AT + FUSE_COPY_MAX:
        return fuse_read_in_place(table, slot, request, unique, fd, last_index)
    return fuse_read_copied(table, slot, request, unique, fd, buffer, last_index)


# -- WRITE -----------------------------------------------------------------------------------------------------------

cdef inline void fuse_touch(FuseStatus* status) noexcept nogil:
    """Notes that the file has just been changed through the cache."""
    store_release_u64(&status.mtime_ns, <uint64_t>realtime_ns())
    add_acq_rel_u64(&status.written, 1)


cdef inline bint fuse_may_be_another(FuseSlot* slot, bint at_end) noexcept nogil:
    """As `FileCore.may_be_another`: whether the layer above has to look at the object first. The inode lock is held."""
    if xa_marked(&slot.mapping.pages, MARK_DIRTY) or xa_marked(&slot.mapping.pages, MARK_WRITEBACK):
        return False
    return at_end if slot.store_fd[0] < 0 else not stamp_is_current(slot.mapping, slot.status.fd)


cdef inline bint fuse_pages_cached(Segment* seg, Mapping* mapping, uint64_t pos, uint64_t nbytes) noexcept nogil:
    """Whether there are pages for all of a range: a hint."""
    cdef uint64_t index = pos >> PAGE_SHIFT, last = (pos + nbytes - 1) >> PAGE_SHIFT
    while index <= last:
        if not xa_is_pointer(xa_load(&mapping.pages, &seg.pool, index)):
            return False
        index += 1
    return True


cdef inline bint fuse_write_locked(FuseSlot* slot, pc_fuse_io_in* request, const char* data,
                                   bint at_end) noexcept nogil:
    """Writes all of it into cached pages, and returns True. The inode lock is held."""
    cdef uint64_t size = load_acquire_u64(&slot.mapping.size)
    cdef uint64_t pos = size if at_end else request.offset
    cdef uint64_t nbytes = request.size
    if pos > size or pos + nbytes > <uint64_t>INT64_MAX or fuse_may_be_another(slot, at_end):
        return False
    if at_end and (pos & (PAGE_SIZE - 1)) + nbytes > PAGE_SIZE:
        return False
    if not fuse_pages_cached(slot.seg, slot.mapping, pos, nbytes):
        return False
    return write_cached(slot.seg, slot.mapping_number, pos, nbytes, data) == nbytes


cdef inline bint fuse_write(FuseTable* table, FuseSlot* slot, pc_fuse_io_in* request, uint64_t unique, int fd,
                            const char* data) noexcept nogil:
    """Answers a WRITE into cached pages that waits for nothing."""
    cdef Segment* seg = slot.seg
    cdef bint is_own = (request.io_flags & PC_FUSE_WRITE_CACHE) != 0    # the kernel's page: flags are of any handle
    cdef bint at_end = (request.flags & O_APPEND) != 0 and not is_own
    cdef bint wrote
    cdef pc_fuse_write_out answer
    cdef iovec[2] pieces
    if not slot.may_write or slot.status == NULL or request.size == 0 or request.offset > <uint64_t>INT64_MAX:
        return False
    if request.io_flags & PC_FUSE_WRITE_KILL_SUIDGID and load_acquire_u32(&slot.status.has_privileges):
        return False
    if dirty_is_plenty(seg):
        return False
    if not rwsem_try_write(&slot.mapping.inode_lock):
        return False
    wrote = fuse_write_locked(slot, request, data, at_end)
    rwsem_unlock_write(&slot.mapping.inode_lock)
    if not wrote:
        return False
    fuse_touch(slot.status)
    answer.size = request.size
    answer.padding = 0
    pieces[1].iov_base = &answer
    pieces[1].iov_len = sizeof(pc_fuse_write_out)
    add_relaxed_u64(&table.counts[<int>FUSE_WRITES], 1)
    fuse_answer(fd, unique, pieces, 2)
    return True


# -- GETATTR ---------------------------------------------------------------------------------------------------------

cdef inline uint64_t fuse_nr_dirty(Segment* seg, Mapping* mapping) noexcept nogil:
    """Pages that are dirty and not yet under write-back."""
    cdef XaState xas
    cdef xa_entry entry
    cdef uint64_t nr = 0
    futex_lock(&mapping.pages.lock)
    xas_init(&xas, &mapping.pages, &seg.pool, 0, 0)
    entry = xas_find_marked(&xas, <uint64_t>-1, MARK_DIRTY)
    while entry != 0:
        nr += <uint64_t>1 << xas_get_order(&xas)
        entry = xas_find_marked(&xas, <uint64_t>-1, MARK_DIRTY)
    futex_unlock(&mapping.pages.lock)
    return nr


cdef inline bint fuse_status_locked(FuseStatus* status, pc_fuse_attr* attributes) noexcept nogil:
    """The attributes as all users of the mount see them. Returns whether they can be known here."""
    cdef uint64_t wanted, mtime_ns, written = load_acquire_u64(&status.written)
    if fuse_attributes(status.fd, load_acquire_u64(&status.shown_ino), attributes) != 0:
        return False
    if written == load_acquire_u64(&status.settled):
        return True
    if status.mapping == NULL:
        return False
    store_release_u64(&status.shown, written)
    attributes.size = load_acquire_u64(&status.mapping.size)
    mtime_ns = load_acquire_u64(&status.mtime_ns)
    wanted = (attributes.size + (1 << SECTOR_SHIFT) - 1) >> SECTOR_SHIFT
    if attributes.blocks < wanted:      # holes, or what is not written back yet
        attributes.blocks += fuse_nr_dirty(status.seg, status.mapping) * PAGE_SECTORS
        if attributes.blocks > wanted:
            attributes.blocks = wanted
    attributes.mtime = mtime_ns // NS_PER_S
    attributes.mtimensec = <uint32_t>(mtime_ns % NS_PER_S)
    if <int64_t>attributes.ctime * NS_PER_S + attributes.ctimensec < <int64_t>mtime_ns:
        attributes.ctime = attributes.mtime
        attributes.ctimensec = attributes.mtimensec
    return True


cdef inline bint fuse_getattr(FuseTable* table, FuseSlot* slot, uint64_t node, uint64_t unique, int fd) noexcept nogil:
    """Answers a GETATTR of an open file. node: the one that was asked for."""
    cdef FuseStatus* status = slot.status
    cdef pc_fuse_attr_out answer
    cdef iovec[2] pieces
    cdef bint known
    if status == NULL or load_acquire_u64(&status.node) != node or not futex_trylock(status.lock):
        return False
    memset(&answer, 0, sizeof(pc_fuse_attr_out))
    known = fuse_status_locked(status, &answer.attr)
    futex_unlock(status.lock)
    if not known:
        return False
    answer.attr_valid = FUSE_TIMEOUT_S
    pieces[1].iov_base = &answer
    pieces[1].iov_len = sizeof(pc_fuse_attr_out)
    add_relaxed_u64(&table.counts[<int>FUSE_GETATTRS], 1)
    fuse_answer(fd, unique, pieces, 2)
    return True


# -- requests --------------------------------------------------------------------------------------------------------

cdef inline bint fuse_serve_file(FuseTable* table, FuseSlot* slot, pc_fuse_in_header* header, pc_fuse_io_in* request,
                                 int fd, char* buffer, uint64_t room, uint64_t nr_data) noexcept nogil:
    """Answers a READ or WRITE, if it can. nr_data: bytes behind the request."""
    if slot.seg == NULL or slot.seg.dead or not slot.is_open[0] or slot.is_noting[0]:
        return False
    if header.opcode == PC_FUSE_READ:
        return fuse_read(table, slot, request, header.unique, fd, buffer, room)
    if nr_data < request.size:
        return False
    return fuse_write(table, slot, request, header.unique, fd,
                      buffer + sizeof(pc_fuse_in_header) + sizeof(pc_fuse_io_in))


cdef inline bint fuse_serve(FuseTable* table, int fd, char* buffer, uint64_t room, uint64_t nbytes) noexcept nogil:
    """Answers the request that a buffer of `room` bytes begins with, if it can; else the buffer is as it was there."""
    cdef pc_fuse_in_header header = (<pc_fuse_in_header*>buffer)[0]
    cdef char* body = buffer + sizeof(pc_fuse_in_header)
    cdef uint64_t left = nbytes - sizeof(pc_fuse_in_header)
    cdef pc_fuse_io_in request
    cdef pc_fuse_getattr_in attributes
    cdef uint64_t number
    cdef FuseSlot* slot
    cdef bint answered
    if header.opcode == PC_FUSE_READ or header.opcode == PC_FUSE_WRITE:
        if left < sizeof(pc_fuse_io_in):
            return False
        request = (<pc_fuse_io_in*>body)[0]
        slot = fuse_slot_get(table, request.fh)
        if slot == NULL:
            return False
        answered = fuse_serve_file(table, slot, &header, &request, fd, buffer, room, left - sizeof(pc_fuse_io_in))
    elif header.opcode == PC_FUSE_GETATTR and left >= sizeof(pc_fuse_getattr_in):
        attributes = (<pc_fuse_getattr_in*>body)[0]
        number = load_acquire_u64(&table.nodes[header.nodeid % FUSE_NR_NODES])
        if attributes.getattr_flags & PC_FUSE_GETATTR_FH:
            number = attributes.fh
        slot = fuse_slot_get(table, number)
        if slot == NULL:
            return False
        answered = fuse_getattr(table, slot, header.nodeid, header.unique, fd)
    else:
        return False
    fuse_slot_put(slot)
    return answered


cdef inline int64_t fuse_next_request(FuseTable* table, int fd, char* buffer, uint64_t room) noexcept nogil:
    """Answers requests as long as it can. Returns the bytes of the first that it cannot, in the buffer; 0 when the table
    has ended, or -errno."""
    cdef int64_t got
    while not load_acquire_u32(&table.has_ended):
        got = fuse_receive(fd, buffer, room)
        if got == -ENOENT or got == -EINTR or got == -EAGAIN:   # it was taken back before it was read
            continue
        if got < <int64_t>sizeof(pc_fuse_in_header):
            return got
        if not fuse_serve(table, fd, buffer, room, <uint64_t>got):
            add_relaxed_u64(&table.counts[<int>FUSE_PASSED_ON], 1)
            return got
    return 0
