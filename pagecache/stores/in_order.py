"""Objects that can only be read from the beginning: one response, read once, serves all that wait.

A server without ranges answers every request with the whole object.  So one response is kept open, and read on as far as
a thread needs it: the thread whose range comes next drives, and what passes is given to all whose ranges it lies in.  The
response is begun anew only for a range that has passed.

    waiting --(the range comes next, no thread drives)--> driving --(its last byte was given)--> filled
    waiting --(another thread drives past its last byte)--> filled
    driving --(its caller has gone, and the call that it is in hangs)--> left: the next one drives, a response of its own

All steps are made under one lock, which is held to look and to copy, never while waiting for the server.  Ranges and
driver are known by weak references, so that a thread that a signal ends half way leaves nothing for which others wait.

Benefits: an object that is read in order is transferred once, and many ranges that are wanted at once in one pass.  Costs:
requests for one object wait for each other, what is passed over is lost (but for the last piece), and a range that lies
behind costs a transfer from the start.
"""

import errno
import weakref
from collections.abc import Callable
from typing import Protocol

from pagecache._core import EventCount, Mutex
from pagecache.stores.destination import Destination
from pagecache.stores.validators import Version
from pagecache.weak_members import WeakMembers

PIECE = 256 * 1024  # bytes that are given at a time, at most
Take = Callable[[bytes], bool]


class Body(Protocol):
    """What one response brings, from the beginning of the object on.

    is_proved: whether the response says that it is of the version that was asked for.
    """

    is_proved: bool

    def pump(self, take: Take) -> None:
        """Give what comes next to `take`, piece by piece, until it returns False or there is no more. Raises what the
        library raises. Context: waits for the server; `take` may be called in any thread."""
        ...

    def close(self) -> int:
        """Give the response up, whatever is left of it. Returns how many bytes came that `pump` did not give."""
        ...


class BytesBody:
    """A response that has been read as a whole."""

    def __init__(self, data: bytes, is_proved: bool):
        self._data = data
        self._at = 0
        self.nbytes = len(data)
        self.is_proved = is_proved

    def pump(self, take: Take) -> None:
        """Give what is left, in pieces."""
        goes_on = True
        while goes_on and self._at < len(self._data):
            piece = self._data[self._at : self._at + PIECE]
            self._at += len(piece)
            goes_on = take(piece)

    def close(self) -> int:
        """Forget it."""
        self._data = b""
        return 0


class _Range:
    """A range that a thread waits for."""

    def __init__(self, start: int, end: int, destination: Destination):
        self.next = start
        self.end = end
        self.is_proved = True
        self._destination = destination

    @property
    def is_filled(self) -> bool:
        return self.next >= self.end

    @property
    def is_left(self) -> bool:
        """Whether it is no longer wanted."""
        return self._destination.is_detached

    def take(self, at: int, piece: bytes, is_proved: bool) -> int:
        """Take what is wanted next of a piece from byte `at` on. Returns the bytes taken."""
        if not at <= self.next < min(at + len(piece), self.end):
            return 0
        with memoryview(piece) as view, view[self.next - at : self.end - at] as part:
            self._destination.put(part)
            self.next += len(part)
            self.is_proved = self.is_proved and is_proved
            return len(part)


class InOrder:
    """One object, read through one response after the other. Context: any thread."""

    def __init__(self) -> None:
        self._lock = Mutex()  # guards all of these
        self._changed = EventCount()
        self._ranges: WeakMembers[_Range] = WeakMembers()
        self._driver: Callable[[], _Range | None] = lambda: None
        self._body: Body | None = None
        self._version: Version | None = None  # of the body
        self._next = 0  # the byte of the object that the body gives next
        self._last = b""  # the piece before it, which may have been the last one of all
        self._last_left_bytes = 0  # of that, which was not wanted yet
        self._is_proved = False  # of that
        self._surplus_bytes = 0

    def begin_with(self, body: Body, version: Version) -> None:
        """Use a response that is at its beginning, unless one is being read."""
        with self._lock.held():
            unused: Body | None = body
            if self._driver() is None and (self._body is None or self._next == 0):
                self._next = 0
                unused, self._body, self._version = self._body, body, version
                self._settle_last()
            if unused is not None:
                self._surplus_bytes += unused.close()

    def read(self, version: Version, start: int, destination: Destination, open_body: Callable[[], Body]) -> bool:
        """Fill a destination from byte `start` on, up to the end of the object. Returns whether all of it came from
        responses that say they are of the version asked for.

        open_body: begins a response. Raises what it and the response raise; OSError (EIO) if the object is not as large as
        its version says. Context: waits for the server; after an exception the destination may hold anything.
        """
        mine = _Range(start, min(start + destination.wanted, version.size), destination)
        try:
            with self._lock.held():
                if self._is_of(version):
                    self._last_left_bytes -= mine.take(self._next - len(self._last), self._last, self._is_proved)
                self._ranges.add(mine)
            while not mine.is_filled:
                seen = self._changed.value
                if self._begins_to_drive(mine):
                    self._drive(mine, version, open_body)
                elif not mine.is_filled:
                    self._changed.wait(seen)
        finally:
            self._ranges.discard(mine)
            self._changed.advance()
        return mine.is_proved

    def _is_of(self, version: Version) -> bool:
        known = self._version
        return known is not None and (known.validator, known.size) == (version.validator, version.size)

    def _begins_to_drive(self, mine: _Range) -> bool:
        """Whether the response is to be read by this thread now: no other does, and its range comes first of those that are
        waited for, the ones that have passed last."""
        with self._lock.held():
            driver = self._driver()
            if driver is not None and driver.is_left:
                self._driver = lambda: None
                self._forget_body()
            waiting = [one for one in self._ranges if not one.is_filled and not one.is_left]
            comes_next = min(waiting, key=lambda one: (one.next < self._next, one.next), default=None)
            if self._driver() is not None or comes_next is not mine:
                return False
            self._driver = weakref.ref(mine)
            return True

    def _drive(self, mine: _Range, version: Version, open_body: Callable[[], Body]) -> None:
        """Read on until a range is filled. A response that was kept open and fails is begun anew, once."""
        is_kept = self._body is not None and self._is_of(version) and self._next <= mine.next
        try:
            if not is_kept:
                self._give_up()
            try:
                self._pump(mine, version, open_body)
            except Exception:
                if not is_kept or mine.is_filled or self._driver() is not mine:
                    raise
                self._give_up()
                self._pump(mine, version, open_body)
        except BaseException:
            with self._lock.held():
                if self._driver() is mine:
                    self._forget_body()
            raise
        finally:
            with self._lock.held():
                if self._driver() is mine:
                    self._driver = lambda: None
            self._changed.advance()

    def _pump(self, mine: _Range, version: Version, open_body: Callable[[], Body]) -> None:
        if self._body is None:
            opened = open_body()
            with self._lock.held():
                if self._driver() is not mine:
                    opened.close()
                    raise OSError(errno.EIO, "the answer is not wanted any more")
                self._body, self._version = opened, version
        body = self._body

        def take(piece: bytes) -> bool:
            with self._lock.held():
                if self._driver() is not mine or self._body is not body:
                    return False  # the driver has left in the middle of this
                self._pass_on(piece, version.size, body.is_proved)
                return not mine.is_filled or self._next >= version.size

        body.pump(take)  # at the end of the object it shows that there is no more
        if not mine.is_filled:
            reason = f"the answer ended after {self._next} bytes, though the object has {version.size}"
            raise OSError(errno.EIO, reason)
        with self._lock.held():
            if self._next >= version.size and self._body is body:
                self._body = None
                self._surplus_bytes += body.close()

    def _pass_on(self, piece: bytes, size: int, is_proved: bool) -> None:
        """Give a piece to all that want a part of it. Context: lock held."""
        if self._next + len(piece) > size:
            raise OSError(errno.EIO, f"the answer is longer than the object, which is said to have {size} bytes")
        self._settle_last()
        taken_bytes = [one.take(self._next, piece, is_proved) for one in self._ranges]
        self._last, self._last_left_bytes, self._is_proved = piece, len(piece) - sum(taken_bytes), is_proved
        self._next += len(piece)
        if len(taken_bytes) > 1:
            self._changed.advance()

    def _settle_last(self) -> None:
        """Forget the piece that came last. Context: lock held."""
        self._surplus_bytes += max(0, self._last_left_bytes)
        self._last, self._last_left_bytes = b"", 0

    def _give_up(self) -> None:
        with self._lock.held():
            self._forget_body()

    def _forget_body(self) -> None:
        """Close the response that is open. Context: lock held."""
        body, self._body, self._next = self._body, None, 0
        self._settle_last()
        if body is not None:
            self._surplus_bytes += body.close()

    def wake(self) -> None:
        """Have the threads that wait look again: one has gone."""
        self._changed.advance()

    def add_surplus(self, nbytes: int) -> None:
        """Count bytes that came and were thrown away elsewhere."""
        with self._lock.held():
            self._surplus_bytes += nbytes

    def take_surplus_bytes(self) -> int:
        """Return how many bytes came that were not wanted, since this was last called; those of the piece that came last
        may be yet."""
        with self._lock.held():
            surplus, self._surplus_bytes = self._surplus_bytes, 0
            return surplus

    def close(self) -> None:
        """Give up the response that is open."""
        self._give_up()
