/* A page is copied without a lock or a reference while it is removed and its frame reused, for another page
 * (-DNEW_PAGE=OTHER_PAGE) or for the same one: the copy that the reader keeps is never of another page's bytes, nor of a
 * page that is being filled.
 * BUGS: BUG_STATE_FIRST BUG_NO_RELEASE_FENCE BUG_NO_ACQUIRE_FENCE BUG_NO_SECOND_LOOK BUG_LATE_SEQ */
#include "model.h"
#ifndef NEW_PAGE
#define NEW_PAGE PAGE
#endif

enum { GOOD = 50, HALF_FILLED = 99, NEW_BYTES = NEW_PAGE * 10 };
static Folio folio;
static pc_u32 bytes, is_free;

/* mirrors mapping.pxd: mapping_remove; folio.pxd: folio_release_frames */
static void *remover(void *unused) {
    (void)unused;
    store_release_u32(&folio.mapping, 0);
#ifndef BUG_LATE_SEQ
    add_acq_rel_u32(&folio.seq, 2);
#endif
    exchange_acq_rel_u32(&folio.state, 0);
    store_release_u32(&is_free, 1);             /* buddy_lock */
#ifdef BUG_LATE_SEQ
    add_acq_rel_u32(&folio.seq, 2);
#endif
    return NULL;
}

/* mirrors folio.pxd: folio_alloc_nowait; mapping.pxd: mapping_insert; folio.pxd: folio_end_read */
static void *reuser(void *unused) {
    (void)unused;
    assume(load_acquire_u32(&is_free));
#ifndef BUG_NO_RELEASE_FENCE
    fence_release();
#endif
    store_release_u32(&folio.state, ALLOCATED);
    or_acq_rel_u32(&folio.state, LOCKED);
    store_relaxed_u32(&folio.index, NEW_PAGE);
    store_release_u32(&folio.mapping, NUMBER);
    store_relaxed_u32(&bytes, HALF_FILLED);
    store_relaxed_u32(&bytes, NEW_BYTES);
    xor_acq_rel_u32(&folio.state, LOCKED | UPTODATE);
    return NULL;
}

/* mirrors lookup.pxd: read_chunk. The index has led here; it may have done so long ago. */
static void *reader(void *unused) {
    uint32_t seq, state = 0, copy;
    (void)unused;
    seq = load_acquire_u32(&folio.seq);
#ifdef BUG_STATE_FIRST
    state = load_acquire_u32(&folio.state);
#endif
    if (seq & 1 || load_acquire_u32(&folio.mapping) != NUMBER || load_relaxed_u32(&folio.index) != PAGE) return NULL;
#ifndef BUG_STATE_FIRST
    state = load_acquire_u32(&folio.state);
#endif
    if (!(state & UPTODATE)) return NULL;
    copy = load_relaxed_u32(&bytes);
#ifndef BUG_NO_ACQUIRE_FENCE
    fence_acquire();
#endif
#ifndef BUG_NO_SECOND_LOOK
    if (load_relaxed_u32(&folio.seq) != seq) return NULL;
#endif
    assert(copy == GOOD);                       /* NEW_BYTES is GOOD if the page came back */
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    store_relaxed_u32(&folio.state, ALLOCATED | UPTODATE);
    store_relaxed_u32(&folio.mapping, NUMBER);
    store_relaxed_u32(&folio.index, PAGE);
    store_relaxed_u32(&bytes, GOOD);
    start(&threads[0], reader);
    start(&threads[1], remover);
    start(&threads[2], reuser);
    return 0;
}
