/* Two writes into a folio while a reader copies without a lock: no copy that is kept has bytes of two writes.
 * BUGS: BUG_NO_RELEASE_FENCE BUG_NO_ACQUIRE_FENCE BUG_RELAXED_END BUG_EVEN_ONLY */
#include "model.h"

static Folio folio;
static pc_u32 bytes[2];

/* mirrors folio.pxd: folio_write_begin, folio_write_end; write.pxd: folio_store. The folio lock is held. */
static void write_both(uint32_t value) {
    add_acq_rel_u32(&folio.seq, 1);
#ifndef BUG_NO_RELEASE_FENCE
    fence_release();
#endif
    store_relaxed_u32(&bytes[0], value);
    store_relaxed_u32(&bytes[1], value);
#ifdef BUG_RELAXED_END
    store_relaxed_u32(&folio.seq, load_relaxed_u32(&folio.seq) + 1);
#else
    add_acq_rel_u32(&folio.seq, 1);
#endif
}

static void *writer(void *unused) {
    (void)unused;
    write_both(1);
    write_both(2);
    return NULL;
}

/* mirrors lookup.pxd: read_chunk */
static void *reader(void *unused) {
    uint32_t seq = load_acquire_u32(&folio.seq), first, second;
    (void)unused;
#ifndef BUG_EVEN_ONLY
    if (seq & 1) return NULL;
#endif
    first = load_relaxed_u32(&bytes[0]);
    second = load_relaxed_u32(&bytes[1]);
#ifndef BUG_NO_ACQUIRE_FENCE
    fence_acquire();
#endif
    if (load_relaxed_u32(&folio.seq) == seq) assert(first == second);
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    start(&threads[0], writer);
    start(&threads[1], reader);
    return 0;
}
