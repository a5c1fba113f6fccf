"""One handle, many threads that call seek, then read: native threads each get what they sought; among Python's own threads
there is one position, as io has it."""

import contextlib
import io
import random
import threading

import pytest
from support import PAGE, PATIENCE_S, FaultyStore, Store, assert_same, pages_of
from support.native_threads import NativeThread, PythonThread

import pagecache

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)
NR_THREADS = 8


class Opened:
    """The kinds of handles that this project gives out, opened on one object."""

    def __init__(self, cache):
        self.cache = cache
        self.closing = contextlib.ExitStack()

    def plain(self):
        return self.cache.open(Store(DATA))

    def recorded(self, tmp_path):
        self.closing.enter_context(self.cache.record(tmp_path / "trace.npy"))
        return self.plain()

    def versioned(self, **options):
        return self.cache.open(Store(DATA), **options)

    def fsspec(self, **options):
        fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
        import pagecache.adapters.fsspec

        memory = fsspec.filesystem("memory")
        memory.pipe_file("/shared", DATA)
        self.closing.callback(memory.rm, "/shared")
        self.closing.enter_context(pagecache.using(self.cache))
        return fsspec.filesystem("pagecache", fs=memory, skip_instance_cache=True, **options).open("/shared")

    def duckdb(self):
        pytest.importorskip("fsspec", reason="fsspec is not installed")
        from pagecache.adapters.duckdb import PageCacheFiles

        files = PageCacheFiles(self.cache, lambda path: Store(DATA, key=path))
        self.closing.callback(files.close)
        return files.open("pagecache://shared")

    def rasterio(self):
        pytest.importorskip("rasterio", reason="rasterio is not installed")
        from pagecache.adapters.rasterio import PageCacheOpener

        opener = PageCacheOpener(self.cache, lambda path: Store(DATA, key=path))
        self.closing.callback(opener.close)
        return opener.open("shared")


KINDS = {
    "File": lambda opened, tmp_path: opened.plain(),
    "RecordedFile": lambda opened, tmp_path: opened.recorded(tmp_path),
    "VersionedFile, recheck=60": lambda opened, tmp_path: opened.versioned(recheck=60),
    "VersionedFile, recheck=True": lambda opened, tmp_path: opened.versioned(recheck=True),
    "VersionedFile, reload": lambda opened, tmp_path: opened.versioned(recheck=True, on_change="reload"),
    "pagecache::": lambda opened, tmp_path: opened.fsspec(),
    "pagecache::, recheck=60": lambda opened, tmp_path: opened.fsspec(recheck=60),
    "pagecache::, reload": lambda opened, tmp_path: opened.fsspec(recheck=True, on_change="reload"),
    "PageCacheFiles": lambda opened, tmp_path: opened.duckdb(),
    "rasterio's": lambda opened, tmp_path: opened.rasterio(),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def open_kind(make_cache, tmp_path):
    """A factory of handles: `handle = open_kind(kind, frames)`."""
    with contextlib.ExitStack() as closing:

        def opened(kind, frames=64):
            one = Opened(make_cache(frames * PAGE))
            closing.push(one.closing)
            handle = KINDS[kind](one, tmp_path)
            closing.callback(handle.close)
            return handle

        yield opened


def filled(file, nbytes):
    buffer = bytearray(nbytes)
    return bytes(buffer[: file.readinto(buffer)])


WAYS = {
    "read": lambda file, start: (file.read(8), DATA[start : start + 8]),
    "readinto": lambda file, start: (filled(file, 8), DATA[start : start + 8]),
    "readline": lambda file, start: (file.readline(), DATA[start : DATA.index(b"\n", start) + 1]),
    "readlines": lambda file, start: (b"".join(file.readlines(5000)), b"".join(io.BytesIO(DATA[start:]).readlines(5000))),
    "readall": lambda file, start: (file.read(), DATA[start:]),
}


@EVERY_KIND
@pytest.mark.parametrize("way", WAYS)
def test_a_native_thread_reads_where_it_sought_whatever_others_seek_and_read(open_kind, kind, way):
    file = open_kind(kind)
    if kind == "rasterio's" and way != "read":
        pytest.skip("GDAL reads, and nothing else")

    def right(start):
        found, wanted = WAYS[way](file, start)
        assert_same(found, wanted, start)

    with NativeThread() as one, NativeThread() as other:
        assert one(file.seek, 5 * PAGE) == 5 * PAGE
        assert other(file.seek, 9 * PAGE) == 9 * PAGE
        assert file.seek(2) == 2  # this one is Python's
        assert (one(file.tell), other(file.tell), file.tell()) == (5 * PAGE, 9 * PAGE, 2)
        other(right, 9 * PAGE)
        one(right, 5 * PAGE)
        right(2)


@EVERY_KIND
def test_what_one_thread_has_sought_another_may_read_and_a_stream_goes_on_in_any_thread(open_kind, kind):
    file = open_kind(kind)
    with NativeThread() as one, NativeThread() as other, PythonThread() as python:
        one(file.seek, 100)
        assert other(file.tell) == 100
        assert other(file.read, 10) == DATA[100:110]
        assert one(file.read, 10) == DATA[110:120]  # what it had sought itself is done with
        assert python(file.read, 10) == DATA[120:130]
        assert file.read(10) == DATA[130:140]
        file.seek(7)
        assert other(file.read, 3) == DATA[7:10]  # as DuckDB 1.5 reads CSV: sought by the one, read on by the others
        assert one(file.tell) == 10
        assert one(file.read, 3) == DATA[10:13]
        assert file.read(3) == DATA[13:16]


@EVERY_KIND
def test_a_seek_from_the_end_returns_the_size_and_is_not_kept(open_kind, kind):
    file = open_kind(kind)
    with NativeThread() as one, NativeThread() as other:
        assert one(file.seek, 0, io.SEEK_END) == SIZE
        assert other(file.seek, 0) == 0
        assert one(file.read, 4) == DATA[:4]
        other(file.seek, 50)
        assert other(file.seek, 5, io.SEEK_CUR) == 55
        assert other(file.seek, -3, io.SEEK_END) == SIZE - 3
        assert other(file.read, 10) == DATA[-3:]


@EVERY_KIND
def test_pythons_threads_share_one_position_as_io_has_it(open_kind, kind):
    """Also those that begin again where another one has read: what each has sought for itself counts for DuckDB's alone."""
    file = open_kind(kind)
    with PythonThread() as one, PythonThread() as other:
        one(file.seek, 100)
        other(file.seek, 200)
        if kind == "PageCacheFiles":
            assert (one(file.read, 5), other(file.read, 5)) == (DATA[100:105], DATA[200:205])
            return
        assert one(file.read, 5) == DATA[200:205]
        assert other(file.read, 5) == DATA[205:210]
        one(file.seek, 0)
        other(file.seek, 16)
        assert other(file.read, 4) == DATA[16:20]
        assert one(file.read, 4) == DATA[20:24]


@EVERY_KIND
@pytest.mark.parametrize("frames", [1, 2, 3, 64])
def test_threads_that_seek_and_read_at_once(open_kind, kind, frames, seed):
    """Threads are held between seek and read until another one has sought: the worst order, whatever the machine does."""
    file = open_kind(kind, frames)
    turns = [threading.Event() for _ in range(NR_THREADS)]

    def work(number):
        rng = random.Random(seed + number)
        wrong = []
        for _ in range(30):
            start, nbytes = rng.randrange(SIZE - PAGE), rng.randrange(1, PAGE)
            file.seek(start)
            turns[number].set()
            turns[number - 1].wait(0.002)
            turns[number - 1].clear()
            if (found := file.read(nbytes)) != DATA[start : start + nbytes]:
                wrong.append((start, nbytes, len(found)))
        return wrong

    with contextlib.ExitStack() as stack:
        threads = [stack.enter_context(NativeThread()) for _ in range(NR_THREADS)]
        for number, thread in enumerate(threads):
            thread.begin(work, number)
        assert [thread.result() for thread in threads] == [[]] * NR_THREADS


@EVERY_KIND
def test_any_order_of_calls_is_as_the_rules_have_it(open_kind, kind, rng):
    file = open_kind(kind)
    by_thread = kind == "PageCacheFiles"
    with contextlib.ExitStack() as stack:
        threads = [stack.enter_context(one) for one in (NativeThread(), NativeThread(), PythonThread(), PythonThread())]
        position, sought = 0, {}
        for _ in range(400):
            number = rng.randrange(len(threads))
            name = number if by_thread or number < 2 else "python"
            call = rng.choice(["seek", "seek", "read", "read", "tell", "skip", "end"])
            where = sought.get(name, position)
            if call == "seek":
                position = sought[name] = rng.randrange(SIZE)
                assert threads[number](file.seek, position) == position
            elif call == "skip":
                position = sought[name] = where + 10
                assert threads[number](file.seek, 10, io.SEEK_CUR) == position
            elif call == "end":
                position = SIZE - rng.randrange(100)
                sought.pop(name, None)
                assert threads[number](file.seek, position - SIZE, io.SEEK_END) == position
            elif call == "tell":
                assert threads[number](file.tell) == where
            else:
                nbytes = rng.randrange(1, 200)
                if name not in sought:
                    sought.clear()
                sought.pop(name, None)
                assert_same(threads[number](file.read, nbytes), DATA[where : where + nbytes], where)
                position = where + len(DATA[where : where + nbytes])


@pytest.mark.parametrize("options", [{}, {"recheck": 60}], ids=["File", "VersionedFile"])
def test_native_threads_wait_for_the_store_at_the_same_time(make_cache, options):
    """Also while another thread holds the position because it reads on from there."""
    entered, together = threading.Semaphore(0), threading.Barrier(3)

    class Meeting(Store):
        parallel_requests = 3

        def answer(self, offset, buffers):
            entered.release()
            together.wait(PATIENCE_S)  # all are here, or none gets on
            return super().answer(offset, buffers)

    file = make_cache(64 * PAGE).open(Meeting(DATA), **options)
    file.fadvise(pagecache.FADV_RANDOM)  # one request for each read
    with NativeThread() as one, NativeThread() as other, PythonThread() as python:
        python.begin(file.read, 4)
        assert entered.acquire(timeout=PATIENCE_S)
        for number, thread in enumerate((one, other), start=1):
            thread(file.seek, number * 10 * PAGE)
            thread.begin(file.read, 4)
        assert python.result() == DATA[:4]
        assert [one.result(), other.result()] == [DATA[10 * PAGE :][:4], DATA[20 * PAGE :][:4]]
    file.close()


@pytest.mark.parametrize("options", [{}, {"recheck": 60}], ids=["File", "VersionedFile"])
def test_a_read_that_fails_leaves_its_thread_where_it_sought(make_cache, options):
    faults = [OSError(5, "planned")]
    store = FaultyStore(DATA, lambda number, first, last: faults[0] if faults else None)
    file = make_cache(64 * PAGE).open(store, **options)
    with NativeThread() as one, NativeThread() as other:
        one(file.seek, 300)
        other(file.seek, 4000)
        with pytest.raises(OSError, match="planned"):
            one(file.read, 10)
        faults.clear()
        assert one(file.tell) == 300
        assert one(file.read, 10) == DATA[300:310]
        assert other(file.read, 10) == DATA[4000:4010]
    file.close()


def test_native_threads_write_where_they_sought(make_cache):
    file = make_cache(64 * PAGE).open(pagecache.MemoryStore(bytes(PAGE)), "r+b")
    with NativeThread() as one, NativeThread() as other:
        one(file.seek, 100)
        other(file.seek, 200)
        assert one(file.write, b"one") == other(file.write, b"two") == 3
        assert (file.pread(3, 100), file.pread(3, 200)) == (b"one", b"two")
    file.close()


def test_wrong_seeks_move_nothing(make_cache):
    file = make_cache(4 * PAGE).open(Store(DATA))
    with NativeThread() as one:
        one(file.seek, 77)
        below, beyond = [(-1,), (-100, 1), (-SIZE - 1, 2), (-(1 << 200),)], [(1 << 63,), (1 << 200,), ((1 << 63) - 1, 1)]
        for arguments in (*below, *beyond, ("x",), (0, 7), (0, -1), (0, 1 << 70), (0, "x")):
            with pytest.raises((ValueError, TypeError, OSError)):
                one(file.seek, *arguments)
            assert one(file.tell) == 77
    file.close()


def test_a_recorded_trace_has_what_each_thread_read(make_cache, tmp_path):
    cache = make_cache(64 * PAGE)
    noted = []
    with cache.record(tmp_path / "trace.npy"):
        file = cache.open(Store(DATA))
        file._note = lambda pos, nbytes: noted.append((pos, nbytes))
        with NativeThread() as one, NativeThread() as other:
            one(file.seek, 5 * PAGE)
            other(file.seek, 9 * PAGE)
            one(file.read, 3)
            other(file.readinto, bytearray(4))
        file.close()
    assert noted == [(5 * PAGE, 3), (9 * PAGE, 4)]
