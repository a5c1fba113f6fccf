/* RocksDB's HyperClockCache. A handle is a pin, so there is no lookup without one: both are Lookup and Release. */

#include <cstdint>
#include <cstring>
#include <memory>
#include <rocksdb/cache.h>

using rocksdb::Cache;
using rocksdb::Slice;

static const size_t CHARGE_BYTES = 4096;
static const size_t ROOM = 2;           /* times the bytes of the pages, so that nothing is evicted */

struct Key {
    uint64_t words[2];                  /* the cache takes keys of 16 bytes only */
    explicit Key(uint32_t index) : words{1, index} {}
    Slice slice() const { return Slice(reinterpret_cast<const char *>(words), sizeof(words)); }
};

static void keep(const Slice &, void *) {}

static void *fill(uint32_t nr_pages, const uint32_t *order)
{
    rocksdb::HyperClockCacheOptions options(nr_pages * CHARGE_BYTES * ROOM, CHARGE_BYTES);
    std::shared_ptr<Cache> *cache = new std::shared_ptr<Cache>(options.MakeSharedCache());
    for (uint32_t i = 0; i < nr_pages; i++) {
        void *value = reinterpret_cast<void *>((uintptr_t)order[i] + 1);
        if (!(*cache)->Insert(Key(order[i]).slice(), value, CHARGE_BYTES, keep).ok())
            return nullptr;
    }
    for (uint32_t i = 0; i < nr_pages; i++) {
        Cache::Handle *handle = (*cache)->Lookup(Key(order[i]).slice());
        if (handle == nullptr)
            return nullptr;
        (*cache)->Release(handle);
    }
    return cache->get();
}

static inline uint64_t pin(void *filled, uint32_t index)
{
    Cache *cache = static_cast<Cache *>(filled);
    Cache::Handle *handle = cache->Lookup(Key(index).slice());
    uint64_t found = reinterpret_cast<uintptr_t>(cache->Value(handle));
    cache->Release(handle);
    return found;
}

#define ANCHOR_FILL fill
#define ANCHOR_LOOKUP pin
#define ANCHOR_PIN pin
#include "anchor.h"
