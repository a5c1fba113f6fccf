/* A bare radix tree of three levels, 64 pointers a node: the least that a walk can cost. */

#include <stdint.h>
#include <stdlib.h>

enum { SHIFT = 6, SLOTS = 1 << SHIFT, MASK = SLOTS - 1 };

static void *fill(uint32_t nr_pages, const uint32_t *order)
{
    void ****root = (void ****)calloc(SLOTS, sizeof(void *));
    uint32_t i;
    for (i = 0; root != NULL && i < nr_pages; i++) {
        uint32_t index = order[i];
        void ****middle = &root[index >> (2 * SHIFT)];
        void ***leaf;
        if (*middle == NULL && (*middle = (void ***)calloc(SLOTS, sizeof(void *))) == NULL)
            return NULL;
        leaf = &(*middle)[(index >> SHIFT) & MASK];
        if (*leaf == NULL && (*leaf = (void **)calloc(SLOTS, sizeof(void *))) == NULL)
            return NULL;
        (*leaf)[index & MASK] = (void *)(uintptr_t)(index + 1);
    }
    return root;
}

static inline uint64_t lookup(void *filled, uint32_t index)
{
    return (uintptr_t)((void ****)filled)[index >> (2 * SHIFT)][(index >> SHIFT) & MASK][index & MASK];
}

#define ANCHOR_FILL fill
#define ANCHOR_LOOKUP lookup
#include "anchor.h"
