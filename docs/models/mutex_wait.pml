/* The mutex of the Python layers, its sleepers and wakers, under sequential consistency and without the time limit of a
 * slice: one holder at a time, and no thread sleeps for ever, though a signal may end a wait at any moment.
 * mirrors lock.pxd: futex_trylock, futex_lock_slice, futex_unlock
 * BUGS: BUG_NO_WAKE BUG_SLEEPER_TAKES_AS_ONE BUG_NO_LOOK_BEFORE_GIVING_UP */
byte word, inside, asleep, woken, finished;

inline wake_one() {
    atomic { if :: asleep > woken -> woken++ :: else fi }
}

proctype taker(bool may_give_up) {
    byte old;
    if
    :: atomic { word == 0 -> word = 1 }; goto held
    :: atomic { word != 0 -> skip }
    fi;
    do
    :: atomic { old = word; word = 2 };
       if :: old == 0 -> goto held :: else fi;
       if                                       /* the sleep: only while the word is as it was left */
       :: atomic { word == 2 -> asleep++ };
          if
          :: atomic { woken > 0 -> woken--; asleep-- }
          :: atomic { may_give_up && asleep > woken -> asleep-- }
          fi
       :: atomic { word != 2 -> skip }
       fi;
#ifdef BUG_NO_LOOK_BEFORE_GIVING_UP
       if :: may_give_up -> goto leave :: true fi;
#endif
#ifdef BUG_SLEEPER_TAKES_AS_ONE
       atomic { old = word; if :: old == 0 -> word = 1 :: else fi };
#else
       atomic { old = word; word = 2 };
#endif
       if :: old == 0 -> goto held :: else fi;
       if :: may_give_up -> goto leave :: true fi
    od;
held:
    inside++;
    assert(inside == 1);
    inside--;
    atomic { old = word; word = 0 };
#ifndef BUG_NO_WAKE
    if :: old == 2 -> wake_one() :: else fi;
#endif
leave:
    finished++
}

init {
    atomic { run taker(false); run taker(false); run taker(false); run taker(true) }
    (finished == 4);
    assert(word == 0 || word == 2)
}
