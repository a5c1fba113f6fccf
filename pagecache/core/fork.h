/* What fork() is to do with segments: called before it, and after it in the parent and in the child, for each one that is
 * registered. Handlers of the C library's, so that no other thread of Python's can come between them and the fork. */
#ifndef PC_FORK_H
#define PC_FORK_H
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

typedef void (*pc_fork_step)(void *segment);
static struct {
    pthread_mutex_t mutex;          /* guards the rest; held from before a fork until after it */
    pc_fork_step before, parent, child;
    void **segments;
    size_t nr, room;
} pc_fork = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static inline void pc_fork_each(pc_fork_step step) {
    for (size_t i = 0; i < pc_fork.nr; i++) step(pc_fork.segments[i]);
}
static inline void pc_fork_before(void) { pthread_mutex_lock(&pc_fork.mutex); pc_fork_each(pc_fork.before); }
static inline void pc_fork_parent(void) { pc_fork_each(pc_fork.parent); pthread_mutex_unlock(&pc_fork.mutex); }
static inline void pc_fork_child(void) { pc_fork_each(pc_fork.child); pthread_mutex_unlock(&pc_fork.mutex); }

/* Call once when the module is loaded. */
static inline void fork_setup(pc_fork_step before, pc_fork_step parent, pc_fork_step child) {
    pc_fork.before = before;
    pc_fork.parent = parent;
    pc_fork.child = child;
    pthread_atfork(pc_fork_before, pc_fork_parent, pc_fork_child);
}
/* Returns 0 or -ENOMEM. */
static inline int fork_register(void *segment) {
    int r = 0;
    pthread_mutex_lock(&pc_fork.mutex);
    if (pc_fork.nr == pc_fork.room) {
        size_t room = pc_fork.room ? 2 * pc_fork.room : 16;
        void **more = realloc(pc_fork.segments, room * sizeof(void *));
        if (more == NULL) r = -ENOMEM;
        else { pc_fork.segments = more; pc_fork.room = room; }
    }
    if (r == 0) pc_fork.segments[pc_fork.nr++] = segment;
    pthread_mutex_unlock(&pc_fork.mutex);
    return r;
}
static inline void fork_unregister(void *segment) {
    pthread_mutex_lock(&pc_fork.mutex);
    for (size_t i = 0; i < pc_fork.nr; i++)
        if (pc_fork.segments[i] == segment) { pc_fork.segments[i] = pc_fork.segments[--pc_fork.nr]; break; }
    pthread_mutex_unlock(&pc_fork.mutex);
}
#endif
