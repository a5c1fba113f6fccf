/* The C interface of pagecache: cached bytes for other extension modules, without the GIL.
 *
 *     if (pagecache_import() < 0) return NULL;              once, when your module is loaded, with the GIL
 *     pagecache_object *object = pagecache_acquire(file);   an open File; with the GIL
 *     n = pagecache_read(object, target, nbytes, offset);   any thread, with or without the GIL
 *     if (pagecache_release(object) < 0) return NULL;       with the GIL
 *
 * Nothing here reads from a store or waits for one: what is not cached is brought in by Python, as by file.pread().
 * Everything goes through one table of functions, found through the capsule pagecache._core._C_API; nothing is linked.
 */
#ifndef PAGECACHE_H
#define PAGECACHE_H
#include <Python.h>
#include <stdint.h>

#define PAGECACHE_CAPSULE "pagecache._core._C_API"
#define PAGECACHE_API_VERSION 1u        /* other: refused. What is only added makes the table longer */
#define PAGECACHE_END (-1)              /* no byte of the object lies at that offset */
#define PAGECACHE_ABSENT (-2)           /* not cached, or not to be read without Python's help */
#define PAGECACHE_DEAD (-3)             /* the cache belongs to the parent of this process */

typedef struct pagecache_object pagecache_object;   /* the cached pages of one object; see pagecache_acquire */

typedef struct {
    const char *data;                   /* cached bytes, from the offset that was asked for */
    uint64_t nbytes;                    /* how many: to the end of the folio or of the object */
    pagecache_object *object;           /* for pagecache_unpin */
    void *folio;
} pagecache_pin_t;

typedef enum {
    PAGECACHE_FRAMES = 0,               /* page frames: the budget */
    PAGECACHE_FREE_FRAMES,
    PAGECACHE_CACHED_PAGES,
    PAGECACHE_DIRTY_PAGES,
    PAGECACHE_WRITEBACK_PAGES,
    PAGECACHE_PINNED_PAGES,
    PAGECACHE_HITS,                     /* reads answered from the cache */
    PAGECACHE_MISSES,
    PAGECACHE_STORE_READS,              /* requests */
    PAGECACHE_STORE_READ_BYTES,
    PAGECACHE_STORE_WRITES,
    PAGECACHE_STORE_WRITE_BYTES,
    PAGECACHE_NR_COUNTERS
} pagecache_counter_t;

typedef struct {
    uint32_t version;                   /* PAGECACHE_API_VERSION */
    uint32_t struct_size;               /* sizeof(pagecache_api) */
    /* with the GIL */
    pagecache_object *(*acquire)(PyObject *source);
    int (*release)(pagecache_object *object);
    /* with or without it, from any thread; none waits */
    uint64_t (*size)(const pagecache_object *object);
    int (*is_cached)(const pagecache_object *object, uint64_t nbytes, uint64_t offset);
    int64_t (*read)(pagecache_object *object, void *target, uint64_t nbytes, uint64_t offset);
    int (*pin)(pagecache_object *object, uint64_t offset, pagecache_pin_t *pin);
    void (*unpin)(pagecache_pin_t *pin);
    int64_t (*counter)(const pagecache_object *object, int counter);
} pagecache_api;

#ifndef PAGECACHE_BUILDS_TABLE
static const pagecache_api *pagecache_table;    /* of this translation unit */

/* Finds the table; call it first in each translation unit. Returns 0, or -1 with an exception set: ImportError when
 * pagecache is missing or of a version that this code was not compiled for. */
static inline int pagecache_import(void) {
    const pagecache_api *table = (const pagecache_api *)PyCapsule_Import(PAGECACHE_CAPSULE, 0);
    if (table == NULL) return -1;
    if (table->version != PAGECACHE_API_VERSION || table->struct_size < sizeof(pagecache_api)) {
        PyErr_Format(PyExc_ImportError,
                     "pagecache has version %u of its C interface (%u bytes), but this module was compiled for version %u "
                     "(%u bytes): compile it again, or install the pagecache it was compiled for",
                     (unsigned)table->version, (unsigned)table->struct_size, PAGECACHE_API_VERSION,
                     (unsigned)sizeof(pagecache_api));
        return -1;
    }
    pagecache_table = table;
    return 0;
}

/* The object of an open pagecache.File. It stays usable, whatever becomes of the file, until pagecache_release. Returns
 * NULL with an exception set: TypeError, ValueError (closed), io.UnsupportedOperation (not readable), RuntimeError (of
 * the parent process), MemoryError. */
static inline pagecache_object *pagecache_acquire(PyObject *file) { return pagecache_table->acquire(file); }

/* Gives an object back; no other thread may use it any more. Returns 0, or -1 with RuntimeError set while it has pins:
 * then it is still valid. */
static inline int pagecache_release(pagecache_object *object) { return pagecache_table->release(object); }

/* Bytes of the object. */
static inline uint64_t pagecache_size(const pagecache_object *object) { return pagecache_table->size(object); }

/* 1 if what the object has of [offset, offset + nbytes) is cached, else 0, at this moment. */
static inline int pagecache_is_cached(const pagecache_object *object, uint64_t nbytes, uint64_t offset) {
    return pagecache_table->is_cached(object, nbytes, offset);
}

/* Copies the cached beginning of [offset, offset + nbytes). Returns the bytes copied: fewer than nbytes where the object
 * ends or a page is not cached; or PAGECACHE_DEAD. */
static inline int64_t pagecache_read(pagecache_object *object, void *target, uint64_t nbytes, uint64_t offset) {
    return pagecache_table->read(object, target, nbytes, offset);
}

/* Pins the folio that caches the byte at `offset`: it keeps its frames and, writes apart, its bytes, whatever is evicted
 * or truncated, until pagecache_unpin. Returns 0, PAGECACHE_END, PAGECACHE_ABSENT or PAGECACHE_DEAD. */
static inline int pagecache_pin(pagecache_object *object, uint64_t offset, pagecache_pin_t *pin) {
    return pagecache_table->pin(object, offset, pin);
}

/* Ends a pin, from any thread; once. */
static inline void pagecache_unpin(pagecache_pin_t *pin) { pagecache_table->unpin(pin); }

/* A counter or gauge of the whole cache that the object belongs to; -1 for an unknown one. */
static inline int64_t pagecache_counter(const pagecache_object *object, int counter) {
    return pagecache_table->counter(object, counter);
}
#endif
#endif
