"""Lines of a file out of its cached pages: the line feed is looked for in the folio, and only the line is copied.

Next line in the folio of the last one (`hint_source`)
    As a short read at the position: frame and seq of the folio are known (lookup.pxd), so no index is walked and no
    reference taken.  Search, copy, then look at seq again: a write changes it too, so what was found and what was copied
    are of one moment.
Any other (`line_pin`, `line_unpin`)
    Piece by piece, one folio each, with a reference; the copy counts if seq is what it was before the search.  Where a
    writer comes in between again and again, and where the page is missing, a page's bytes are read as by any other read,
    and the line feed is looked for in the copy.

Folios that leave when they have been read to their end (DROPBEHIND) are no matter for the hit path of reads.  Here the
engine may serve all lines but the last one of such a folio, so that a page is not brought again for each of its lines.

Costs: a line that reaches over the end of a folio is put together from pieces.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport fence_acquire, load_acquire_u32, load_relaxed_u32
from pagecache.core.config cimport PAGE_SHIFT, PAGE_SIZE
from pagecache.core.folio cimport FOLIO_DROPBEHIND, folio_index, folio_mapping, folio_order, folio_try_get
from pagecache.core.lookup cimport folio_readable, folio_used
from pagecache.core.lru cimport folio_put
from pagecache.core.mapping cimport entry_frame, entry_order
from pagecache.core.segment cimport Folio, Segment, frame_address
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer
from pagecache.core.xa_walk cimport xa_load

cdef extern from "core/lines.h" nogil:
    size_t line_length(const char* source, size_t nbytes) noexcept

cdef enum:
    LINE_HINT_MAX = 8192            # bytes; longer lines are copied with a reference

cdef enum PinResult:
    LINE_MISSING = 0                # the page is not there, or a reader would have to act on it
    LINE_PINNED = 1
    LINE_READ_TO_END = 2            # the piece is all that is left of a folio that leaves then

ctypedef struct LinePiece:          # what one folio holds of a line
    Folio* folio                    # referenced
    const char* source
    uint64_t nbytes
    uint32_t seq


cdef inline PinResult line_pin(LinePiece* piece, Segment* seg, uint32_t number, uint64_t pos, uint64_t nbytes,
                               uint64_t size) noexcept nogil:
    """Looks for the end of the line at byte `pos` in the cached folio there, up to nbytes, which lie inside i_size. With
    LINE_PINNED the piece is the line, or the beginning of it that the folio holds."""
    cdef uint64_t index = pos >> PAGE_SHIFT
    cdef xa_entry entry = xa_load(&seg.mappings[number].pages, &seg.pool, index)
    cdef uint32_t order, state
    cdef uint64_t offset, room, length
    if not xa_is_pointer(entry):
        return LINE_MISSING
    order = entry_order(entry)
    piece.folio = &seg.folios[entry_frame(entry)]
    if not folio_try_get(piece.folio):
        return LINE_MISSING
    piece.seq = load_acquire_u32(&piece.folio.seq)
    state = load_acquire_u32(&piece.folio.state)
    index &= ~((<uint64_t>1 << order) - 1)
    if (piece.seq & 1 or not folio_readable(state & ~<uint32_t>FOLIO_DROPBEHIND, order)
            or folio_mapping(piece.folio) != number or folio_index(piece.folio) != index):
        folio_put(seg, piece.folio)
        return LINE_MISSING
    offset = pos - (index << PAGE_SHIFT)
    room = (<uint64_t>PAGE_SIZE << order) - offset
    piece.source = frame_address(seg, entry_frame(entry)) + offset
    piece.nbytes = nbytes if nbytes < room else room
    length = line_length(piece.source, piece.nbytes)
    if length > 0:
        piece.nbytes = length
    if state & FOLIO_DROPBEHIND and (piece.nbytes == room or pos + piece.nbytes >= size):
        folio_put(seg, piece.folio)
        return LINE_READ_TO_END
    return LINE_PINNED


cdef inline bint line_unpin(LinePiece* piece, Segment* seg, uint64_t last_index) noexcept nogil:
    """Lets go of the folio. Returns whether what was copied is what was looked at; then it counts as an access, unless
    the folio also holds page `last_index`, the one read before."""
    cdef bint is_same
    fence_acquire()
    is_same = load_relaxed_u32(&piece.folio.seq) == piece.seq
    if is_same and last_index - folio_index(piece.folio) >= <uint64_t>1 << folio_order(piece.folio):
        folio_used(seg, piece.folio)
    folio_put(seg, piece.folio)
    return is_same
