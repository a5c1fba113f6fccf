"""One read through a second level: what waits to be written, then the server, then the origin, then what others fetch."""

import bisect
import contextlib
import errno
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from pagecache.adapters.valkey.extents import Extent, ObjectVersion
from pagecache.adapters.valkey.level import Flight, SecondLevel
from pagecache.requests.fill import release


class Scatter:
    """Buffers taken as one range of bytes."""

    def __init__(self, buffers: Sequence[memoryview]):
        self._buffers = buffers
        self._ends = list(itertools.accumulate(map(len, buffers)))

    def views(self, start: int, nbytes: int) -> list[memoryview]:
        """Return views of bytes [start, start + nbytes); the caller releases them."""
        out: list[memoryview] = []
        number = bisect.bisect_right(self._ends, start)
        while nbytes > 0 and number < len(self._buffers):
            at = start - (self._ends[number] - len(self._buffers[number]))
            view = self._buffers[number][at : at + nbytes]
            out.append(view)
            start, nbytes, number = start + len(view), nbytes - len(view), number + 1
        return out

    def put(self, start: int, data: memoryview) -> None:
        """Copy data to byte `start`."""
        done = 0
        for view in self.views(start, len(data)):
            with view:
                view[:] = data[done : done + len(view)]
                done += len(view)


class Part:
    """What a read wants of one extent: bytes [start, end) of the object, `got` of which it has."""

    def __init__(self, extent: int, first: int, length: int, start: int, end: int):
        self.extent = extent
        self.first, self.length = first, length  # of the extent
        self.start, self.end = start, end
        self.got = 0

    @property
    def nbytes(self) -> int:
        """How much is wanted."""
        return self.end - self.start

    @property
    def is_whole(self) -> bool:
        """Whether that is the whole extent."""
        return self.nbytes == self.length


def runs_of(parts: Iterable[Part], nr_max: int) -> Iterator[list[Part]]:
    """Iterate over the runs of adjacent extents, nr_max in one at most."""
    run: list[Part] = []
    for part in parts:
        if run and (part.extent != run[-1].extent + 1 or len(run) >= nr_max):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


class Tiered(Protocol):
    """What a read asks of its store: a `TieredStore`."""

    second_level: SecondLevel
    origin_max_request: int

    def count(self, **counts: int) -> None:
        """Add to the counts."""
        ...

    def shared_validator(self) -> str | None:
        """Return the validator under which extents may be shared; None: they may not."""
        ...

    def read_origin(self, offset: int, buffers: list[memoryview]) -> int:
        """Ask the origin once. Returns the bytes it brought."""
        ...


class TieredRead:
    """One call of `readv`: bytes [offset, offset + total) of one version, into buffers that hold at least that."""

    def __init__(
        self, store: Tiered, version: ObjectVersion, offset: int, buffers: Sequence[memoryview], total: int
    ):
        self._store = store
        self._level = store.second_level
        self._version = version
        self._offset = offset
        self._scatter = Scatter(buffers)
        self._end = offset + total
        size = version.extent_bytes
        self._parts = []
        for extent in range(offset // size, (self._end - 1) // size + 1):
            first, length = extent * size, version.length(extent)
            self._parts.append(Part(extent, first, length, max(offset, first), min(self._end, first + length)))

    def run(self) -> int:
        """Read. Returns the bytes filled without a gap. Raises as the origin."""
        missing = self._from_server(self._from_queue(self._parts))
        if missing:
            self._from_origin(missing)
        done = 0
        for part in self._parts:
            done += part.got
            if part.got < part.nbytes:
                break
        return done

    def _take(self, part: Part, data: Extent) -> None:
        """Take what is wanted out of a whole extent."""
        with memoryview(data) as whole, whole[part.start - part.first : part.end - part.first] as piece:
            self._scatter.put(part.start - self._offset, piece)
        part.got = part.nbytes

    # -- this process and the server -----------------------------------------------------------------------------------

    def _from_queue(self, parts: Sequence[Part]) -> list[Part]:
        """Take what waits to be written. Returns the parts that are missing still."""
        missing = []
        for part in parts:
            data = self._level.find_waiting(self._version.name(part.extent))
            if data is None:
                missing.append(part)
            else:
                self._take(part, data)
                self._store.count(second_level_joined=1)
        return missing

    def _from_server(self, parts: list[Part]) -> list[Part]:
        """Take what the server has, as far as it is right. Returns the parts that are missing still."""
        nr_wrong = 0

        def take(position: int, value: memoryview) -> None:
            nonlocal nr_wrong
            data = self._version.decode(parts[position].extent, value)
            if data is None:
                nr_wrong += 1
            else:
                self._take(parts[position], data)

        if not parts:
            return parts
        answered = self._level.read([self._version.name(part.extent) for part in parts], take)
        missing = [part for part in parts if part.got < part.nbytes]
        self._store.count(
            second_level_hits=len(parts) - len(missing),
            second_level_bytes=sum(part.got for part in parts),
            second_level_mismatches=nr_wrong,
            second_level_misses=len(missing) - nr_wrong,
            second_level_failures=not answered,
        )
        return missing

    # -- the origin ----------------------------------------------------------------------------------------------------

    def _from_origin(self, parts: list[Part]) -> None:
        """Fetch whole extents and offer them to the server, if it takes them; else what is wanted and no more."""
        nbytes = sum(part.length for part in parts)
        if not self._level.takes_fills(nbytes):
            self._exactly(parts)
            if not self._level.is_closed:
                self._level.note_dropped(len(parts))
            return
        with self._claimed(parts) as (own, others):
            per_run = max(1, self._store.origin_max_request // self._version.extent_bytes)
            for run in runs_of(own, per_run):
                self._fetch(run)
        for part, flight in others:  # nothing is claimed any more: no threads wait in a circle
            data = flight.wait()
            if data is None:
                self._exactly([part])
            else:
                self._take(part, data)
                self._store.count(second_level_joined=1)

    @contextlib.contextmanager
    def _claimed(self, parts: list[Part]) -> Iterator[tuple[list[Part], list[tuple[Part, Flight]]]]:
        """Claim the extents that are not being fetched; in the end those that wait for them go on, whatever came of it."""
        self._flights: dict[int, Flight] = {}
        own: list[Part] = []
        others: list[tuple[Part, Flight]] = []
        with self._level.lock.held():
            for part in parts:
                name = self._version.name(part.extent)
                flight = self._level.flights.get(name)
                if flight is not None:
                    others.append((part, flight))
                    continue
                self._flights[part.extent] = self._level.flights[name] = Flight()
                own.append(part)
        try:
            yield own, others
        finally:
            for part in own:
                self._land(part, None)

    def _land(self, part: Part, data: Extent | None) -> None:
        """End the fetching of an extent, once."""
        flight = self._flights.pop(part.extent, None)
        if flight is not None:
            with self._level.lock.held():
                self._level.flights.pop(self._version.name(part.extent), None)
            flight.land(data)

    def _fetch(self, run: list[Part]) -> None:
        """Read a run of whole extents from the origin, and offer them."""
        whole = {part.extent: bytearray(part.length) for part in run if not part.is_whole}
        targets: list[memoryview] = []
        for part in run:
            if part.is_whole:
                targets += self._scatter.views(part.start - self._offset, part.nbytes)
            else:
                targets.append(memoryview(whole[part.extent]))
        try:
            got = self._read_fully(run[0].first, targets)
        except OSError as error:
            if not whole or error.errno == errno.ESTALE:
                raise
            self._exactly(run)  # perhaps it was in what was not asked for
            return
        finally:
            release(targets)
        is_same = self._store.shared_validator() == self._version.validator
        for part in run:
            self._end_fetch(part, whole.get(part.extent), got - (part.first - run[0].first), is_same)

    def _end_fetch(self, part: Part, data: Extent | None, got: int, is_same: bool) -> None:
        """Take and offer one extent of which the origin brought so many bytes."""
        got = max(0, min(got, part.length))
        if data is not None:
            with memoryview(data) as view, view[part.start - part.first : min(part.end - part.first, got)] as piece:
                self._scatter.put(part.start - self._offset, piece)
                part.got = len(piece)
        else:
            part.got = got
        if got < part.length or not is_same:
            self._land(part, None)
            return
        if data is None and self._level.takes_fills(part.length):
            views = self._scatter.views(part.start - self._offset, part.nbytes)
            data = b"".join(views)
            release(views)
        if data is None:
            self._level.note_dropped(1)
        else:
            self._level.fill(self._version, part.extent, data)
        self._land(part, data)

    def _read_fully(self, offset: int, targets: list[memoryview]) -> int:
        """Read from the origin until the targets are full or it brings no more. Returns the bytes it brought."""
        scatter, done, wanted = Scatter(targets), 0, sum(map(len, targets))
        while done < wanted:
            views = scatter.views(done, min(wanted - done, self._store.origin_max_request))
            try:
                got = self._store.read_origin(offset + done, views)
            finally:
                release(views)
            if got <= 0:
                break
            done += got
            if done > wanted:
                raise OSError(errno.EIO, f"the origin returned {got} bytes, more than it was asked for")
        return done

    def _exactly(self, parts: list[Part]) -> None:
        """Read what is wanted of some extents, and no more, from the origin."""
        for run in runs_of(parts, len(parts)):
            views = self._scatter.views(run[0].start - self._offset, run[-1].end - run[0].start)
            try:
                got = self._read_fully(run[0].start, views)
            finally:
                release(views)
            for part in run:
                part.got = max(0, min(part.nbytes, got - (part.start - run[0].start)))
