/* Two writes of our own to a file, and a check whether another program changed it: none did, so no check says so; and in
 * the end the stamp is that of the file. `file` is the kernel's: what fstat(2) says is what the last write(2) left.
 * BUGS: BUG_RELAXED_STAMP BUG_NO_GENERATION BUG_NO_SECOND_LOOK BUG_NO_RETAKE */
#include "model.h"

#ifdef BUG_NO_GENERATION
enum { BEGIN = 0x1, MASK = 0xFFFF };
#else
enum { BEGIN = 0x10001, MASK = 0xFFFF };
#endif
static pc_u32 file, own_writes, stamp_seq;
static pc_u64 stamp_mtime, stamp_size;

/* mirrors stamp.pxd: stamp_take */
static void take(void) {
    uint32_t now = load_acquire_u32(&file);
#ifdef BUG_RELAXED_STAMP
    store_relaxed_u64(&stamp_mtime, now);
    store_relaxed_u64(&stamp_size, now);
#else
    store_release_u64(&stamp_mtime, now);
    store_release_u64(&stamp_size, now);
#endif
    add_acq_rel_u32(&stamp_seq, 1);
}

/* mirrors stamp.pxd: own_write_begin, own_write_end */
static void *writer(void *unused) {
    uint32_t own;
    (void)unused;
    add_acq_rel_u32(&own_writes, BEGIN);
    add_acq_rel_u32(&file, 1);
    own = load_acquire_u32(&own_writes);
#ifdef BUG_NO_RETAKE
    if ((own & MASK) == 1) take();
    sub_acq_rel_u32(&own_writes, 1);
#else
    do
        if ((own & MASK) == 1) take();
    while (!cas_acq_rel_u32(&own_writes, &own, own - 1));
#endif
    return NULL;
}

/* mirrors stamp.pxd: stamp_look */
static void *checker(void *unused) {
    uint32_t seq = load_acquire_u32(&stamp_seq), own = load_acquire_u32(&own_writes), now;
    uint64_t mtime, size;
    (void)unused;
    if (own & MASK) return NULL;
    now = load_acquire_u32(&file);
#ifdef BUG_RELAXED_STAMP
    mtime = load_relaxed_u64(&stamp_mtime);
    size = load_relaxed_u64(&stamp_size);
#else
    mtime = load_acquire_u64(&stamp_mtime);
    size = load_acquire_u64(&stamp_size);
#endif
    if (mtime == now && size == now) return NULL;
#ifdef BUG_NO_SECOND_LOOK
    assert(0);
#endif
    assert(load_acquire_u32(&own_writes) != own || load_acquire_u32(&stamp_seq) != seq);
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    start(&threads[0], writer);
    start(&threads[1], writer);
    start(&threads[2], checker);
    join(threads[0]);
    join(threads[1]);
    join(threads[2]);
    assert(load_relaxed_u64(&stamp_mtime) == 2 && !(load_relaxed_u32(&own_writes) & MASK));
    return 0;
}
