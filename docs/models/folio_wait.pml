/* The folio lock's sleepers and wakers, under sequential consistency and without the time limit of a slice: no thread sleeps
 * for ever, with a designated waiter who may give up, and a sleeper without a reference whose folio is freed.
 * mirrors folio.pxd: folio_end_locked, folio_grant, folio_lock_slice, folio_lock_cancel, folio_wait_slice,
 * folio_release_frames
 * BUGS: BUG_NO_WAKE_ON_FREE BUG_NO_WAITERS BUG_WAKE_ONE */
bool locked = true, waiters, handoff, granted;
byte seq, asleep, epoch;        /* futex: a sleeper waits for the epoch to change; epoch changes with each wake */
byte finished;

#define WORD (locked + 2 * waiters + 4 * handoff + 8 * granted)

#ifdef BUG_WAKE_ONE
byte awake;                     /* a wake lets one sleeper go */
#define WAKE if :: asleep > awake -> awake++ :: else fi
#define AWAIT atomic { awake > 0 -> awake--; asleep-- }
#else
#define WAKE epoch++
#define AWAIT atomic { epoch != mine -> asleep-- }
#endif

inline unlock() {
    do
    :: atomic { handoff -> granted = true; handoff = false; waiters = false; WAKE; break }
    :: atomic { !handoff -> locked = false; if :: waiters -> waiters = false; WAKE :: else fi; break }
    od
}

proctype holder() { unlock(); finished++ }

/* folio_lock_slice: one lost race is enough to ask for hand-off here */
proctype locker(bool may_give_up) {
    byte mine, expected;
    bool designated, got, lost;
    do
    :: got = false;
       if
       :: designated -> atomic { if :: granted -> granted = false; got = true :: else fi }
       :: else ->
          atomic { if :: !locked -> locked = true; got = true :: else fi }
          if
          :: !got && lost -> atomic { if :: locked && !handoff && !granted ->
                                               handoff = true; designated = true; waiters = true
                                         :: else fi }
          :: else
          fi
       fi;
       if :: got -> break :: else fi;
       if
       :: designated && may_give_up ->          /* a signal */
          atomic { if :: granted -> granted = false; got = true :: else -> assert(handoff); handoff = false fi }
          if :: got -> unlock() :: else fi;
          goto end
       :: else
       fi;
       atomic {                                 /* the word that the futex compares */
#ifndef BUG_NO_WAITERS
           waiters = true;
#endif
           expected = WORD }
       if
       :: !(expected & 1) || (designated && (expected & 8)) -> goto again
       :: else
       fi;
       atomic { if :: WORD == expected -> mine = epoch; asleep++ :: else -> goto again fi }
       AWAIT;
again: lost = true
    od;
    assert(locked);
    unlock();
end: finished++
}

/* folio_wait_slice without a reference: a folio that is freed while it is locked wakes its sleepers */
proctype sleeper() {
    byte mine, seen = seq;
    do
    :: atomic { !locked || seq != seen -> break }
    :: atomic { locked && seq == seen -> waiters = true; mine = epoch; asleep++ }
       AWAIT
    od;
    finished++
}

proctype reclaimer() {
    seq++;
    atomic { locked = false;
#ifndef BUG_NO_WAKE_ON_FREE
             if :: waiters -> waiters = false; WAKE :: else fi
#else
             waiters = false
#endif
    }
    finished++
}

init {
    if
    :: atomic { run holder(); run locker(false); run locker(true); run sleeper() }; (finished == 4)
    :: atomic { run reclaimer(); run sleeper(); run sleeper() }; (finished == 3)
    fi;
    assert(!locked && !handoff && !granted && asleep == 0)
}
