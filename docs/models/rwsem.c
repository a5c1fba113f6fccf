/* The read-write semaphore: a writer excludes all others, and the turn that a writer leaves to readers ends, whether they
 * take it or give up: a turn that stayed would keep all writers out for ever.
 * BUGS: BUG_NO_FENCES BUG_NO_LOOK_BACK BUG_READERS_IN BUG_RELAXED_RELEASE */
#include "model.h"

#define WRITER 0x80000000u
#define TURN 0x40000000u
static pc_u32 word, nr_writers_waiting, nr_readers_waiting;
static uint32_t guarded;                        /* plain: GenMC reports a race */
#ifdef BUG_NO_FENCES
#define full_fence()
#else
#define full_fence() fence_seq_cst()
#endif

/* mirrors lock.pxd: rwsem_try_read */
static int try_read(void) {
    uint32_t seen = load_acquire_u32(&word);
#ifndef BUG_READERS_IN
    if (seen & WRITER || !(seen & TURN || load_acquire_u32(&nr_writers_waiting) == 0)) return 0;
#endif
    return cas_acq_rel_u32(&word, &seen, seen + 1);
}

/* mirrors lock.pxd: rwsem_end_turn */
static void end_turn(void) { and_acq_rel_u32(&word, ~TURN); }

/* mirrors lock.pxd: rwsem_read_begin, rwsem_read_slice, rwsem_read_end, rwsem_unlock_read. One try: it may give up. */
static void *reader(void *unused) {
    int locked;
    (void)unused;
    add_acq_rel_u32(&nr_readers_waiting, 1);
    locked = try_read();
    if (sub_acq_rel_u32(&nr_readers_waiting, 1) == 1) {
        full_fence();
        if (load_acquire_u32(&word) & TURN) end_turn();
    }
    if (locked) {
        assert(guarded < 2);
        sub_acq_rel_u32(&word, 1);
    }
    return NULL;
}

/* mirrors lock.pxd: rwsem_write_begin, rwsem_try_write, rwsem_write_end, rwsem_unlock_write */
static void *writer(void *unused) {
    uint32_t idle = 0, readers_wait;
    int locked;
    (void)unused;
    add_acq_rel_u32(&nr_writers_waiting, 1);
    locked = cas_acq_rel_u32(&word, &idle, WRITER);
    sub_acq_rel_u32(&nr_writers_waiting, 1);
    if (!locked) return NULL;
    guarded = 1;
    readers_wait = load_acquire_u32(&nr_readers_waiting) != 0;
#ifdef BUG_RELAXED_RELEASE
    store_relaxed_u32(&word, readers_wait ? TURN : 0);
#else
    exchange_acq_rel_u32(&word, readers_wait ? TURN : 0);
#endif
    if (readers_wait) {
        full_fence();
#ifndef BUG_NO_LOOK_BACK
        if (load_acquire_u32(&nr_readers_waiting) == 0) end_turn();
#endif
    }
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    start(&threads[0], writer);
    start(&threads[1], reader);
    start(&threads[2], reader);
    join(threads[0]);
    join(threads[1]);
    join(threads[2]);
    assert(load_relaxed_u32(&word) == 0);
    return 0;
}
