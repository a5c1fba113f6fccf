/* liburcu's lock-free hash table. A lookup is a read-side section; a pin is an increment-unless-zero inside one. */

#include <stdint.h>
#include <stdlib.h>
#include <urcu/urcu-memb.h>
#include <urcu/rculfhash.h>

struct page {
    struct cds_lfht_node node;
    uint32_t index;
    uint32_t refcount;
};

static inline unsigned long hash(uint32_t index)
{
    return (unsigned long)(index * UINT64_C(0x9E3779B97F4A7C15) >> 32);
}

static int is_page(struct cds_lfht_node *node, const void *key)
{
    return caa_container_of(node, struct page, node)->index == *(const uint32_t *)key;
}

static void *fill(uint32_t nr_pages, const uint32_t *order)
{
    struct cds_lfht *table = cds_lfht_new_flavor(nr_pages, nr_pages, nr_pages, 0, &urcu_memb_flavor, NULL);
    struct page *pages = (struct page *)calloc(nr_pages, sizeof(struct page));
    uint32_t i;
    if (table == NULL || pages == NULL)
        return NULL;
    urcu_memb_register_thread();
    for (i = 0; i < nr_pages; i++) {
        pages[i].index = order[i];
        pages[i].refcount = 1;
        urcu_memb_read_lock();
        cds_lfht_add(table, hash(order[i]), &pages[i].node);
        urcu_memb_read_unlock();
    }
    urcu_memb_unregister_thread();
    return table;
}

static inline struct page *find(void *filled, uint32_t index)
{
    struct cds_lfht_iter iter;
    cds_lfht_lookup((struct cds_lfht *)filled, hash(index), is_page, &index, &iter);
    return caa_container_of(cds_lfht_iter_get_node(&iter), struct page, node);
}

static inline uint64_t lookup(void *filled, uint32_t index)
{
    uint64_t found;
    urcu_memb_read_lock();
    found = (uint64_t)find(filled, index)->index + 1;
    urcu_memb_read_unlock();
    return found;
}

static inline uint64_t pin(void *filled, uint32_t index)
{
    struct page *page;
    uint32_t refcount;
    uint64_t found;
    urcu_memb_read_lock();
    page = find(filled, index);
    refcount = __atomic_load_n(&page->refcount, __ATOMIC_RELAXED);
    while (refcount != 0 && !__atomic_compare_exchange_n(&page->refcount, &refcount, refcount + 1, 0, __ATOMIC_ACQ_REL,
                                                         __ATOMIC_RELAXED))
        ;
    urcu_memb_read_unlock();
    found = (uint64_t)page->index + 1;
    __atomic_fetch_sub(&page->refcount, 1, __ATOMIC_ACQ_REL);
    return found;
}

#define ANCHOR_FILL fill
#define ANCHOR_LOOKUP lookup
#define ANCHOR_PIN pin
#define ANCHOR_THREAD_BEGIN urcu_memb_register_thread
#define ANCHOR_THREAD_END urcu_memb_unregister_thread
#include "anchor.h"
