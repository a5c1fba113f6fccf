/* A file is truncated, the bytes behind the new end are zeroed, and a write fills them again, while a reader copies: the size is the
 * same before and after the copy, but no read takes the zeros for bytes of the file.
 * BUGS: BUG_SIZE_ONLY BUG_COUNT_FIRST BUG_COUNT_LATE BUG_LOAD_AFTER_SIZE BUG_NO_ACQUIRE_FENCE BUG_NO_RELEASE_FENCE */
#include "model.h"

enum { LONG = 2, SHORT = 1, OLD_BYTES = 50, NEW_BYTES = 60 };
static pc_u32 size, nr_truncations, seq, bytes;        /* bytes: the part of the page that is truncated */

/* mirrors folio.pxd: folio_write_begin, folio_write_end */
static void store_bytes(uint32_t value) {
    add_acq_rel_u32(&seq, 1);
#ifndef BUG_NO_RELEASE_FENCE
    fence_release();
#endif
    store_relaxed_u32(&bytes, value);
    add_acq_rel_u32(&seq, 1);
}

/* mirrors mapping.pxd: mapping_set_size, filemap_zero_unshared; write.pxd: folio_write */
static void *cutter(void *unused) {
    (void)unused;
#ifdef BUG_COUNT_FIRST
    add_acq_rel_u32(&nr_truncations, 1);
#endif
    store_release_u32(&size, SHORT);
#if !defined(BUG_COUNT_FIRST) && !defined(BUG_COUNT_LATE)
    add_acq_rel_u32(&nr_truncations, 1);
#endif
    store_bytes(0);
    store_bytes(NEW_BYTES);
    store_release_u32(&size, LONG);
#ifdef BUG_COUNT_LATE
    add_acq_rel_u32(&nr_truncations, 1);
#endif
    return NULL;
}

/* mirrors lookup.pxd: read_chunk_pinned; mapping.pxd: mapping_not_truncated_since. A reference, so seq is not looked at. */
static void *reader(void *unused) {
    uint32_t cuts, had, copy;
    (void)unused;
#ifdef BUG_LOAD_AFTER_SIZE
    had = load_acquire_u32(&size);
    cuts = load_acquire_u32(&nr_truncations);
#else
    cuts = load_acquire_u32(&nr_truncations);
    had = load_acquire_u32(&size);
#endif
    if (had < LONG) return NULL;
    copy = load_relaxed_u32(&bytes);
#ifdef BUG_SIZE_ONLY
    (void)cuts;
    if (load_acquire_u32(&size) < LONG) return NULL;
#else
#ifndef BUG_NO_ACQUIRE_FENCE
    fence_acquire();
#endif
    if (load_relaxed_u32(&nr_truncations) != cuts) return NULL;
#endif
    assert(copy != 0);
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    store_relaxed_u32(&size, LONG);
    store_relaxed_u32(&bytes, OLD_BYTES);
    start(&threads[0], reader);
    start(&threads[1], cutter);
    return 0;
}
