"""The directory: what is known of objects, found by the key of their store; it outlives the files that were open on them.

The record of an object is its mapping (segment.pxd): beside index, size and stamp it holds the 128-bit mmh3 of the key,
and key, validator and name as text of bounded length. A key that is longer is kept as its BLAKE2b and its beginning, as
collisions of mmh3 can be made; a longer validator as its BLAKE2b.

The holder of a record (Mapping.holding, under mapping_lock)
    NONE     it is on the free list, or was never used
    HELD     the object is open, or may be written: only the holder lets go of the record
    IDLE     no holder, and it has pages: opening the object claims it                             park: HELD -> IDLE
    LISTED   no holder and no pages: on the list of those that may be reused, oldest first
             claim: IDLE, LISTED -> HELD;  reuse: LISTED -> HELD, out of the directory first
    The last page of an idle record takes it to the list. Removing that page stores nrpages = 0, then loads `holding`;
    parking stores IDLE, then loads nrpages; with a fence between, one of the two sees what the other did.
    So a record is reused in O(1), in the order in which the last pages went.

Lookup without a lock
    The hash leads to a bucket, whose records are chained by number. Records are type-stable, so a reader may follow a link
    that is old; it believes a record whose `generation` is even and the same before and after hash and key were compared.
    What it does not find it looks for again under mapping_lock, as a record may have moved on meanwhile.
    generation   odd while a record is not in the directory, or its text changes; it counts up with each change. A read of
                 bytes by number and generation (read_object) looks at it again behind the copy: if it is the same, the
                 bytes are those of that key and that validator.
    The table grows by one bucket for each record beyond one a bucket (linear hashing): no lookup waits for a rehash, and
    no more of the table is touched than there are records.

Costs: 512 bytes a record and 4 of the table. mapping_lock is taken for each open of an object that has no inode.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagecache.core.atomic cimport (clz64, fence_acquire, fence_release, fence_seq_cst, load_acquire_u32, load_relaxed_u32,
                                    load_relaxed_u64, pc_u32, store_relaxed_u32, store_relaxed_u64,
                                    store_release_u32)
from pagecache.core.check cimport pc_assert
from pagecache.core.lock cimport futex_lock, futex_unlock
from pagecache.core.segment cimport Header, Mapping, Segment

cdef enum:
    TEXT_WORDS = 32                 # of 8 bytes, for key, validator and name together
    KEY_BYTES_MAX = 128             # of a key that is kept as it is
    VALIDATOR_BYTES_MAX = 96
    STEPS_MAX = 64                  # links that are followed without the lock

cdef enum:                          # ObjectText.flags
    KEY_IS_HASHED = 1               # a BLAKE2b of 32 bytes, then the beginning of the key
    VALIDATOR_IS_HASHED = 2
    HAS_VALIDATOR = 4
    NAME_IS_PART = 8                # its end

cdef enum Holding:
    HOLDING_NONE = 0
    HOLDING_HELD = 1
    HOLDING_IDLE = 2
    HOLDING_LISTED = 3

ctypedef struct ObjectKey:
    uint64_t[2] hash                # mmh3 of the key
    uint32_t nbytes
    uint32_t flags                  # KEY_IS_HASHED or 0
    uint64_t[16] words              # the bytes, and zeros

ctypedef struct ObjectText:         # what a record holds as text: each part begins on a word
    uint32_t flags
    uint32_t key_bytes
    uint32_t validator_bytes
    uint32_t name_bytes
    uint64_t[32] words


cdef inline uint32_t words_of(uint32_t nbytes) noexcept nogil:
    return (nbytes + 7) >> 3


cdef inline uint64_t mk_text_sizes(const ObjectText* text) noexcept nogil:
    return (text.key_bytes | (<uint64_t>text.validator_bytes << 16) | (<uint64_t>text.name_bytes << 32)
            | (<uint64_t>text.flags << 48))


# -- one record ------------------------------------------------------------------------------------------------------

cdef inline bint record_is(const Mapping* mapping, const ObjectKey* key, uint32_t* generation) noexcept nogil:
    """Whether a record of the directory is of this key; with its generation."""
    cdef uint32_t before = load_acquire_u32(&mapping.generation)
    cdef uint64_t sizes
    cdef uint32_t i
    if (before & 1 or load_relaxed_u64(&mapping.key_hash[0]) != key.hash[0]
            or load_relaxed_u64(&mapping.key_hash[1]) != key.hash[1]):
        return False
    sizes = load_relaxed_u64(&mapping.text_sizes)
    if (sizes & 0xFFFF) != key.nbytes or (sizes >> 48) & <uint32_t>KEY_IS_HASHED != key.flags:
        return False
    for i in range(words_of(key.nbytes)):
        if load_relaxed_u64(&mapping.text[i]) != key.words[i]:
            return False
    fence_acquire()
    generation[0] = before
    return load_relaxed_u32(&mapping.generation) == before


cdef inline void generation_begin(Mapping* mapping) noexcept nogil:
    """Makes a generation odd, if it is not, before anything of the record changes. mapping_lock is held."""
    store_relaxed_u32(&mapping.generation, load_relaxed_u32(&mapping.generation) | 1)
    fence_release()


cdef inline void generation_end(Mapping* mapping) noexcept nogil:
    store_release_u32(&mapping.generation, load_relaxed_u32(&mapping.generation) + 1)


cdef inline void text_store(Mapping* mapping, const ObjectText* text) noexcept nogil:
    """The generation is odd."""
    cdef uint32_t i
    store_relaxed_u64(&mapping.text_sizes, mk_text_sizes(text))
    for i in range(TEXT_WORDS):
        store_relaxed_u64(&mapping.text[i], text.words[i])


cdef inline bint text_load(const Mapping* mapping, ObjectText* text, uint32_t* generation) noexcept nogil:
    """The text of a record of the directory; whether it is of one moment."""
    cdef uint32_t before = load_acquire_u32(&mapping.generation)
    cdef uint64_t sizes
    cdef uint32_t i
    if before & 1:
        return False
    sizes = load_relaxed_u64(&mapping.text_sizes)
    text.key_bytes = <uint32_t>(sizes & 0xFFFF)
    text.validator_bytes = <uint32_t>(sizes >> 16) & 0xFFFF
    text.name_bytes = <uint32_t>(sizes >> 32) & 0xFFFF
    text.flags = <uint32_t>(sizes >> 48)
    for i in range(TEXT_WORDS):
        text.words[i] = load_relaxed_u64(&mapping.text[i])
    fence_acquire()
    generation[0] = before
    return load_relaxed_u32(&mapping.generation) == before


# -- the table -------------------------------------------------------------------------------------------------------

cdef inline uint32_t bucket_of(uint64_t hashed, uint32_t nr_buckets) noexcept nogil:
    """The bucket of a hash in a table of so many: the bits that twice as many would need, or one less."""
    cdef uint32_t whole = <uint32_t>1 << (63 - clz64(nr_buckets))
    cdef uint32_t bucket = <uint32_t>hashed & (2 * whole - 1)
    return bucket if bucket < nr_buckets else bucket & (whole - 1)


cdef inline uint32_t directory_walk(Segment* seg, const ObjectKey* key, uint32_t* generation,
                                    uint32_t steps_max) noexcept nogil:
    cdef uint32_t number = load_acquire_u32(
        &seg.buckets[bucket_of(key.hash[0], load_acquire_u32(&seg.header.nr_buckets))])
    cdef uint32_t steps = 0
    while number != 0 and steps < steps_max:
        if record_is(&seg.mappings[number], key, generation):
            return number
        number = load_acquire_u32(&seg.mappings[number].hash_next)
        steps += 1
    return 0


cdef inline uint32_t directory_find(Segment* seg, const ObjectKey* key, uint32_t* generation) noexcept nogil:
    """The record of a key, with its generation, or 0. It may change at once: what is read from it is to be validated."""
    cdef uint32_t number = directory_walk(seg, key, generation, STEPS_MAX)
    if number == 0:
        futex_lock(&seg.header.mapping_lock)
        number = directory_walk(seg, key, generation, 0xFFFFFFFF)
        futex_unlock(&seg.header.mapping_lock)
    return number


cdef inline void directory_grow(Segment* seg) noexcept nogil:
    """Splits the next bucket. mapping_lock is held."""
    cdef uint32_t nr = load_relaxed_u32(&seg.header.nr_buckets)
    cdef uint32_t whole = <uint32_t>1 << (63 - clz64(nr))
    cdef pc_u32* stays = &seg.buckets[nr - whole]
    cdef pc_u32* moves = &seg.buckets[nr]
    cdef uint32_t number = load_relaxed_u32(stays), next
    cdef Mapping* mapping
    store_relaxed_u32(moves, 0)
    while number != 0:
        mapping = &seg.mappings[number]
        next = load_relaxed_u32(&mapping.hash_next)
        if <uint32_t>load_relaxed_u64(&mapping.key_hash[0]) & (2 * whole - 1) == nr:
            store_release_u32(stays, next)
            store_release_u32(&mapping.hash_next, load_relaxed_u32(moves))
            store_release_u32(moves, number)
        else:
            stays = &mapping.hash_next
        number = next
    store_release_u32(&seg.header.nr_buckets, nr + 1)


cdef inline void directory_add(Segment* seg, uint32_t number) noexcept nogil:
    """Links a record whose hash is set. mapping_lock is held."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef pc_u32* bucket
    seg.header.nr_known += 1
    if (seg.header.nr_known > load_relaxed_u32(&seg.header.nr_buckets)
            and load_relaxed_u32(&seg.header.nr_buckets) < seg.header.nr_buckets_max):
        directory_grow(seg)
    bucket = &seg.buckets[bucket_of(load_relaxed_u64(&mapping.key_hash[0]), load_relaxed_u32(&seg.header.nr_buckets))]
    store_release_u32(&mapping.hash_next, load_relaxed_u32(bucket))
    store_release_u32(bucket, number)


cdef inline void directory_del(Segment* seg, uint32_t number) noexcept nogil:
    """Unlinks a record, and makes its generation odd. mapping_lock is held."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef pc_u32* link = &seg.buckets[bucket_of(load_relaxed_u64(&mapping.key_hash[0]),
                                               load_relaxed_u32(&seg.header.nr_buckets))]
    pc_assert(not load_relaxed_u32(&mapping.generation) & 1)
    while load_relaxed_u32(link) != number:
        pc_assert(load_relaxed_u32(link) != 0)
        link = &seg.mappings[load_relaxed_u32(link)].hash_next
    store_release_u32(link, load_relaxed_u32(&mapping.hash_next))
    generation_begin(mapping)
    seg.header.nr_known -= 1


cdef inline bint directory_publish(Segment* seg, uint32_t number, const ObjectKey* key,
                                   const ObjectText* text) noexcept nogil:
    """Lets a held record be found by its key. Whether it is found now: False if another record is."""
    cdef Mapping* mapping = &seg.mappings[number]
    cdef uint32_t generation
    futex_lock(&seg.header.mapping_lock)
    if directory_walk(seg, key, &generation, 0xFFFFFFFF) != 0:
        futex_unlock(&seg.header.mapping_lock)
        return False
    pc_assert(load_relaxed_u32(&mapping.generation) & 1)
    store_relaxed_u64(&mapping.key_hash[0], key.hash[0])
    store_relaxed_u64(&mapping.key_hash[1], key.hash[1])
    text_store(mapping, text)
    directory_add(seg, number)
    generation_end(mapping)
    futex_unlock(&seg.header.mapping_lock)
    return True


cdef inline void directory_unpublish(Segment* seg, uint32_t number) noexcept nogil:
    """Lets a held record be found no more, if it is."""
    futex_lock(&seg.header.mapping_lock)
    if not load_relaxed_u32(&seg.mappings[number].generation) & 1:
        directory_del(seg, number)
    futex_unlock(&seg.header.mapping_lock)


cdef inline void directory_set_text(Segment* seg, uint32_t number, const ObjectText* text) noexcept nogil:
    """Sets validator and name of a record, if it is in the directory; the key stays."""
    cdef Mapping* mapping = &seg.mappings[number]
    futex_lock(&seg.header.mapping_lock)
    if not load_relaxed_u32(&mapping.generation) & 1:
        generation_begin(mapping)
        text_store(mapping, text)
        generation_end(mapping)
    futex_unlock(&seg.header.mapping_lock)


# -- holders of records ----------------------------------------------------------------------------------------------

cdef inline void idle_add(Segment* seg, uint32_t number) noexcept nogil:
    """Appends an idle record to the list. mapping_lock is held."""
    cdef Header* header = seg.header
    cdef Mapping* mapping = &seg.mappings[number]
    store_relaxed_u32(&mapping.holding, HOLDING_LISTED)
    mapping.idle_next = 0
    mapping.idle_prev = header.idle_last
    if header.idle_last != 0:
        seg.mappings[header.idle_last].idle_next = number
    else:
        header.idle_first = number
    header.idle_last = number
    header.nr_listed_mappings += 1


cdef inline void idle_del(Segment* seg, uint32_t number) noexcept nogil:
    """Takes a record off the list; it is held then. mapping_lock is held."""
    cdef Header* header = seg.header
    cdef Mapping* mapping = &seg.mappings[number]
    if mapping.idle_prev != 0:
        seg.mappings[mapping.idle_prev].idle_next = mapping.idle_next
    else:
        header.idle_first = mapping.idle_next
    if mapping.idle_next != 0:
        seg.mappings[mapping.idle_next].idle_prev = mapping.idle_prev
    else:
        header.idle_last = mapping.idle_prev
    header.nr_listed_mappings -= 1
    store_relaxed_u32(&mapping.holding, HOLDING_HELD)


cdef inline void mapping_emptied(Segment* seg, Mapping* mapping) noexcept nogil:
    """After the last page of a mapping went: if it has no holder, it may be reused. xa_lock is held."""
    fence_seq_cst()
    if load_relaxed_u32(&mapping.holding) != HOLDING_IDLE:
        return
    futex_lock(&seg.header.mapping_lock)
    if load_relaxed_u32(&mapping.holding) == HOLDING_IDLE and load_relaxed_u64(&mapping.nrpages) == 0:
        idle_add(seg, <uint32_t>(mapping - seg.mappings))
    futex_unlock(&seg.header.mapping_lock)


cdef inline bint mapping_park(Segment* seg, uint32_t number) noexcept nogil:
    """Lets go of a held record that is in the directory: it stays, with its pages. Whether it was there."""
    cdef Mapping* mapping = &seg.mappings[number]
    futex_lock(&seg.header.mapping_lock)
    if load_relaxed_u32(&mapping.generation) & 1:
        futex_unlock(&seg.header.mapping_lock)
        return False
    pc_assert(load_relaxed_u32(&mapping.holding) == HOLDING_HELD)
    store_relaxed_u32(&mapping.holding, HOLDING_IDLE)
    seg.header.nr_idle_mappings += 1
    fence_seq_cst()
    if load_relaxed_u64(&mapping.nrpages) == 0:
        idle_add(seg, number)
    futex_unlock(&seg.header.mapping_lock)
    return True


cdef inline bint mapping_claim_locked(Segment* seg, uint32_t number) noexcept nogil:
    """Takes a record that has no holder. Whether that was so. mapping_lock is held."""
    cdef Mapping* mapping = &seg.mappings[number]
    if load_relaxed_u32(&mapping.holding) == HOLDING_LISTED:
        idle_del(seg, number)
    elif load_relaxed_u32(&mapping.holding) == HOLDING_IDLE:
        store_relaxed_u32(&mapping.holding, HOLDING_HELD)
    else:
        return False
    seg.header.nr_idle_mappings -= 1
    return True


cdef inline uint32_t directory_claim(Segment* seg, const ObjectKey* key) noexcept nogil:
    """Finds the record of a key and takes it, if it has no holder. One that has is found no more: all open objects are
    known where objects are opened, so it is about to end. Returns its number, or 0."""
    cdef uint32_t number, generation
    futex_lock(&seg.header.mapping_lock)
    number = directory_walk(seg, key, &generation, 0xFFFFFFFF)
    if number != 0 and not mapping_claim_locked(seg, number):
        directory_del(seg, number)
        number = 0
    futex_unlock(&seg.header.mapping_lock)
    return number


cdef inline bint mapping_claim(Segment* seg, uint32_t number, uint32_t generation) noexcept nogil:
    """Takes a record that has no holder, if it is of that generation. Whether that is so."""
    cdef bint claimed
    futex_lock(&seg.header.mapping_lock)
    claimed = (load_relaxed_u32(&seg.mappings[number].generation) == generation
               and mapping_claim_locked(seg, number))
    futex_unlock(&seg.header.mapping_lock)
    return claimed


cdef inline uint32_t idle_reuse(Segment* seg) noexcept nogil:
    """Takes the record that has been without pages for longest out of the directory. Returns its number, 0 if there is
    none. mapping_lock is held."""
    cdef uint32_t number = seg.header.idle_first
    if number != 0:
        idle_del(seg, number)
        seg.header.nr_idle_mappings -= 1
        directory_del(seg, number)
    return number


# -- reading ---------------------------------------------------------------------------------------------------------

cdef inline bint generation_is(Mapping* mapping, uint32_t generation) noexcept nogil:
    """Whether what was copied since the generation was loaded is of the object that had it."""
    fence_acquire()
    return load_relaxed_u32(&mapping.generation) == generation
