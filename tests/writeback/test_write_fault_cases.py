"""Stores that fail, case by case: what each failure must not take with it."""

import contextlib
import errno
import resource
import subprocess
import sys
import textwrap
import threading

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew, WatchedMemoryWait, wait_until
from support.failing_store import FailingStore
from support.remote_stores import HangingStore

import pagecache
from pagecache import truncate
from pagecache.requests import fill
from pagecache.writeback import throttle

SIZE = 24 * PAGE
NR_RACES = 20_000 if STRESS else 200
WAIT_S = 3600.0  # what would be waited for without a store that is known to fail: the watchdog ends the test before


@pytest.fixture(autouse=True)
def no_timeouts(monkeypatch):
    """Let nothing be saved by a timeout: what has to wait for one hangs. Writers are not slowed down, though."""
    monkeypatch.setattr(fill, "ALLOCATION_TIMEOUT_S", WAIT_S)
    monkeypatch.setattr(throttle, "MAX_PAUSE_S", 0.001)


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
    """The flusher would leave the store alone for a while; its success for another writer shows that it need not."""
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
def test_truncation_that_fails_in_the_store_leaves_the_bytes_behind_it(make_cache, is_dirty):
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
    """A Python store that writes has views of the pages; they are not those that will never be released."""

    class Slow(FailingStore):
        def writev(self, offset, buffers):
            entered.set()
            assert go_on.wait(PATIENCE_S)
            return super().writev(offset, buffers)

    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", 0.0)
    entered, go_on = threading.Event(), threading.Event()
    cache = make_cache(PAGE)
    nr_waits = []

    def on_wait(timeout_s):
        nr_waits.append(timeout_s)
        if len(nr_waits) == 3:
            go_on.set()

    monkeypatch.setattr(fill, "MemoryWait", lambda segment: WatchedMemoryWait(segment, on_wait))
    with cache.open(Slow(b"\x01" * PAGE), "r+b") as slow:
        slow.pwrite(b"x", 0)
        crew = Crew(slow.fsync)
        assert entered.wait(PATIENCE_S)
        try:
            fill.alloc_folio(cache.segment).put()
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


def test_interrupted_truncation_or_hole_leaves_the_bytes(make_cache, monkeypatch):
    """What the store has done already is done in the cache as well."""
    original = truncate._truncate_blocking

    def interrupted(*arguments):
        if not interrupts:
            return original(*arguments)
        interrupts.pop()
        raise KeyboardInterrupt

    store = pagecache.MemoryStore(b"\x07" * (4 * PAGE))
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"x", PAGE)
        file.pread(4 * PAGE, 0)
        expected = b"\x07" * PAGE + b"x" + b"\x07" * (3 * PAGE - 1)
        for change in (lambda: file.punch_hole(PAGE + 100, PAGE), lambda: file.truncate(PAGE + 100)):
            interrupts = [1]
            with monkeypatch.context() as patch:
                patch.setattr(truncate, "_truncate_blocking", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    change()
            assert interrupts == []
            if file.seek(0, 2) < 4 * PAGE:
                expected = expected[: PAGE + 100] + bytes(3 * PAGE - 100)
            file.truncate(4 * PAGE)
            assert file.pread(4 * PAGE, 0) == expected
            file.fsync()
            assert store.tobytes() == expected


def test_allocation_does_not_give_up_while_a_read_that_will_end_has_the_other_frame(make_cache, monkeypatch):
    """One frame is dirty, cannot be written, and has a view, so that it counts twice; the other is being filled."""
    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", WAIT_S)
    broken = FailingStore(b"\x01" * SIZE, fails_at=0, for_ever=True)
    hanging = HangingStore(b"\x02" * PAGE, range(1))
    with pagecache.PageCache(2 * PAGE) as cache, cache.open(broken, "r+b") as one:
        one.pwrite(b"dirty", 0)
        view = one.view(5, 0)
        with cache.open(hanging) as two, cache.open(pagecache.MemoryStore(b"\x03" * PAGE)) as three:
            filler = Crew(lambda: two.pread(1, 0))
            assert hanging.entered.wait(PATIENCE_S)
            seen = cache.stats().writeback_errors
            reader = Crew(lambda: three.pread(1, 0))
            wait_until(lambda: cache.stats().writeback_errors >= seen + 3, "the dirty page to be tried again")
            assert reader.threads[0].is_alive()
            hanging.go_on.set()
            assert view == b"dirty"
            assert (filler.join_well(), reader.join_well()) == ([b"\x02"], [b"\x03"])
        view.release()
        broken.is_healed = True
        with contextlib.suppress(OSError):  # of the flusher, which tried meanwhile
            one.fsync()


def test_allocation_does_not_give_up_because_all_is_free_for_a_moment(make_cache, monkeypatch):
    """Threads that take turns at the only frame may find it gone again and again; none holds it for long."""
    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", 0.0)
    cache = make_cache(PAGE)

    held = cache.segment.alloc_folio()

    class Unlucky(WatchedMemoryWait):
        """Another thread is faster five times."""

        nr_lost = 0

        def look(self, attempt):
            if self.nr_lost == 0:
                held.put()
            self.nr_lost += 1
            return super().look(attempt) if self.nr_lost > 5 else None

    waits = []
    monkeypatch.setattr(fill, "MemoryWait", lambda segment: Unlucky(segment, waits.append))
    fill.alloc_folio(cache.segment).put()
    assert len(waits) == 5


def test_hole_that_can_be_made_nowhere_loses_nothing_dirty(make_cache):
    """The dirty pages of the range cannot be written first, and the hole would fail too."""

    class Both(FailingStore):
        def punch_hole(self, offset, length):
            raise OSError(errno.EIO, "no holes today")

    store = Both(b"\x07" * (4 * PAGE), fails_at=0, for_ever=True)
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        file.pwrite(b"x" * (2 * PAGE), PAGE // 2)
        expected = file.pread(4 * PAGE, 0)
        with pytest.raises(OSError):
            file.punch_hole(100, 3 * PAGE)
        assert file.pread(4 * PAGE, 0) == expected
        store.is_healed = True
        with contextlib.suppress(OSError):
            file.fsync()
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
    """The size that the store has is taken while no writer can write behind it."""

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


def test_interrupted_write_back_whose_exception_is_kept_does_not_block_others(make_cache):
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


@pytest.mark.parametrize("becomes", ["renamed", "removed", "replaced"])
def test_end_of_a_direct_file_is_written_whatever_became_of_its_name(make_cache, tmp_path, becomes):
    path, other = tmp_path / "data", tmp_path / "other"
    other.write_bytes(b"other")
    cache = make_cache(64 * PAGE)
    try:
        file = cache.open(path, "x+b", direct=True)
    except OSError as error:
        pytest.skip(f"no direct access here: {error}")
    with file, open(path, "rb") as same:
        file.pwrite(b"x" * (PAGE + 100), 0)
        if becomes == "renamed":
            path.rename(tmp_path / "elsewhere")
        elif becomes == "removed":
            path.unlink()
        else:
            other.replace(path)
        file.fsync()
        assert same.read() == b"x" * (PAGE + 100)
    if becomes == "replaced":
        assert path.read_bytes() == b"other"


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
