"""Stores that fail at the n-th call of a fixed workload, for every n: each error is reported once, and nothing is lost."""

import contextlib
import errno

import pytest
from support import PAGE
from support.failing_store import UNIT, FailingStore

import pagecache
from pagecache import CacheFullError
from pagecache.requests import fill
from pagecache.writeback import throttle

SIZE = 24 * PAGE
ERRORS = (errno.EIO, errno.ENOSPC)
WAIT_S = 3600.0  # what would be waited for without a store that is known to fail: the watchdog ends the test before


class Workload:
    """A fixed list of operations on one object with two open files, and what the object must have after each.

    Of an operation that fails a beginning may have been done: what the cache then shows is taken for the contents, if
    it can be that. `durable` has the bytes of the last fsync that returned, and all that were there since.
    """

    def __init__(self, cache, store):
        self.cache, self.store = cache, store
        self.first, self.second = cache.open(store, "r+b"), cache.open(store, "r+b")
        self.model = bytearray(store.tobytes())
        self.durable = [bytes(self.model)]
        self.reported = {self.first: 0, self.second: 0}
        self.nr_steps = 0

    def steps(self):
        """Return the operations: (name, arguments)."""
        return [
            ("write", 3 * PAGE, 2 * PAGE), ("write", 7 * PAGE + UNIT, UNIT), ("fsync",), ("write", UNIT, PAGE),
            ("write", SIZE - UNIT, 4 * PAGE), ("map_store", 10 * PAGE, 3 * UNIT), ("fsync",),
            ("truncate", 20 * PAGE + UNIT), ("write", 19 * PAGE, PAGE), ("punch", 4 * PAGE - UNIT, 2 * PAGE),
            ("truncate", 22 * PAGE), ("fsync",), ("write", 28 * PAGE, PAGE), ("write", 0, 12 * PAGE),
            ("map_store", 20 * PAGE, PAGE), ("punch", 0, PAGE), ("truncate", 15 * PAGE + UNIT),
            ("write", 15 * PAGE, PAGE), ("fsync",),
        ]  # fmt: skip

    def run(self):
        """Do everything, going on after failures; after each look whether all is well."""
        for name, *arguments in self.steps():
            self.nr_steps += 1
            getattr(self, name)(*arguments)
            self.check()

    # -- operations ----------------------------------------------------------------------------------------------------

    def _new(self, nbytes):
        return bytes([self.nr_steps]) * nbytes

    def write(self, offset, nbytes):
        self._change(offset, nbytes, lambda: self.first.pwrite(self._new(nbytes), offset))

    def map_store(self, offset, nbytes):
        def through_a_map():
            with self.first.mmap(access=pagecache.ACCESS_WRITE) as mapped:
                mapped[offset : offset + nbytes] = self._new(nbytes)

        if offset + nbytes <= len(self.model):
            self._change(offset, nbytes, through_a_map)

    def _change(self, offset, nbytes, change):
        after = bytearray(self.model).ljust(offset, b"\0")
        after[offset : offset + nbytes] = self._new(nbytes)
        try:
            change()
        except OSError as error:
            self.expect(error)
            self._adopt(bytes(after))
        else:
            self.model = after
        self.durable.append(bytes(self.model))

    def truncate(self, size):
        after = bytes(self.model[:size].ljust(size, b"\0"))
        try:
            self.first.truncate(size)
        except OSError as error:
            self.expect(error)
            on_disk = self.store.tobytes()
            shown = self.shown()
            assert len(shown) in (len(self.model), max(size, min(len(on_disk), len(self.model)))), "no such size"
            assert shown[:size] == bytes(self.model[:size]).ljust(min(size, len(shown)), b"\0"), "bytes before the new end"
            for at in range(size, len(shown), UNIT):  # what was not written yet may be gone, never more
                assert shown[at : at + UNIT] in (self.model[at : at + UNIT], on_disk[at : at + UNIT])
            self.model = bytearray(shown)
        else:
            self.model = bytearray(after)
        self.durable.append(bytes(self.model))

    def punch(self, offset, nbytes):
        nbytes = max(0, min(nbytes, len(self.model) - offset))
        try:
            self.first.punch_hole(offset, nbytes)
        except OSError as error:
            self.expect(error)
            assert self.shown() == bytes(self.model), "a punch that failed changed bytes"
        else:
            self.model[offset : offset + nbytes] = bytes(nbytes)
        self.durable.append(bytes(self.model))

    def fsync(self, file=None):
        file = file or self.first
        try:
            file.fsync()
        except OSError as error:
            self.expect(error)
            self.reported[file] += 1
            return False
        assert self.store.tobytes() == bytes(self.model), "fsync returned and the store has other bytes"
        self.durable = [bytes(self.model)]
        return True

    # -- what must hold ------------------------------------------------------------------------------------------------

    def expect(self, error):
        """Check that an error is the store's, or says that no memory can be had while it fails."""
        assert self.store.nr_failed, f"nothing failed: {error}"
        if isinstance(error, CacheFullError):
            assert self.cache.segment.nr_frames <= 3
            assert self.store.kind == "writev"
            return
        assert error.errno == self.store.number, error

    def shown(self):
        """Return what the cache shows of the object; the store, if it reads badly, is healed for that long."""
        kind, self.store.kind = self.store.kind, "none" if self.store.kind == "readv" else self.store.kind
        try:
            return self.first.pread(2 * SIZE, 0)
        finally:
            self.store.kind = kind

    def _adopt(self, after):
        """Take what the cache shows after a change that failed: each unit as before, or as after it."""
        try:
            shown = self.shown()
        except CacheFullError:
            assert self.cache.segment.nr_frames <= 3
            self.store.is_healed = True  # nothing more can be asked of a cache that is full of what cannot be written
            shown = self.shown()
        before = bytes(self.model).ljust(len(shown), b"\0")
        for at in range(0, len(shown), UNIT):
            unit = shown[at : at + UNIT]
            assert unit in (before[at : at + UNIT], after[at : at + UNIT]), f"bytes from nowhere at {at}"
        self.model = bytearray(shown)

    def check(self):
        """Check that nothing synced is lost, no folio is stuck, and the cache can be used."""
        stored = self.store.tobytes()
        if stored not in self.durable:
            for at in range(0, len(self.durable[0]), UNIT):
                unit = stored[at : at + UNIT]
                moments = [moment[at : at + UNIT] for moment in self.durable]
                assert unit in moments or any(len(moment) <= at for moment in moments), f"synced bytes lost at {at}"
        self.cache.check()
        counters = self.cache.segment.counters()
        assert counters["nr_writeback"] == 0
        assert counters["nr_pinned"] == 0

    def heal(self):
        """Heal the store: each file gets once what it has not seen, then all is written."""
        self.store.is_healed = True
        for file in (self.first, self.second):
            if not self.fsync(file):
                assert self.fsync(file), "an error was reported twice"
        assert self.first.pread(2 * SIZE, 0) == bytes(self.model)

    def close(self):
        """Close everything: no error is left."""
        self.first.close()
        self.second.close()
        self.cache.close()
        assert self.store.tobytes() == bytes(self.model)


@pytest.fixture(autouse=True)
def no_timeouts(monkeypatch):
    """Let nothing be saved by a timeout: what has to wait for one hangs. Writers are not slowed down, though."""
    monkeypatch.setattr(fill, "ALLOCATION_TIMEOUT_S", WAIT_S)
    monkeypatch.setattr(throttle, "MAX_PAUSE_S", 0.001)


def run_workload(frames, kind="writev", **options):
    """Run the workload over a store that fails; returns it, healed."""
    store = FailingStore(bytes([0xF0]) * SIZE, kind, **options)
    cache = pagecache.PageCache(frames * PAGE, dirty_expire_s=3600)
    work = Workload(cache, store)
    try:
        work.run()
        work.heal()
        work.close()
    except BaseException:
        store.is_healed = True  # or closing would wait for a store that fails
        with contextlib.suppress(Exception):
            cache.close()
        raise
    return work


def nr_calls(frames, kind):
    """Count the calls of a kind in a run without failures."""
    return run_workload(frames, kind).store.nr_calls[kind]


@pytest.mark.parametrize(("partly", "width"), [(False, 1), (True, 1), (True, 4)], ids=["whole", "partly", "together"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_nth_write_fails_once(frames, number, partly, width):
    for n in range(nr_calls(frames, "writev") + 2):
        work = run_workload(frames, fails_at=n, number=number, partly=partly, width=width)
        reported = list(work.reported.values())
        assert reported == [work.store.nr_failed] * 2, f"write {n}: reported {reported} times"


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_nth_and_all_later_writes_fail_until_the_store_heals(frames, number):
    for n in range(nr_calls(frames, "writev") + 2):
        work = run_workload(frames, fails_at=n, number=number, for_ever=True)
        if work.store.nr_failed:
            assert work.reported[work.second] == 1, f"write {n}"
            assert work.reported[work.first] >= 1, f"write {n}"


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", ["sync", "truncate", "punch_hole", "readv"])
def test_nth_call_of_another_kind_fails(frames, kind, for_ever):
    for n in range(nr_calls(frames, kind) + 1):
        for number in ERRORS[: 1 if kind == "readv" else 2]:
            work = run_workload(frames, kind, fails_at=n, number=number, for_ever=for_ever)
            if kind == "sync" and work.store.nr_failed:
                assert work.reported[work.second] == 1, f"sync {n}"
            if kind in ("truncate", "punch_hole", "readv"):
                assert list(work.reported.values()) == [0, 0], f"{kind} {n}: nothing was lost on the way to the store"


def test_the_same_error_again_is_reported_again_to_each_file(make_cache):
    """The file that gets it first must not make the other one take the error for the one that it has seen."""
    store = FailingStore(bytes(PAGE))
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as one, cache.open(store, "r+b") as other:
        for first, second in ((one, other), (other, one), (one, other), (one, other), (other, one)):
            store.fails_at = store.nr_calls["writev"]
            first.pwrite(b"x", 0)
            with pytest.raises(OSError, match="Input/output error"):
                first.fsync()
            with pytest.raises(OSError, match="in the background: Input/output error"):
                second.fsync()
            first.fsync()
            second.fsync()
