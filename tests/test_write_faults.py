"""Stores that fail at the n-th call of a fixed workload, for every n: each error is told once, and nothing is lost."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import textwrap
import threading

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew

import pagecache
from pagecache import CacheFullError, fill, truncate, writeback

UNIT = 512  # writes begin and end at multiples, so that each unit of the store has the bytes of one moment
SIZE = 24 * PAGE
ERRORS = (errno.EIO, errno.ENOSPC)
NR_RACES = 20_000 if STRESS else 200
WAIT_S = 3600.0  # what would be waited for without a store that is known to fail: the watchdog ends the test before


class FailingStore(pagecache.MemoryStore):
    """Fails the call number `fails_at` of one kind, and with `for_ever` all later ones too, until it is healed.

    kind: a method. number: the errno. partly: a write that fails has put half of its bytes in before.
    """

    parallel_requests = 1
    max_request = 4 * PAGE

    def __init__(self, data, kind="writev", fails_at=-1, number=errno.EIO, for_ever=False, partly=False):
        super().__init__(data)
        self.kind, self.fails_at, self.number = kind, fails_at, number
        self.for_ever, self.partly = for_ever, partly
        self.nr_calls = dict.fromkeys(("readv", "writev", "truncate", "punch_hole", "sync"), 0)
        self.nr_failed = 0
        self.is_healed = False
        self._counts = threading.Lock()

    def _fails(self, kind):
        with self._counts:
            nr, self.nr_calls[kind] = self.nr_calls[kind], self.nr_calls[kind] + 1
            fails = kind == self.kind and not self.is_healed and self.fails_at >= 0
            fails = fails and (nr == self.fails_at or (self.for_ever and nr > self.fails_at))
            self.nr_failed += fails
        return fails

    def _raise(self):
        raise OSError(self.number, os.strerror(self.number))

    def readv(self, offset, buffers):
        if self._fails("readv"):
            self._raise()
        return super().readv(offset, buffers)

    def writev(self, offset, buffers):
        if self._fails("writev"):
            if self.partly:
                data = b"".join(buffers)
                super().writev(offset, [data[: len(data) // 2 // UNIT * UNIT]])
            self._raise()
        return super().writev(offset, buffers)

    def truncate(self, size):
        if self._fails("truncate"):
            self._raise()
        super().truncate(size)

    def punch_hole(self, offset, length):
        if self._fails("punch_hole"):
            self._raise()
        super().punch_hole(offset, length)

    def sync(self, datasync=False):
        if self._fails("sync"):
            self._raise()
        super().sync(datasync)


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
        self.told = {self.first: 0, self.second: 0}
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
            assert shown[:size] == bytes(self.model[:size]).ljust(min(size, len(shown)), b"\0"), "bytes before the cut"
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
            self.told[file] += 1
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
        """Heal the store: each file is told once of what it has not seen, then all is written."""
        self.store.is_healed = True
        for file in (self.first, self.second):
            if not self.fsync(file):
                assert self.fsync(file), "an error was told twice"
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
    monkeypatch.setattr(writeback, "MAX_PAUSE_S", 0.001)


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


@pytest.mark.parametrize("partly", [False, True], ids=["whole", "partly"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_nth_write_fails_once(frames, number, partly):
    for n in range(nr_calls(frames, "writev") + 2):
        work = run_workload(frames, fails_at=n, number=number, partly=partly)
        told = list(work.told.values())
        assert told == [work.store.nr_failed] * 2, f"write {n}: told {told} times"


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_nth_and_all_later_writes_fail_until_the_store_heals(frames, number):
    for n in range(nr_calls(frames, "writev") + 2):
        work = run_workload(frames, fails_at=n, number=number, for_ever=True)
        if work.store.nr_failed:
            assert work.told[work.second] == 1, f"write {n}"
            assert work.told[work.first] >= 1, f"write {n}"


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", ["sync", "truncate", "punch_hole", "readv"])
def test_nth_call_of_another_kind_fails(frames, kind, for_ever):
    for n in range(nr_calls(frames, kind) + 1):
        for number in ERRORS:
            work = run_workload(frames, kind, fails_at=n, number=number, for_ever=for_ever)
            if kind == "sync" and work.store.nr_failed:
                assert work.told[work.second] == 1, f"sync {n}"
            if kind in ("truncate", "punch_hole", "readv"):
                assert list(work.told.values()) == [0, 0], f"{kind} {n}: nothing was lost on the way to the store"


def test_other_objects_are_read_and_written_while_one_store_fails(frames):
    broken = FailingStore(b"\x01" * SIZE, fails_at=0, number=errno.ENOSPC, for_ever=True)
    good = FailingStore(b"\x02" * SIZE)
    with pagecache.PageCache(frames * PAGE) as cache, cache.open(broken, "r+b") as one, cache.open(good, "r+b") as other:
        one.pwrite(b"dirty", 0)
        with pytest.raises(OSError, match="No space left") as failed:
            one.fsync()
        assert failed.value.errno == errno.ENOSPC
        for offset in range(0, SIZE, PAGE):
            try:
                other.pwrite(b"good", offset)
                assert other.pread(8, offset) == b"good" + b"\x02" * 4
                other.fsync()
            except OSError as error:
                assert frames <= 3  # less than a page may be dirty beside the one that cannot be written
                assert "No space left" in str(error)
        cache.check()
        broken.is_healed = True
        with contextlib.suppress(OSError):  # of the flusher, which tried meanwhile
            one.fsync()
        one.fsync()
        for offset in range(0, SIZE, PAGE):
            other.pwrite(b"good", offset)
        other.fsync()
        assert broken.tobytes()[:6] == b"dirty\x01"
        assert good.tobytes() == (b"good" + b"\x02" * (PAGE - 4)) * (SIZE // PAGE)


def test_writer_at_the_limit_goes_on_as_soon_as_another_store_is_healed(make_cache):
    """The flusher would leave the store alone for a while; its success for somebody else tells that it need not."""
    broken = FailingStore(b"\x01" * SIZE, fails_at=0, for_ever=True)
    cache = make_cache(64 * PAGE, dirty_limit=PAGE, dirty_background=0)
    with cache.open(broken, "r+b") as one, cache.open(pagecache.MemoryStore(b"\x02" * SIZE), "r+b") as other:
        one.pwrite(b"dirty", 0)
        with pytest.raises(OSError, match="no page may become dirty"):
            other.pwrite(b"more", 0)
        broken.is_healed = True
        with pytest.raises(OSError):
            one.fsync()
        one.pwrite(b"again", 0)
        other.pwrite(b"more", 0)
        other.fsync()
        one.fsync()
        assert broken.tobytes()[:5] == b"again"


def test_hole_before_a_page_that_could_not_be_written_reads_as_zeros(make_cache):
    store = FailingStore(b"", fails_at=0)
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"far", 10 * PAGE)
        with pytest.raises(OSError):
            file.fsync()
        assert file.pread(11 * PAGE, 0) == bytes(10 * PAGE) + b"far"
        file.fsync()
    assert store.tobytes() == bytes(10 * PAGE) + b"far"


@pytest.mark.parametrize("is_dirty", [False, True])
def test_cut_that_fails_in_the_store_leaves_the_bytes_behind_it(make_cache, is_dirty):
    store = FailingStore(b"\x07" * (3 * PAGE), "truncate", fails_at=0)
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pread(3 * PAGE, 0)
        if is_dirty:
            file.pwrite(b"x", PAGE)
        expected = file.pread(3 * PAGE, 0)
        with pytest.raises(OSError):
            file.truncate(PAGE + 100)
        assert file.pread(3 * PAGE, 0) == expected
        file.fsync()
        assert store.tobytes() == expected


@pytest.mark.stress
def test_page_dirtied_while_its_write_back_fails_is_counted_once(make_cache):
    """One thread may find the folio clean just before another, which could not write it, makes it dirty."""
    store = FailingStore(b"\x01" * SIZE, fails_at=0, for_ever=True)
    cache = make_cache(4096 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pread(SIZE, 0)

        def sync_often():
            for _ in range(NR_RACES):
                with contextlib.suppress(OSError):
                    file.fsync()
            is_over.set()

        def write_often():
            data = b"x" * SIZE  # more than is written with the GIL held
            while not is_over.is_set():
                file.pwrite(data, 0)

        is_over = threading.Event()
        Crew(sync_often, write_often, write_often).join_well()
        cache.check()
        assert cache.stats().nr_dirty == cache.segment.nr_dirty_charged == SIZE // PAGE
        store.is_healed = True
        with contextlib.suppress(OSError):
            file.fsync()
        assert cache.stats().nr_dirty == cache.segment.nr_dirty_charged == 0


def test_reader_waits_for_the_only_page_while_it_is_written(make_cache, monkeypatch):
    """A Python store that writes has views of the pages; they are not those that nobody will release."""

    class Slow(FailingStore):
        def writev(self, offset, buffers):
            entered.set()
            assert go_on.wait(PATIENCE_S)
            return super().writev(offset, buffers)

    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", 0.0)
    entered, go_on = threading.Event(), threading.Event()
    cache = make_cache(PAGE)
    waiting = fill.Segment.wait_for_memory
    nr_waits = []

    class Watched:
        """The segment, but that it notes who waits for memory."""

        def __getattr__(self, name):
            return getattr(cache.segment, name)

        def wait_for_memory(self, timeout_s):
            nr_waits.append(timeout_s)
            if len(nr_waits) == 3:
                go_on.set()
            waiting(cache.segment, timeout_s)

    with cache.open(Slow(b"\x01" * PAGE), "r+b") as slow:
        slow.pwrite(b"x", 0)
        crew = Crew(slow.fsync)
        assert entered.wait(PATIENCE_S)
        try:
            fill.alloc_folio(Watched()).put()
        finally:
            go_on.set()
        crew.join_well()
        assert len(nr_waits) >= 3


def test_what_a_failed_sync_left_in_doubt_stays_so_until_it_is_written_again(make_cache):
    class Recording(FailingStore):
        def writev(self, offset, buffers):
            done = super().writev(offset, buffers)
            written.update(range(offset // PAGE, (offset + done) // PAGE))
            return done

    written = set()
    store = Recording(bytes(16 * PAGE), "sync", fails_at=0)
    cache = make_cache(64 * PAGE, dirty_limit=4 * PAGE, dirty_background=2 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"x" * (16 * PAGE), 0)
        with pytest.raises(OSError):
            file.fsync()
        store.kind, store.for_ever = "writev", True
        with pytest.raises(OSError):
            file.fsync()  # not all may be dirty at once, and what is cannot be written
        store.is_healed = True
        written.clear()
        with contextlib.suppress(OSError):  # of the flusher
            file.fsync()
        file.fsync()
        assert written == set(range(16))


def test_interrupted_cut_or_hole_leaves_the_bytes(make_cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    store = pagecache.MemoryStore(b"\x07" * (4 * PAGE))
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"x", PAGE)
        file.pread(4 * PAGE, 0)
        for change in (lambda: file.truncate(PAGE + 100), lambda: file.punch_hole(PAGE + 100, PAGE)):
            with monkeypatch.context() as patch:
                patch.setattr(truncate, "_truncate_blocking", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    change()
            file.truncate(4 * PAGE)
            expected = b"\x07" * PAGE + b"x" + b"\x07" * (3 * PAGE - 1)
            assert file.pread(4 * PAGE, 0) == expected
            file.fsync()
            assert store.tobytes() == expected


def test_error_that_is_kept_keeps_no_page(make_cache):
    cache = make_cache(64 * PAGE)
    store = FailingStore(b"\x07" * PAGE, fails_at=0, partly=True)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"x", 0)
        with pytest.raises(OSError) as kept:
            file.fsync()
        assert kept.value.__cause__ is not None
        assert cache.stats().nr_pinned == 0
        file.fsync()


def test_write_behind_the_end_is_not_lost_to_an_invalidation(make_cache):
    """The size that the store has is taken while nobody can write behind it."""

    class Watched(FailingStore):
        def size(self):
            if is_armed.is_set() and not crews:
                crews.append(Crew(write))
                has_written.wait(0.05)  # it cannot, while the size is taken
            return super().size()

    def write():
        file.pwrite(b"kept", 5 * PAGE)
        has_written.set()

    is_armed, has_written, crews = threading.Event(), threading.Event(), []
    store = Watched(b"\x01" * PAGE)
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        is_armed.set()
        file.invalidate()
        is_armed.clear()
        crews[0].join_well()
        assert file.pread(4, 5 * PAGE) == b"kept"
        file.fsync()
    assert store.tobytes()[5 * PAGE :] == b"kept"


def test_interrupted_write_back_that_somebody_remembers_does_not_block_others(make_cache):
    class Interrupted(FailingStore):
        def _raise(self):
            raise KeyboardInterrupt

    store = Interrupted(b"\x07" * PAGE, fails_at=0)
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"x", 0)
        with pytest.raises(KeyboardInterrupt) as kept:
            file.fsync()
        file.fsync()
        assert store.tobytes()[:1] == b"x"
        assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("validator", ["1", None])
def test_file_opened_again_has_what_could_not_be_written(make_cache, validator):
    store = FailingStore(b"\x07" * PAGE, fails_at=0, for_ever=True)
    store.validator = lambda: validator
    cache = make_cache(64 * PAGE)
    file = cache.open(store, "r+b")
    file.pwrite(b"kept", 0)
    with pytest.raises(OSError):
        file.close()
    with cache.open(store, "r+b") as again:
        assert again.pread(5, 0) == b"kept\x07"
        store.is_healed = True
        again.fsync()
    assert store.tobytes()[:5] == b"kept\x07"


def test_request_that_ends_early_reports_what_ended_it(tmp_path):
    """A file system that takes some bytes and then refuses says why only when asked for more."""
    script = """
        import errno, resource, sys, pagecache
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        cache = pagecache.PageCache(64 * 4096)
        file = cache.open(sys.argv[1], "w+b")
        file.pwrite(b"x" * 20_000, 0)
        try:
            file.fsync()
        except OSError as error:
            assert error.errno == errno.EFBIG, error
        else:
            raise AssertionError("nothing was reported")
        assert file.pread(20_001, 0) == b"x" * 20_000
        file.truncate(9000)
        file.fsync()
        file.close()
        cache.close()
    """
    path = tmp_path / "data"
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=True, timeout=60)
    assert path.read_bytes() == b"x" * 9000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000
