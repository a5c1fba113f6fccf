/* TBB's concurrent_hash_map. An accessor is a pin: it holds the element's lock for reading. */

#include <cstdint>
#include <tbb/concurrent_hash_map.h>

typedef tbb::concurrent_hash_map<uint32_t, uint64_t> Map;

static void *fill(uint32_t nr_pages, const uint32_t *order)
{
    Map *map = new Map(nr_pages);
    for (uint32_t i = 0; i < nr_pages; i++)
        map->insert(Map::value_type(order[i], (uint64_t)order[i] + 1));
    return map;
}

static inline uint64_t lookup(void *filled, uint32_t index)
{
    return static_cast<const Map *>(filled)->count(index) ? (uint64_t)index + 1 : 0;
}

static inline uint64_t pin(void *filled, uint32_t index)
{
    Map::const_accessor accessor;
    static_cast<const Map *>(filled)->find(accessor, index);
    return accessor->second;
}

#define ANCHOR_FILL fill
#define ANCHOR_LOOKUP lookup
#define ANCHOR_PIN pin
#include "anchor.h"
