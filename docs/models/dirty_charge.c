/* A folio under write-back is dirtied again while its write-back ends, and another one is dirtied: what is charged is what
 * is dirty or under write-back, and never more than the limit.
 * BUGS: BUG_LOOK_FIRST BUG_CHARGE_LATE BUG_END_LOOKS_LATER */
#include "model.h"

enum { LIMIT = 2 };
static pc_u32 state[2], charged;                /* the first folio is under write-back, the second clean */

/* mirrors dirty.pxd: dirty_try_charge */
static int try_charge(void) {
    uint32_t before = load_relaxed_u32(&charged);
    while (before + 1 <= LIMIT || before == 0)
        if (cas_acq_rel_u32(&charged, &before, before + 1)) {
            assert(before + 1 <= LIMIT);
            return 1;
        }
    return 0;
}

/* mirrors dirty.pxd: dirty_uncharge */
static void uncharge(void) { assert(sub_acq_rel_u32(&charged, 1) >= 1); }

/* mirrors writeback.pxd: folio_mark_dirty */
static void mark_dirty(int which) {
    uint32_t before;
#ifdef BUG_LOOK_FIRST
    before = load_acquire_u32(&state[which]);
    if (!(before & WRITEBACK) && !try_charge()) return;
    or_acq_rel_u32(&state[which], DIRTY);
#elif defined(BUG_CHARGE_LATE)
    before = or_acq_rel_u32(&state[which], DIRTY);
    if (!(before & WRITEBACK)) add_acq_rel_u32(&charged, 1);
    assert(load_relaxed_u32(&charged) <= LIMIT);
#else
    if (!try_charge()) return;
    before = or_acq_rel_u32(&state[which], DIRTY);
    if (before & (WRITEBACK | DIRTY)) uncharge();
#endif
}

/* mirrors writeback.pxd: folio_end_writeback */
static void *end_writeback(void *unused) {
    uint32_t before = and_acq_rel_u32(&state[0], ~(uint32_t)WRITEBACK);
    (void)unused;
#ifdef BUG_END_LOOKS_LATER
    before = load_acquire_u32(&state[0]);
#endif
    if (!(before & DIRTY)) uncharge();
    return NULL;
}

static void *first_writer(void *unused) { (void)unused; mark_dirty(0); return NULL; }
static void *second_writer(void *unused) { (void)unused; mark_dirty(1); return NULL; }

int main(void) {
    pthread_t threads[3];
    uint32_t expected = 0;
    store_relaxed_u32(&state[0], WRITEBACK);
    store_relaxed_u32(&charged, 1);
#ifdef BUG_CHARGE_LATE
    store_relaxed_u32(&charged, LIMIT);
#endif
    start(&threads[0], end_writeback);
    start(&threads[1], first_writer);
    start(&threads[2], second_writer);
    join(threads[0]);
    join(threads[1]);
    join(threads[2]);
    for (int i = 0; i < 2; i++) expected += (load_relaxed_u32(&state[i]) & (DIRTY | WRITEBACK)) != 0;
    assert(load_relaxed_u32(&charged) == expected);
    return 0;
}
