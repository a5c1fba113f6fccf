"""fork(): a child that inherits a cache gets a clear error from it, never a hang; the parent does not notice."""

import gc
import os
import random
import signal
import sys
import threading
import time
import warnings

import pytest
from support import PAGE, PATIENCE_S, STRESS, BlockingStore, Crew, Store, pages_of

import pagecache

DATA = pages_of(200 * PAGE)
CHILD_IS_WELL, CHILD_FAILED = 0, 77


@pytest.fixture(autouse=True)
def forking_with_threads_is_the_point():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process.*is multi-threaded", DeprecationWarning)
        yield


def in_child(function, after=lambda: None):
    """Run a function in a forked child, and another in the parent meanwhile; returns how the child ended. A child that
    hangs is killed and a failure."""
    pid = os.fork()
    if pid == 0:
        status = CHILD_FAILED
        try:
            function()
            status = CHILD_IS_WELL
        except SystemExit as end:
            status = int(end.code)
        except BaseException as error:
            os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    after()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


FILE_CALLS = {
    "pread": lambda file: file.pread(1, 0), "miss": lambda file: file.pread(5 * PAGE, 150 * PAGE),
    "preadinto": lambda file: file.preadinto(bytearray(1), 0), "view": lambda file: file.view(1, 0),
    "iter_views": lambda file: list(file.iter_views(1, 0)), "read": lambda file: file.read(1),
    "readinto": lambda file: file.readinto(bytearray(1)), "readall": lambda file: file.readall(),
    "readline": lambda file: file.readline(), "seek": lambda file: file.seek(0), "mmap": lambda file: file.mmap(),
    "willneed": lambda file: file.fadvise(pagecache.FADV_WILLNEED),
    "dontneed": lambda file: file.fadvise(pagecache.FADV_DONTNEED), "cachestat": lambda file: file.cachestat(),
    "mincore": lambda file: file.mincore(), "invalidate": lambda file: file.invalidate(),
    "preadv_many": lambda file: file.preadv_many([(1, 0)]), "prefetch": lambda file: file.prefetch(),
    "get_byte_ranges": lambda file: file.get_byte_ranges([0], [1]), "pread_cached": lambda file: file.pread_cached(1, 0),
}  # fmt: skip
CACHE_CALLS = {
    "open": lambda cache: cache.open(Store(b"x")), "drop_caches": lambda cache: cache.drop_caches(),
    "sync": lambda cache: cache.sync(), "check": lambda cache: cache.check(),
}  # fmt: skip


def is_refused(call, *arguments):
    """Whether a call says that the cache is another process's."""
    try:
        call(*arguments)
    except RuntimeError as error:
        return "belongs to the parent process" in str(error)
    return False


def use_in_all_ways(cache, file):
    """Call everything of a cache and a file that this process did not make; only refusals and answers are allowed."""
    served = [name for name, call in FILE_CALLS.items() if not is_refused(call, file)]
    served += [name for name, call in CACHE_CALLS.items() if not is_refused(call, cache)]
    assert served == []
    assert file.tell() >= 0
    assert cache.stats().nr_frames == 64
    assert repr(cache)
    assert repr(file)


def use_and_give_up(cache, file):
    use_in_all_ways(cache, file)
    file.close()
    assert file.closed
    cache.close()
    assert cache.closed
    with pagecache.PageCache("256KiB") as own, own.open(Store(DATA, key="own")) as own_file:
        assert own_file.readall() == DATA
        own.check()


class Readers:
    """Eight threads that read at random, each compared with the data, until they have to stop."""

    def __init__(self, file, seed):
        self.file = file
        self.stopped = threading.Event()
        self.nr_reads = [0] * 8
        self.crew = Crew(*(lambda number=number: self.read(number, seed) for number in range(8)))

    def read(self, number, seed):
        rng = random.Random(seed + number)
        while not self.stopped.is_set():
            nbytes, offset = rng.randrange(1, 5 * PAGE), rng.randrange(len(DATA))
            if rng.random() < 0.3:
                self.file.seek(offset)
                self.file.read(nbytes)  # from where another thread may have got to meanwhile, perhaps the end
            else:
                assert self.file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            self.nr_reads[number] += 1

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stopped.set()
        self.crew.join_well()
        assert all(self.nr_reads)


@pytest.fixture(params=["file", "store"])
def opened(request, make_cache, tmp_path):
    """A cache of 64 frames and a file of 200 pages open in it."""
    cache = make_cache(64 * PAGE)
    (tmp_path / "data").write_bytes(DATA)
    with cache.open(tmp_path / "data" if request.param == "file" else pagecache.MemoryStore(DATA)) as file:
        yield cache, file


class TestChild:
    def test_of_a_quiet_cache_is_refused_and_ends_well(self, opened):
        cache, file = opened
        assert file.readall() == DATA
        assert in_child(lambda: use_and_give_up(cache, file)) == CHILD_IS_WELL
        assert file.pread(len(DATA), 0) == DATA

    @pytest.mark.stress
    @pytest.mark.skipif("libtsan" in os.environ.get("LD_PRELOAD", ""), reason="ThreadSanitizer ends a child with threads")
    def test_of_a_busy_cache_never_hangs(self, opened, seed):
        cache, file = opened
        with Readers(file, seed):
            for _ in range(200 if STRESS else 15):
                assert in_child(lambda: use_and_give_up(cache, file)) == CHILD_IS_WELL
        assert file.pread(len(DATA), 0) == DATA

    def test_while_locks_are_held_never_hangs(self, make_cache):
        """At the moment of the fork a thread holds folio lock, invalidate_lock, position lock and a place in the store."""
        cache = make_cache(64 * PAGE)
        store = BlockingStore(DATA)
        with cache.open(store) as file:
            crew = Crew(lambda: file.read(PAGE))
            assert store.entered.wait(PATIENCE_S)
            try:
                assert in_child(lambda: use_and_give_up(cache, file)) == CHILD_IS_WELL
            finally:
                store.go_on.set()
            assert crew.join() == [DATA[:PAGE]]

    def test_that_exits_by_itself_ends_well(self, opened):
        cache, file = opened
        with file.view(100, 0) as view:

            def let_everything_go():
                nonlocal cache, file, view
                assert view == DATA[:100]
                del view, file, cache

            assert in_child(let_everything_go) == CHILD_IS_WELL
            assert view == DATA[:100]

    def test_keeps_the_views_it_inherited(self, opened):
        cache, file = opened
        views = list(file.iter_views(10 * PAGE, 0))

        def look():
            assert b"".join(views) == DATA[: 10 * PAGE]
            cache.close()
            assert b"".join(views) == DATA[: 10 * PAGE]
            for view in views:
                view.release()

        assert in_child(look) == CHILD_IS_WELL
        assert file.pread(len(DATA), 0) == DATA
        assert b"".join(views) == DATA[: 10 * PAGE]

    def test_can_have_children_of_its_own(self, opened):
        cache, file = opened

        def grandchild():
            use_in_all_ways(cache, file)
            with pagecache.PageCache("64KiB") as own, own.open(Store(DATA)) as own_file:
                assert own_file.pread(10, 0) == DATA[:10]
                refused = in_child(lambda: sys.exit(not is_refused(own_file.pread, 1, 0)))
                assert refused == CHILD_IS_WELL
                assert own_file.readall() == DATA

        assert in_child(grandchild) == CHILD_IS_WELL

    def test_gets_a_default_cache_of_its_own(self, monkeypatch):
        monkeypatch.setenv("PAGECACHE_SIZE", "1MiB")
        with pagecache.default_cache() as inherited:

            def use_default():
                assert pagecache.default_cache() is not inherited
                with pagecache.default_cache().open(Store(DATA)) as file:
                    assert file.readall() == DATA

            assert in_child(use_default) == CHILD_IS_WELL
            assert pagecache.default_cache() is inherited


def test_child_lets_go_of_what_the_parent_had_closed():
    """A closed cache that something still holds has threads in the parent, which a child must not wait for."""
    gc.collect()
    gc.freeze()  # what other tests left is not copied by the child's collector
    held = [pagecache.PageCache("64MiB")]
    held[0].open(Store(DATA)).close()
    held[0].close()

    def let_go():
        held.clear()
        gc.collect()

    assert in_child(let_go) == CHILD_IS_WELL


def test_parent_goes_on_undisturbed(opened, seed):
    cache, file = opened
    with Readers(file, seed), file.view(PAGE, 3 * PAGE) as view:
        for _ in range(5):
            assert in_child(lambda: None) == CHILD_IS_WELL
            assert view == DATA[3 * PAGE : 4 * PAGE]
    cache.check()


def mapped_bytes(segment, nbytes):
    """How many of the addresses of a segment have memory behind them in this process."""
    first, total = segment.base_address, 0
    with open("/proc/self/maps") as areas:
        for area in areas:
            start, end = (int(word, 16) for word in area.split()[0].split("-"))
            total += max(0, min(end, first + nbytes) - max(start, first))
    return total


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
class TestFrames:
    """An idle child keeps none of the budget: of the frames it has what was pinned when it was made."""

    NR_FRAMES = 16 << 10

    @pytest.fixture
    def file(self, make_cache):
        data = random.Random(7).randbytes(20 << 20)
        with make_cache(self.NR_FRAMES * PAGE).open(Store(data)) as file:
            for offset in range(0, len(data), 1 << 20):
                file.pread(1 << 20, offset)
            yield file

    def region(self, file):
        sizes = file.cache.segment.sizes()
        return file.cache.segment, sum(nbytes * nr for nbytes, nr, _ in sizes.values())

    def test_a_child_has_none_of_them(self, file):
        segment, nbytes = self.region(file)
        here = mapped_bytes(segment, nbytes)

        def look():
            assert here - mapped_bytes(segment, nbytes) >= (self.NR_FRAMES - 512) * PAGE

        assert in_child(look) == CHILD_IS_WELL
        assert mapped_bytes(segment, nbytes) == here

    def test_views_in_a_child_show_the_same_bytes_whatever_the_parent_does(self, file):
        segment, nbytes = self.region(file)
        here = mapped_bytes(segment, nbytes)
        expected = file.pread(PAGE, 7 << 20)
        view = file.view(PAGE, 7 << 20)
        at_end = file.view(PAGE, (20 << 20) - PAGE)
        last = bytes(at_end)
        go_on, is_done = os.pipe()

        def look():
            assert view == expected and at_end == last
            assert os.read(go_on, 1) == b"x"
            assert view == expected and at_end == last  # though their frames are used for others in the parent
            assert here - mapped_bytes(segment, nbytes) >= (self.NR_FRAMES - 3 * 512) * PAGE
            view.release()

        def change():
            view.release()
            at_end.release()
            file.cache.drop_caches()
            with file.cache.open(Store(bytes(30 << 20), key="other")) as other:
                assert not any(other.pread(30 << 20, 0))
            os.write(is_done, b"x")

        forked = threading.Event()
        changer = threading.Thread(target=lambda: (forked.wait(), change()))
        changer.start()
        assert in_child(look, forked.set) == CHILD_IS_WELL
        changer.join()
        os.close(go_on)
        os.close(is_done)

    def test_a_view_that_is_made_later_is_of_the_parent_alone(self, file):
        with file.view(PAGE, 0) as view:
            assert in_child(lambda: bytes(view)) == CHILD_IS_WELL
        segment, nbytes = self.region(file)
        here = mapped_bytes(segment, nbytes)

        def look():
            assert here - mapped_bytes(segment, nbytes) >= (self.NR_FRAMES - 512) * PAGE

        assert in_child(look) == CHILD_IS_WELL  # what was pinned once is not any more
