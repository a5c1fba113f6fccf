/* An error that was seen, a second one, and two open files that look: each file gets an error that came after its
 * last look, once, and of none that did not.
 * BUGS: BUG_NO_COUNTER BUG_PLAIN_ADVANCE */
#include "model.h"

enum { ERRNO = 0xFFF, SEEN = 1 << 12, COUNTER = 1 << 13, EIO_ = 5 };
static pc_u32 word;
static uint32_t since[2], reported[2], last[2];     /* each by its file's thread */
static uint32_t found;                          /* what the second error replaced */

/* mirrors errseq.pxd: errseq_set */
static uint32_t set(uint32_t number) {
    uint32_t old = load_acquire_u32(&word), new;
    for (;;) {
        new = (old & ~(uint32_t)(ERRNO | SEEN)) | number;
#ifndef BUG_NO_COUNTER
        if (old & SEEN) new += COUNTER;
#endif
        if (new == old || cas_acq_rel_u32(&word, &old, new)) return old;
    }
}

/* mirrors errseq.pxd: errseq_check_and_advance */
static uint32_t check_and_advance(int file) {
    uint32_t old = load_acquire_u32(&word), new;
    if (old == since[file]) return 0;
    new = old | SEEN;
#ifdef BUG_PLAIN_ADVANCE
    store_release_u32(&word, new);
#else
    if (new != old) cas_acq_rel_u32(&word, &old, new);
#endif
    since[file] = new;
    reported[file]++;
    last[file] = new & ERRNO;
    return last[file];
}

static void *failure(void *unused) { (void)unused; set(EIO_); return NULL; }
static void *other_failure(void *unused) { (void)unused; found = set(EIO_ + 1); return NULL; }
static void *first_file(void *unused) { (void)unused; check_and_advance(0); return NULL; }

int main(void) {
    pthread_t threads[3];
    uint32_t before;
    set(EIO_);                                  /* an error of long ago, which both files know */
    check_and_advance(0);
    check_and_advance(1);
    assert(reported[0] == 1 && reported[1] == 1);
    before = load_relaxed_u32(&word);
    start(&threads[0], failure);
    start(&threads[1], first_file);
    start(&threads[2], other_failure);
    join(threads[0]);
    join(threads[1]);
    join(threads[2]);
    assert(load_relaxed_u32(&word) != before);  /* the same error again is another one */
    check_and_advance(0);
    check_and_advance(1);
    if (found != before) assert(last[0] == EIO_ + 1 && last[1] == EIO_ + 1);    /* it came last */
    assert(reported[1] == 2);                       /* both at once: one look at the second file */
    assert(reported[0] == 2 || reported[0] == 3);
    assert(check_and_advance(0) == 0 && check_and_advance(1) == 0);
    return 0;
}
