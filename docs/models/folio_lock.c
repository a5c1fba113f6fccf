/* The folio lock with a designated waiter that may give up: one holder at a time, who sees what the one before him did;
 * a lock that was handed over is never lost.
 * BUGS: BUG_RELAXED_UNLOCK BUG_LOST_GRANT BUG_STEAL */
#include "model.h"

static pc_u32 state;
static uint32_t guarded;                        /* plain: GenMC reports a race */

/* mirrors folio.pxd: folio_end_locked, folio_grant */
static void unlock(void) {
    uint32_t before = load_relaxed_u32(&state);
    for (;;) {
        if (before & HANDOFF) {
            if (cas_acq_rel_u32(&state, &before, (before | GRANTED) & ~(HANDOFF | WAITERS))) return;
        } else
#ifdef BUG_RELAXED_UNLOCK
        if (cas_relaxed_u32(&state, &before, before & ~(LOCKED | WAITERS))) return;
#else
        if (cas_acq_rel_u32(&state, &before, before & ~(LOCKED | WAITERS))) return;
#endif
    }
}

/* mirrors folio.pxd: folio_trylock */
static int trylock(void) {
#ifdef BUG_STEAL
    return !(or_acq_rel_u32(&state, LOCKED) & LOCKED) || (load_acquire_u32(&state) & GRANTED);
#else
    return !(or_acq_rel_u32(&state, LOCKED) & LOCKED);
#endif
}

static void *competitor(void *unused) {
    (void)unused;
    if (trylock()) {
        guarded++;
        unlock();
    }
    return NULL;
}

/* mirrors folio.pxd: folio_lock_designate */
static int designate(void) {
    uint32_t before = load_relaxed_u32(&state);
    while (before & LOCKED && !(before & (HANDOFF | GRANTED)))
        if (cas_acq_rel_u32(&state, &before, before | HANDOFF | WAITERS)) return 1;
    return 0;
}

/* mirrors folio.pxd: folio_lock_slice, folio_lock_cancel */
static void *waiter(void *unused) {
    uint32_t before;
    (void)unused;
    if (!designate()) return NULL;
    if (and_acq_rel_u32(&state, ~(uint32_t)GRANTED) & GRANTED) {    /* one look, then a signal */
        guarded++;
        unlock();
        return NULL;
    }
    before = load_relaxed_u32(&state);
    for (;;) {
        if (before & GRANTED) {
            and_acq_rel_u32(&state, ~(uint32_t)GRANTED);
#ifndef BUG_LOST_GRANT
            unlock();
#endif
            return NULL;
        }
        assert(before & HANDOFF);
        if (cas_acq_rel_u32(&state, &before, before & ~(uint32_t)HANDOFF)) return NULL;
    }
}

static void *holder(void *unused) {
    (void)unused;
    guarded++;
    unlock();
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    store_relaxed_u32(&state, LOCKED);
    start(&threads[0], holder);
    start(&threads[1], waiter);
    start(&threads[2], competitor);
    join(threads[0]);
    join(threads[1]);
    join(threads[2]);
    assert(!(load_relaxed_u32(&state) & (LOCKED | HANDOFF | GRANTED)));
    return 0;
}
