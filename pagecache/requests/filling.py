"""A store at work on folios, and how they are taken away from it when it hangs and no thread waits for that request.

    at work --(the store has returned)----------------------------------------------> over: its thread goes on
    at work --(its reader was cancelled, and no thread waits for its folios)--------> given up
    at work --(its reader was cancelled, others wait)--> unattended
    unattended, or begun in the background --(overdue, and a thread waits)----------> given up

Over and given up exclude each other: both steps are made under one lock, and only what is over is touched by the store's
thread again.  Given up, the folios leave the cache: the next reader makes a request of its own, those who wait look again.
The place goes to another one, and the hold on invalidate_lock ends.  A late answer lands nowhere: a store that copies under
a lock (`Destination`) has let go of the frames, and for any other they stay pinned, out of the cache, until it has given
the buffers back.

Overdue is what takes far longer than the store's best requests make it, and seconds at least: less would ask busy servers
for everything twice.  Threads that wait for a folio or a place look for it.

Costs: a thread, and a pinned frame where the store fills it itself, for each request that hangs until the store returns.  A
store that takes one request at a time keeps its place, as it says that its reads must not overlap, unless it makes the next
one elsewhere (`leaves_behind`).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pagecache._core import AddressSpace, FolioBatch, LockGuard, Mutex
from pagecache.stores.abandoned import Abandoned, Call, current_call


class Filling:
    """One request under way, which may be given up.

    call: what the store's thread carries out. batches: new ones of the mapping. nbytes: that are asked for.
    """

    def __init__(self, mapping: "AddressSpace[Any, Any]", call: Call, batches: Sequence[FolioBatch], nbytes: int):
        self.name = mapping.name
        self._backing = backing = mapping.backing
        self._lets_go = bool(getattr(mapping.host, "lets_go", False))
        self._leaves_behind = bool(getattr(mapping.host, "leaves_behind", False))
        self._call = call
        self._batches = batches
        self._lock = Mutex()
        self._is_over = self._is_given_up = self._has_lent_place = False
        self._due_s: float = time.monotonic() + backing.speed.patience_s(nbytes)
        self._buffers: Sequence[memoryview] = ()  # over the frames, that the store has now

    def carry_out(self, ask: Callable[[], None]) -> None:
        """Have the store fill the batches. Raises what that raises; Abandoned if they were given up."""
        if self._call.in_background:
            self._backing.unattended.add(self)
        try:
            with self._call.waiting(self.leave):
                ask()
        except BaseException:
            self._end()
            raise
        self._end()

    @contextlib.contextmanager
    def lent(self, buffers: Sequence[memoryview]) -> Iterator[None]:
        """The time for which the store has the buffers: its thread does not touch them. Raises Abandoned."""
        with self._lock.held():
            if self._is_given_up:
                raise Abandoned
            self._buffers = buffers
        try:
            yield
        finally:
            with self._lock.held():
                self._buffers = ()

    def _end(self) -> None:
        with self._lock.held():
            self._is_over = True
            if self._has_lent_place:
                self._has_lent_place = False
                self._backing.request_queue.take_back()
            if self._is_given_up:
                raise Abandoned from None

    @property
    def is_overdue(self) -> bool:
        """Whether the store takes so long that it seems to hang."""
        return time.monotonic() >= self._due_s

    def leave(self) -> None:
        """Give the folios up, as their reader has gone, unless others wait for them."""
        with self._lock.held():
            if not self._is_over and not any(map(_has_waiters, self._batches)):
                self._give_up()
                return
        self._backing.unattended.add(self)

    def take_over(self) -> None:
        """Give the folios up: a thread that waits for one of them will read it."""
        self._call.abandon()
        with self._lock.held():
            self._give_up()

    def _give_up(self) -> None:
        """Context: self._lock held."""
        if self._is_over or self._is_given_up:
            return
        self._is_given_up = True
        if self._call.let_go() and self._lets_go:
            for buffer in self._buffers:
                with contextlib.suppress(BufferError):
                    buffer.release()
        for batch in self._batches:
            batch.release()
        for hold in self._call.holds:
            hold.give_up()
        self._has_lent_place = self._backing.request_queue.lend(self._leaves_behind)


def _has_waiters(batch: FolioBatch) -> bool:
    for position in range(len(batch)):
        with batch.folio(position) as folio:
            if folio.waiters:
                return True
    return False


def sharing(mapping: "AddressSpace[Any, Any]") -> LockGuard:
    """`with sharing(mapping):` holds invalidate_lock shared, as `mapping.shared()`, until a request that is made meanwhile
    is given up: then nothing is done any more for which it would be needed."""
    hold = mapping.shared()
    call = current_call()
    if call is not None:
        call.holds = [hold]
    return hold


def look_of(mapping: "AddressSpace[Any, Any]") -> Callable[[], None] | None:
    """Return what is to be called while a thread waits for a folio of a mapping (`Folio.lock`): it gives requests up that
    seem to hang, if no thread waits for them."""
    return None if mapping.backing is None else mapping.backing.end_overdue
