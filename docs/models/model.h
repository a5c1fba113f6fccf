/* What the models share: the engine's own atomic operations, threads, and the part of a descriptor that matters.
 *
 * A model is a transcription of one protocol, with two or three threads that each do one or two operations. GenMC explores
 * every execution that the C11 memory model (RC11) allows. `genmc -- -Ipagecache docs/models/NAME.c` must find nothing;
 * with a -DBUG_... that the model lists it must find the planted bug. A comment `mirrors FILE: function` names what a
 * function transcribes; tests/test_models.py checks that it exists. */
#include <assert.h>
#include <pthread.h>
#include <stddef.h>
#include "core/atomic.h"

#include <genmc.h>
#define assume(condition) __VERIFIER_assume(condition)      /* a wait that ends: other executions do not count */

enum { LOCKED = 1, WAITERS = 2, HANDOFF = 4, GRANTED = 8, UPTODATE = 16, DIRTY = 32, WRITEBACK = 64, ALLOCATED = 1 << 15 };
enum { NUMBER = 1, PAGE = 5, OTHER_PAGE = 6 };              /* a mapping, and two pages of it */

typedef struct { pc_u32 state, refcount, seq, mapping, index; } Folio;

static inline void start(pthread_t *thread, void *(*run)(void *)) { pthread_create(thread, NULL, run, NULL); }
static inline void join(pthread_t thread) { pthread_join(thread, NULL); }
