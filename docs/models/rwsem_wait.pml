/* The read-write semaphore's sleepers and wakers, under sequential consistency and without the time limit of a slice:
 * no thread sleeps for ever, and none is inside beside a writer.
 * mirrors lock.pxd: rwsem_try_read, rwsem_read_slice, rwsem_read_end, rwsem_end_turn, rwsem_write_slice, rwsem_write_end,
 * rwsem_unlock_read, rwsem_unlock_write
 * BUGS: BUG_NO_WAKE_BY_WRITER BUG_TURN_STAYS BUG_NO_WAKE_BY_READER */
bool writer, turn;
byte readers, writers_waiting, readers_waiting;
byte word_epoch, waiting_epoch, finished;
#define IDLE (!writer && !turn && readers == 0)
#define CAN_READ (!writer && (turn || writers_waiting == 0))

inline end_turn() {
    atomic { if :: turn && !writer && readers == 0 -> turn = false; word_epoch++ :: else -> turn = false fi }
}

proctype reader(bool may_give_up) {
    byte mine;
    bool last;
    readers_waiting++;
    do
    :: atomic { CAN_READ -> readers++; break }
    :: may_give_up -> goto leave
    :: atomic { writer -> mine = word_epoch }; atomic { word_epoch != mine || !writer -> skip }
    :: atomic { !writer && writers_waiting != 0 && !turn -> mine = waiting_epoch }; (waiting_epoch != mine)
    od;
    atomic { readers_waiting--; last = (readers_waiting == 0) }
    if :: last && turn -> end_turn() :: else fi;
    assert(!writer);
    atomic { readers--; if
#ifndef BUG_NO_WAKE_BY_READER
             :: readers == 0 -> word_epoch++
#endif
             :: else fi }
    goto end;
leave:
    atomic { readers_waiting--; last = (readers_waiting == 0) }
    if :: last && turn -> end_turn() :: else fi;
end:
    finished++
}

proctype author() {
    byte mine;
    bool wait;
    writers_waiting++;
    do
    :: atomic { IDLE -> writer = true; break }
    :: atomic { !IDLE -> mine = word_epoch }; (word_epoch != mine)
    od;
    atomic { writers_waiting--; waiting_epoch++ }
    assert(readers == 0);
    wait = (readers_waiting != 0);
    atomic { writer = false; turn = wait }
    if
    :: wait ->
#ifndef BUG_TURN_STAYS
       if :: readers_waiting == 0 -> end_turn() :: else fi;
#endif
       waiting_epoch++
    :: else
    fi;
#ifndef BUG_NO_WAKE_BY_WRITER
    word_epoch++;
#endif
    finished++
}

init {
    atomic { run author(); run author(); run reader(false); run reader(true) }
    (finished == 4);
    assert(IDLE && writers_waiting == 0 && readers_waiting == 0)
}
