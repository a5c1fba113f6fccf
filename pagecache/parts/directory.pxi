# ObjectKey: the key of an object as the directory knows it.  LongValidator: one that is known by its hash.
from hashlib import blake2b as _blake2b
from mmh3 import mmh3_x64_128_digest as _mmh3

cdef enum:
    HASHED_BYTES = 32               # of a BLAKE2b
    GIL_COPY_MAX = 65536            # bytes; longer copies release the GIL

_ENCODING = ("utf-8", "surrogatepass")


@cython.final
cdef class ObjectKey:
    """The key of a store's object, hashed once. text: the key."""
    cdef CObjectKey key
    cdef readonly str text

    def __cinit__(self, str text not None):
        cdef bytes data = text.encode(*_ENCODING)
        cdef bytes hashed = _mmh3(data)
        self.text = text
        memcpy(self.key.hash, PyBytes_AS_STRING(hashed), 16)
        if len(data) > KEY_BYTES_MAX:
            self.key.flags = KEY_IS_HASHED
            data = _blake2b(data, digest_size=HASHED_BYTES).digest() + data[:KEY_BYTES_MAX - HASHED_BYTES]
        self.key.nbytes = <uint32_t>len(data)
        memcpy(self.key.words, PyBytes_AS_STRING(data), len(data))


@cython.final
cdef class LongValidator:
    """A validator of which only the BLAKE2b is known: equal to the text that has it."""
    cdef readonly bytes digest

    def __cinit__(self, bytes digest not None):
        self.digest = digest

    def __eq__(self, other):
        if isinstance(other, LongValidator):
            return (<LongValidator>other).digest == self.digest
        if not isinstance(other, str):
            return NotImplemented
        return _blake2b(other.encode(*_ENCODING), digest_size=HASHED_BYTES).digest() == self.digest

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return f"<validator with BLAKE2b {self.digest.hex()[:16]}>"


cdef bint text_pack(CObjectText* text, const CObjectKey* key, object validator, str name) except -1:
    """Fills in what a record is to hold as text. Returns whether all that must be kept of it is: the name need not be."""
    cdef bytes data
    cdef uint32_t at = words_of(key.nbytes), room
    cdef bint is_kept = True
    memset(text, 0, sizeof(CObjectText))
    text.flags = key.flags
    text.key_bytes = key.nbytes
    memcpy(text.words, key.words, key.nbytes)
    data = b""
    if isinstance(validator, str):
        text.flags |= HAS_VALIDATOR
        data = validator.encode(*_ENCODING)
        if len(data) > VALIDATOR_BYTES_MAX:
            text.flags |= VALIDATOR_IS_HASHED
            data = _blake2b(data, digest_size=HASHED_BYTES).digest()
    elif isinstance(validator, LongValidator):
        text.flags |= HAS_VALIDATOR | VALIDATOR_IS_HASHED
        data = (<LongValidator>validator).digest
    else:
        is_kept = False
    text.validator_bytes = <uint32_t>len(data)
    memcpy(&text.words[at], PyBytes_AS_STRING(data), len(data))
    at += words_of(text.validator_bytes)
    data = name.encode(*_ENCODING)
    room = (TEXT_WORDS - at) * 8
    if len(data) > room:
        text.flags |= NAME_IS_PART
        data = data[len(data) - room:]
    text.name_bytes = <uint32_t>len(data)
    if text.name_bytes:
        memcpy(&text.words[at], PyBytes_AS_STRING(data), len(data))
    return is_kept


cdef object known_object(CSegment* seg, uint32_t number):
    """What a record of the directory holds, as `known_objects` tells it; None if it is not in the directory."""
    cdef CObjectText text
    cdef uint32_t generation = 0, at = 0
    cdef bint is_whole
    cdef const char* bytes_
    while not text_load(&seg.mappings[number], &text, &generation):
        if load_acquire_u32(&seg.mappings[number].generation) & 1:
            return None
    bytes_ = <const char*>text.words
    is_whole = not text.flags & KEY_IS_HASHED
    key = bytes_[:text.key_bytes] if is_whole else bytes_[HASHED_BYTES:text.key_bytes]
    at = words_of(text.key_bytes) * 8
    validator = bytes_[at:at + text.validator_bytes]
    if not text.flags & HAS_VALIDATOR:
        validator = None
    elif text.flags & VALIDATOR_IS_HASHED:
        validator = LongValidator(validator)
    else:
        validator = validator.decode(*_ENCODING)
    at += words_of(text.validator_bytes) * 8
    name = bytes_[at:at + text.name_bytes].decode("utf-8", "replace" if text.flags & NAME_IS_PART else "surrogatepass")
    name = "..." + name if text.flags & NAME_IS_PART else name
    key = key.decode("utf-8", "surrogatepass" if is_whole else "replace")
    return number, generation, key, is_whole, validator, name, load_relaxed_u64(&seg.mappings[number].nrpages)


cdef uint32_t claimed_number(CSegment* seg, uint32_t number, ObjectKey key, object generation) except 0:
    """The number of a record that has no holder but the caller now: of a key, or that number. Raises KeyError."""
    if key is not None:
        number = directory_claim(seg, &key.key)
        if number == 0:
            raise KeyError(key.text)
    elif number >= seg.header.nr_mappings or not mapping_claim(seg, number, generation):
        raise KeyError(number)
    return number


def find_object(Segment segment not None, ObjectKey key not None):
    """(number, generation) of the record of a key, for `read_object`; None if the directory has none."""
    cdef uint32_t generation = 0
    cdef uint32_t number = directory_find(&segment.seg, &key.key, &generation)
    return (number, generation) if number != 0 else None


def known_objects(Segment segment not None, uint32_t first, uint32_t nr):
    """The objects that are not open among nr records from number `first` on, and the number to go on with, 0 at the end.

    Of each: number, generation, key and whether that is all of it or its beginning, validator (a str, a LongValidator or
    None), name or its end, cached pages.
    Context: any thread; they may be opened, or forgotten, meanwhile."""
    cdef CSegment* seg = &segment.seg
    cdef uint32_t number = max(first, 1), touched = hint_u32(&seg.header.nr_mappings_touched)
    cdef uint32_t end = min(<uint64_t>number + nr, touched)
    out = []
    while number < end:
        if load_relaxed_u32(&seg.mappings[number].holding) >= <uint32_t>HOLDING_IDLE:
            known = known_object(seg, number)
            if known is not None:
                out.append(known)
        number += 1
    return out, (end if end < touched else 0)


def read_object(Segment segment not None, uint32_t number, uint32_t generation, uint64_t nbytes, uint64_t pos):
    """Up to nbytes at byte `pos` of the object that had a generation, if all of them are cached, and it has it still:
    bytes, shorter only at its end; else None. Never waits, open or not. Raises RuntimeError in a forked child.

    Context: takes no lock; releases the GIL for more than 64 KiB.
    """
    cdef CSegment* seg = &segment.seg
    cdef CMapping* m
    cdef uint64_t size, done
    cdef uint32_t nr_truncations
    cdef bytes result
    cdef char* target
    if seg.dead:
        raise RuntimeError("this cache belongs to the parent process: open a new one after fork()")
    if number >= seg.header.nr_mappings:
        raise ValueError(f"no mapping has the number {number}")
    m = &seg.mappings[number]
    if generation & 1 or load_acquire_u32(&m.generation) != generation:
        return None
    nr_truncations = load_acquire_u32(&m.nr_truncations)
    size = load_acquire_u64(&m.size)
    if pos >= size:
        return b"" if generation_is(m, generation) else None
    if nbytes > size - pos:
        nbytes = size - pos
    if not xa_is_pointer(xa_load(&m.pages, &seg.pool, pos >> PAGE_SHIFT)):      # before memory is taken for nothing
        return None
    result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>nbytes)
    target = PyBytes_AS_STRING(result)
    if nbytes > GIL_COPY_MAX:
        with nogil:
            done = read_cached(seg, number, pos, nbytes, target, <uint64_t>-1)
    else:
        done = read_cached(seg, number, pos, nbytes, target, <uint64_t>-1)
    if done != nbytes or not mapping_not_truncated_since(m, nr_truncations) or not generation_is(m, generation):
        return None
    count(seg, HITS, 1)
    count(seg, BYTES_ASKED, <int64_t>nbytes)
    return result
