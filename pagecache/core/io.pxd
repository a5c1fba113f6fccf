"""Reading a contiguous run of folios from a file descriptor, straight into frames, and writing one.

The run is described as a vector of memory pieces, neighbouring frames as one.  Short reads are continued; what lies
past the wanted bytes in the last page is zeroed, so a folio never shows what its frame held before.
"""
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from pagecache.core.atomic cimport load_acquire_u64
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.folio cimport folio_address, folio_mapping, folio_nr_pages
from pagecache.core.segment cimport (STORE_WRITE_BYTES, STORE_WRITES, Folio, Mapping, Segment, count,
                                     count_store_read)

cdef extern from "core/io.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    int64_t read_vector(int fd, iovec* vector, int nr, int64_t offset) noexcept
    int64_t write_vector(int fd, iovec* vector, int nr, int64_t offset) noexcept
    int64_t write_vector_buffered(int fd, iovec* vector, int nr, int64_t offset) noexcept
    int punch_hole_fd(int fd, int64_t offset, int64_t nbytes) noexcept
    int sync_file_system_of(int fd) noexcept
    int file_stamp(int fd, int64_t* mtime_ns, int64_t* ctime_ns, int64_t* size) noexcept
    int file_has_bytes(int fd, bint direct, const char* data, int64_t offset, int64_t nbytes) noexcept


cdef inline int run_vector(Segment* seg, Folio** folios, uint32_t nr, uint64_t nbytes, iovec* out) noexcept nogil:
    """Describes the first nbytes of a run of folios. Returns the number of pieces (nr at most)."""
    cdef uint32_t i
    cdef int nr_pieces = 0
    cdef char* address
    cdef char* expected = NULL
    cdef uint64_t length
    for i in range(nr):
        length = <uint64_t>folio_nr_pages(folios[i]) << PAGE_SHIFT
        if length > nbytes:
            length = nbytes
        if length == 0:
            break
        nbytes -= length
        address = folio_address(seg, folios[i])
        if address == expected:
            out[nr_pieces - 1].iov_len += length
        else:
            out[nr_pieces].iov_base = address
            out[nr_pieces].iov_len = length
            nr_pieces += 1
        expected = address + length
    return nr_pieces


cdef inline void vector_advance(iovec** vector, int* nr, uint64_t nbytes) noexcept nogil:
    """Drops the first nbytes of a vector."""
    while nr[0] > 0 and nbytes >= vector[0].iov_len:
        nbytes -= vector[0].iov_len
        vector[0] += 1
        nr[0] -= 1
    if nr[0] > 0:
        vector[0].iov_base = <char*>vector[0].iov_base + nbytes
        vector[0].iov_len -= nbytes


cdef inline void run_zero_tail(Segment* seg, Folio** folios, uint32_t nr, uint64_t nbytes) noexcept nogil:
    """Zeroes a run of folios from byte nbytes on."""
    cdef uint32_t i
    cdef uint64_t at = 0, length, start
    for i in range(nr):
        length = <uint64_t>folio_nr_pages(folios[i]) << PAGE_SHIFT
        if at + length > nbytes:
            start = nbytes - at if nbytes > at else 0
            memset(folio_address(seg, folios[i]) + start, 0, length - start)
        at += length


cdef inline uint64_t bytes_on_disk(Mapping* mapping) noexcept nogil:
    """Bytes of the object that the store has, and that belong to it: what lies behind, up to i_size, is zeros or still
    to be written."""
    cdef uint64_t size = load_acquire_u64(&mapping.size)
    cdef uint64_t disk_size = load_acquire_u64(&mapping.disk_size)
    return disk_size if disk_size < size else size


cdef inline int64_t run_read_fd(Segment* seg, int fd, bint direct, int64_t offset, Folio** folios, uint32_t nr,
                                uint64_t nbytes) noexcept nogil:
    """Reads nbytes at offset into a run of at most BATCH_PAGES locked folios and zeroes the rest of it.
    Direct files are asked for whole pages. Returns nbytes, fewer when the file ends early, or -errno."""
    cdef iovec[512] pieces
    cdef iovec* vector = pieces
    cdef uint64_t asked = (nbytes + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE if direct else nbytes
    cdef int nr_pieces = run_vector(seg, folios, nr, asked, pieces)
    cdef uint64_t done = 0
    cdef int64_t got
    while done < nbytes:
        got = read_vector(fd, vector, nr_pieces, offset + <int64_t>done)
        if got < 0:
            return got
        if got == 0:
            break
        done += <uint64_t>got
        vector_advance(&vector, &nr_pieces, <uint64_t>got)
    if done > nbytes:
        done = nbytes
    count_store_read(seg, &seg.mappings[folio_mapping(folios[0])], done)
    run_zero_tail(seg, folios, nr, done)
    return <int64_t>done


cdef inline int64_t run_write_fd(Segment* seg, int fd, bint direct, int64_t offset, Folio** folios, uint32_t nr,
                                 uint64_t nbytes, int* error) noexcept nogil:
    """Writes the first nbytes of a run of at most BATCH_PAGES folios at an offset; short writes are continued. Of direct
    files what is no whole page, which is the end, goes through the kernel's page cache; callers see to it that only one
    does so at a time. Returns the bytes written; error: the errno of what stopped it, if they are fewer."""
    cdef iovec[512] pieces
    cdef iovec* vector = pieces
    cdef uint64_t aligned = nbytes // PAGE_SIZE * PAGE_SIZE if direct else nbytes
    cdef int nr_pieces = run_vector(seg, folios, nr, aligned if aligned else nbytes, pieces)
    cdef uint64_t done = 0
    cdef int64_t wrote
    while done < nbytes:
        if done < aligned:
            wrote = write_vector(fd, vector, nr_pieces, offset + <int64_t>done)
        else:
            if nr_pieces == 0:
                nr_pieces = run_vector(seg, folios, nr, nbytes, pieces)
                vector = pieces
                vector_advance(&vector, &nr_pieces, done)
            wrote = write_vector_buffered(fd, vector, nr_pieces, offset + <int64_t>done)
        count(seg, STORE_WRITES, 1)
        if wrote <= 0:
            error[0] = <int>-wrote if wrote < 0 else EIO
            break
        count(seg, STORE_WRITE_BYTES, wrote)
        done += <uint64_t>wrote
        vector_advance(&vector, &nr_pieces, <uint64_t>wrote)
    return <int64_t>done
