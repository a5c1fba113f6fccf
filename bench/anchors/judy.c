/* Judy's sparse array. */

#include <Judy.h>
#include <stdint.h>
#include <stdlib.h>

static void *fill(uint32_t nr_pages, const uint32_t *order)
{
    Pvoid_t *array = (Pvoid_t *)calloc(1, sizeof(Pvoid_t));
    uint32_t i;
    for (i = 0; array != NULL && i < nr_pages; i++) {
        PPvoid_t value = JudyLIns(array, order[i], PJE0);
        if (value == PPJERR)
            return NULL;
        *(Word_t *)value = order[i] + 1;
    }
    return array;
}

static inline uint64_t lookup(void *filled, uint32_t index)
{
    return *(Word_t *)JudyLGet(*(Pcvoid_t *)filled, index, PJE0);
}

#define ANCHOR_FILL fill
#define ANCHOR_LOOKUP lookup
#include "anchor.h"
