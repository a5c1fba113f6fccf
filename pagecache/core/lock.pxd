"""Engine locks: `FutexLock` for bounded sections, `RwSem` for sections that may sleep.

Both are plain words of a segment: no pointer, no owner, zero means free, so they work at any address and between
processes that map the same segment.

FutexLock (words 0 free, 1 held, 2 held and a thread sleeps)
  lock     0 -> 1 by compare-and-swap (acquire); after a short spin exchange to 2 and sleep while it is 2.
  unlock   exchange to 0 (release); if it was 2 wake one sleeper, which takes the lock as 2, so that no later sleeper is
           forgotten.
  Held for bounded sections without system calls; never held while the GIL is wanted. A thread of Python's that has to
  sleep for one gives up the interpreter first, and takes it back when it holds none any more (interpreter.h): so no
  wait keeps other threads from running, wherever in a call it is met.
  Long walks give the lock up every so often (futex_lock_pass), and let a sleeper have it.

RwSem (word: bit 31 a writer holds it, bit 30 it is the waiting readers' turn, bits 0..29 count of readers; and the
numbers of writers and of readers that wait)
  read     word + 1 by compare-and-swap while no writer holds or waits: a stream of readers cannot starve a writer.
  write    0 -> bit 31.
  release  the last one out wakes all sleepers; they compete again. A writer that goes leaves the turn to the readers that
           wait at that moment: a stream of writers cannot starve them. The last of these, in or given up, ends the turn.
  Both waits sleep for at most one slice, so that the caller can look for signals; a writer that gives up takes itself
  out of the count and wakes the readers it held back.
"""
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uint32_t
from pagecache.core.atomic cimport (pc_u32, load_relaxed_u32, load_acquire_u32, exchange_acq_rel_u32, add_acq_rel_u32,
                                    sub_acq_rel_u32, and_acq_rel_u32, cas_acq_rel_u32, cpu_relax,
                                    fence_seq_cst)
from pagecache.core.check cimport pc_assert
from pagecache.core.futex cimport futex_wait, futex_wake
from pagecache.core.interpreter cimport interpreter_leave, lock_count_add, lock_count_sub
from pagecache.core.lock_watch cimport lock_watch_released, lock_watch_taken
from pagecache.core.thread cimport thread_nap

cdef enum:
    SPIN_TRIES = 100
    WAIT_SLICE_NS = 50_000_000      # a sleeping thread looks for signals this often at least
    WAKE_ALL = 0x7FFFFFFF
    PASS_NAP_NS = 50_000            # about what a woken thread needs to take the lock

cdef enum:
    RWSEM_WRITER = 0x80000000
    RWSEM_TURN = 0x40000000

ctypedef struct FutexLock:
    pc_u32 word

ctypedef struct RwSem:
    pc_u32 word
    pc_u32 nr_writers_waiting
    pc_u32 nr_readers_waiting


# -- for locks of the layers above -------------------------------------------------------------------------------------

cdef inline bint futex_take(FutexLock* lock) noexcept nogil:
    """Tries to lock. With `futex_lock_slice` and `futex_give` for locks of the layers above, whose holders may touch
    anything, and want the interpreter: page faults under them are not counted, nor are they (interpreter.h)."""
    cdef uint32_t free = 0
    return cas_acq_rel_u32(&lock.word, &free, 1)


cdef inline int futex_lock_slice(FutexLock* lock) noexcept nogil:
    """Tries to lock, sleeping for one slice at most. Returns 0, -EINTR after a signal, -EAGAIN. The word is looked at and
    left as 2 after the sleep: a thread that gives up then has not had a wake-up that another sleeper needs."""
    cdef int r
    if exchange_acq_rel_u32(&lock.word, 2) == 0:
        return 0
    r = futex_wait(&lock.word, 2, WAIT_SLICE_NS)
    if exchange_acq_rel_u32(&lock.word, 2) == 0:
        return 0
    return -EINTR if r == -EINTR else -EAGAIN


cdef inline bint futex_give(FutexLock* lock) noexcept nogil:
    """Unlocks. Returns whether a thread slept, and was woken."""
    cdef uint32_t before = exchange_acq_rel_u32(&lock.word, 0)
    pc_assert(before != 0)
    if before == 2:
        futex_wake(&lock.word, 1)
    return before == 2


# -- engine locks ------------------------------------------------------------------------------------------------------

cdef inline void futex_taken() noexcept nogil:
    lock_count_add()
    lock_watch_taken()


cdef inline bint futex_trylock(FutexLock* lock) noexcept nogil:
    cdef bint taken = futex_take(lock)
    if taken:
        futex_taken()
    return taken


cdef inline void futex_lock_slow(FutexLock* lock) noexcept nogil:
    cdef int i
    for i in range(SPIN_TRIES):
        if load_relaxed_u32(&lock.word) == 0 and futex_take(lock):
            return
        cpu_relax()
    interpreter_leave()
    while exchange_acq_rel_u32(&lock.word, 2) != 0:
        futex_wait(&lock.word, 2, -1)


cdef inline void futex_lock(FutexLock* lock) noexcept nogil:
    if not futex_take(lock):
        futex_lock_slow(lock)
    futex_taken()


cdef inline void futex_unlock(FutexLock* lock) noexcept nogil:
    lock_watch_released()
    futex_give(lock)
    lock_count_sub()


cdef inline void futex_lock_pass(FutexLock* lock) noexcept nogil:
    """Gives the lock up for a moment, and if a thread sleeps for it, long enough for that one to get it."""
    if futex_give(lock):
        thread_nap(PASS_NAP_NS)
    if not futex_take(lock):
        futex_lock_slow(lock)


cdef inline bint futex_is_locked(FutexLock* lock) noexcept nogil:
    return load_relaxed_u32(&lock.word) != 0


cdef inline bint rwsem_try_read(RwSem* sem) noexcept nogil:
    cdef uint32_t word = load_acquire_u32(&sem.word)
    while not (word & <uint32_t>RWSEM_WRITER) and (word & <uint32_t>RWSEM_TURN
                                                   or load_acquire_u32(&sem.nr_writers_waiting) == 0):
        if cas_acq_rel_u32(&sem.word, &word, word + 1):
            return True
    return False


cdef inline void rwsem_end_turn(RwSem* sem) noexcept nogil:
    """No reader is left whose turn it was."""
    cdef uint32_t before = and_acq_rel_u32(&sem.word, ~<uint32_t>RWSEM_TURN)
    if before == <uint32_t>RWSEM_TURN:
        futex_wake(&sem.word, WAKE_ALL)


cdef inline void rwsem_read_begin(RwSem* sem) noexcept nogil:
    """Announces a reader, whose turn comes after the next writer at the latest. Follow with slices, then
    `rwsem_read_end`."""
    add_acq_rel_u32(&sem.nr_readers_waiting, 1)


cdef inline void rwsem_read_end(RwSem* sem) noexcept nogil:
    """Takes the announcement back, whether or not the lock was taken."""
    cdef uint32_t before = sub_acq_rel_u32(&sem.nr_readers_waiting, 1)
    pc_assert(before != 0)
    fence_seq_cst()                 # either this sees the turn that a writer gives, or the writer sees no waiter
    if before == 1 and load_acquire_u32(&sem.word) & <uint32_t>RWSEM_TURN:
        rwsem_end_turn(sem)


cdef inline bint rwsem_try_write(RwSem* sem) noexcept nogil:
    cdef uint32_t free = 0
    return cas_acq_rel_u32(&sem.word, &free, <uint32_t>RWSEM_WRITER)


cdef inline int rwsem_read_slice(RwSem* sem) noexcept nogil:
    """Tries to read-lock, sleeping for one slice at most. Returns 0, -EINTR after a signal, -EAGAIN."""
    cdef uint32_t word, nr_writers
    cdef int r = 0
    if rwsem_try_read(sem):
        return 0
    nr_writers = load_acquire_u32(&sem.nr_writers_waiting)
    word = load_acquire_u32(&sem.word)
    if word & <uint32_t>RWSEM_WRITER:
        r = futex_wait(&sem.word, word, WAIT_SLICE_NS)
    elif nr_writers != 0 and not word & <uint32_t>RWSEM_TURN:
        r = futex_wait(&sem.nr_writers_waiting, nr_writers, WAIT_SLICE_NS)
    if rwsem_try_read(sem):
        return 0
    return -EINTR if r == -EINTR else -EAGAIN


cdef inline void rwsem_write_begin(RwSem* sem) noexcept nogil:
    """Announces a writer: from now on readers wait. Follow with slices, then `rwsem_write_end`."""
    add_acq_rel_u32(&sem.nr_writers_waiting, 1)


cdef inline int rwsem_write_slice(RwSem* sem) noexcept nogil:
    """Tries to write-lock, sleeping for one slice at most. Returns 0, -EINTR after a signal, -EAGAIN."""
    cdef uint32_t word
    cdef int r = 0
    if rwsem_try_write(sem):
        return 0
    word = load_acquire_u32(&sem.word)
    if word != 0:
        r = futex_wait(&sem.word, word, WAIT_SLICE_NS)
    if rwsem_try_write(sem):
        return 0
    return -EINTR if r == -EINTR else -EAGAIN


cdef inline void rwsem_write_end(RwSem* sem) noexcept nogil:
    """Takes the announcement back, whether or not the lock was taken."""
    cdef uint32_t before = sub_acq_rel_u32(&sem.nr_writers_waiting, 1)
    pc_assert(before != 0)
    futex_wake(&sem.nr_writers_waiting, WAKE_ALL)


cdef inline void rwsem_unlock_read(RwSem* sem) noexcept nogil:
    cdef uint32_t before = sub_acq_rel_u32(&sem.word, 1) & ~<uint32_t>RWSEM_TURN
    pc_assert(before != 0 and not before & <uint32_t>RWSEM_WRITER)
    if before == 1:
        futex_wake(&sem.word, WAKE_ALL)


cdef inline void rwsem_unlock_write(RwSem* sem) noexcept nogil:
    cdef bint readers_wait = load_acquire_u32(&sem.nr_readers_waiting) != 0
    cdef uint32_t before = exchange_acq_rel_u32(&sem.word, <uint32_t>RWSEM_TURN if readers_wait else 0)
    pc_assert(before == <uint32_t>RWSEM_WRITER)
    if readers_wait:
        fence_seq_cst()
        if load_acquire_u32(&sem.nr_readers_waiting) == 0:
            rwsem_end_turn(sem)
        futex_wake(&sem.nr_writers_waiting, WAKE_ALL)
    futex_wake(&sem.word, WAKE_ALL)
