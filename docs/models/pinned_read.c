/* A page is looked up with a reference while it is removed and its frame reused for another page: a reader that passes the
 * validation reads this page's bytes, by plain accesses, and no thread changes them until the reference is dropped.
 * BUGS: BUG_INDEX_FIRST BUG_NO_VALIDATION BUG_NO_FREEZE BUG_RELAXED_PUBLISH */
#include "model.h"

enum { GOOD = 50, OTHER_BYTES = 60 };
static Folio folio;
static uint32_t bytes;                          /* plain: GenMC reports a race */

/* mirrors folio.pxd: folio_try_get */
static int try_get(void) {
    uint32_t refcount = 1, tries;
    for (tries = 0; tries < 3 && refcount != 0; tries++)        /* others change it twice at most */
        if (cas_acq_rel_u32(&folio.refcount, &refcount, refcount + 1)) return 1;
    return 0;
}

/* mirrors lookup.pxd: folio_is */
static int is_page(uint32_t page) {
#ifdef BUG_NO_VALIDATION
    (void)page;
    return 1;
#elif defined(BUG_INDEX_FIRST)
    uint32_t index = load_relaxed_u32(&folio.index);
    return load_acquire_u32(&folio.mapping) == NUMBER && index == page;
#else
    if (load_acquire_u32(&folio.mapping) != NUMBER) return 0;
    return load_relaxed_u32(&folio.index) == page;
#endif
}

/* mirrors lookup.pxd: filemap_get_entry, and a reader that waits for the page to be uptodate */
static void read_page(uint32_t page, uint32_t good) {
    if (!try_get()) return;
    if (is_page(page)) {
        assume(load_acquire_u32(&folio.state) & UPTODATE);
        assert(bytes == good);
    }
    sub_acq_rel_u32(&folio.refcount, 1);        /* the page cache holds one, so this is not the last */
}

static void *reader(void *unused) { (void)unused; read_page(PAGE, GOOD); return NULL; }
static void *other_reader(void *unused) { (void)unused; read_page(OTHER_PAGE, OTHER_BYTES); return NULL; }

/* mirrors mapping.pxd: filemap_remove_clean, mapping_insert; folio.pxd: folio_alloc_nowait, folio_end_read */
static void *evictor(void *unused) {
    uint32_t expected = 1;
    (void)unused;
#ifdef BUG_NO_FREEZE
    store_release_u32(&folio.refcount, 0);
#else
    if (!cas_acq_rel_u32(&folio.refcount, &expected, 0)) return NULL;
#endif
    store_release_u32(&folio.mapping, 0);
    add_acq_rel_u32(&folio.seq, 2);
    exchange_acq_rel_u32(&folio.state, 0);
    fence_release();
    store_release_u32(&folio.state, ALLOCATED);
    store_release_u32(&folio.refcount, 1);
    or_acq_rel_u32(&folio.state, LOCKED);
    add_acq_rel_u32(&folio.refcount, 1);
    store_relaxed_u32(&folio.index, OTHER_PAGE);
    store_release_u32(&folio.mapping, NUMBER);
    bytes = OTHER_BYTES;
#ifdef BUG_RELAXED_PUBLISH
    store_relaxed_u32(&folio.state, ALLOCATED | UPTODATE);
#else
    xor_acq_rel_u32(&folio.state, LOCKED | UPTODATE);
#endif
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    store_relaxed_u32(&folio.state, ALLOCATED | UPTODATE);
    store_relaxed_u32(&folio.mapping, NUMBER);
    store_relaxed_u32(&folio.index, PAGE);
    store_relaxed_u32(&folio.refcount, 1);
    bytes = GOOD;
    start(&threads[0], reader);
    start(&threads[1], evictor);
    start(&threads[2], other_reader);
    return 0;
}
