/* Threads that run Python, and the interpreter that they hold: its lock (the GIL), or on a build without one their
 * attachment, which a collection waits for.
 *
 * A thread that has to sleep for an engine lock gives the interpreter up (interpreter_leave), wherever in a call of the
 * engine it is, and perhaps with other engine locks held. It takes it back when it gives up the last of them
 * (lock_count_sub), not before: no engine lock is ever held while the interpreter is wanted. What runs in between is
 * the engine, which touches no objects.
 *
 * Benefits: calls of the engine keep the interpreter, which costs nothing, and still hold no thread up when they meet a
 * lock that is taken. Costs: a thread-local number per lock and unlock; a call that takes engine locks may let other
 * threads in, as any that releases the GIL.
 *
 * The engine knows no Python: what it calls is set by the module that holds it, and absent in programs without one. */
#ifndef PC_INTERPRETER_H
#define PC_INTERPRETER_H
#include <stddef.h>
#include <stdint.h>
#include "thread.h"

typedef struct {
    int (*is_held)(void);
    void *(*leave)(void);           /* gives it up; what it returns takes it back */
    void (*enter)(void *thread);
} pc_interpreter_calls;
static pc_interpreter_calls pc_interpreter;

static __thread uint32_t pc_locks_counted PC_TLS_MODEL;        /* engine locks, by this thread */
static __thread void *pc_interpreter_left PC_TLS_MODEL;     /* what takes back the interpreter that it gave up */

static inline int interpreter_is_held(void) { return pc_interpreter.is_held != NULL && pc_interpreter.is_held(); }

static inline void interpreter_leave(void) {
    if (interpreter_is_held()) pc_interpreter_left = pc_interpreter.leave();
}

static inline void lock_count_add(void) { pc_locks_counted++; }

static inline void lock_count_sub(void) {
    pc_locks_counted--;
    if (__builtin_expect(pc_interpreter_left != NULL, 0) && pc_locks_counted == 0) {
        void *thread = pc_interpreter_left;
        pc_interpreter_left = NULL;
        pc_interpreter.enter(thread);
    }
}
#endif
