"""Objects that can only be read from their beginning: transferred once where that can be, and never wrong."""

import errno
import threading

import pytest
from support import PAGE, Crew, Store, assert_nothing_is_held, pages_of, wait_until

import pagecache
from pagecache.stores.base import NoRangesError
from pagecache.stores.destination import Destination
from pagecache.stores.in_order import PIECE, BytesBody, InOrder
from pagecache.stores.validators import Version

SIZE = 50 * PAGE + 17
DATA = pages_of(SIZE)
VERSION = Version(SIZE, "one", None, None, 0.0)


class PieceBody:
    """Bytes that come in pieces; breaks off before byte `fails_at`, and waits for `gate` before it begins."""

    def __init__(self, data, piece=1000, fails_at=None, gate=None, is_proved=True):
        self.data, self.piece, self.fails_at, self.gate = data, piece, fails_at, gate
        self.is_proved = is_proved
        self.at = 0
        self.is_closed = False

    def pump(self, take):
        assert not self.is_closed
        if self.gate is not None:
            assert self.gate.wait(30)
        while self.at < len(self.data):
            if self.fails_at is not None and self.at + self.piece > self.fails_at:
                raise ConnectionResetError("the connection broke")
            start, self.at = self.at, min(self.at + self.piece, len(self.data))
            if not take(self.data[start : self.at]):
                return

    def close(self):
        self.is_closed = True
        return 0


class Source:
    """Begins responses, and counts them. make: returns the body of response `number` (from 0)."""

    def __init__(self, make=lambda number: PieceBody(DATA)):
        self.make, self.bodies = make, []

    def __call__(self):
        self.bodies.append(self.make(len(self.bodies)))
        return self.bodies[-1]


def read(in_order, source, start, nbytes, version=VERSION):
    buffer = bytearray(nbytes)
    destination = Destination([memoryview(buffer)])
    in_order.read(version, start, destination, source)
    return bytes(buffer[: destination.done])


class TestOneResponse:
    def test_serves_all_that_comes_in_order(self, rng):
        in_order, source, offset = InOrder(), Source(), 0
        while offset < SIZE:
            nbytes = rng.randrange(1, 3 * PAGE)
            assert read(in_order, source, offset, nbytes) == DATA[offset : offset + nbytes]
            offset += nbytes
        assert len(source.bodies) == 1
        assert source.bodies[0].is_closed
        assert in_order.take_surplus_bytes() == 0

    def test_what_is_passed_over_is_counted(self):
        in_order, source = InOrder(), Source()
        assert read(in_order, source, 40_000, 100) == DATA[40_000:40_100]
        first = source.bodies[0].at
        assert in_order.take_surplus_bytes() == first - 1000  # the last piece is kept
        assert in_order.take_surplus_bytes() == 0
        assert read(in_order, source, 80_000, 100) == DATA[80_000:80_100]
        assert in_order.take_surplus_bytes() == source.bodies[0].at - first - 100
        in_order.close()
        assert in_order.take_surplus_bytes() == 900

    def test_the_last_piece_is_kept(self):
        in_order, source = InOrder(), Source(lambda number: PieceBody(DATA, piece=10 * PAGE))
        for offset in (100, 5 * PAGE, 200):
            assert read(in_order, source, offset, 50) == DATA[offset : offset + 50]
        assert len(source.bodies) == 1

    def test_is_begun_anew_for_what_has_passed(self):
        in_order, source = InOrder(), Source()
        for offset in (30 * PAGE, 2 * PAGE, 40 * PAGE):
            assert read(in_order, source, offset, PAGE) == DATA[offset : offset + PAGE]
        assert len(source.bodies) == 2

    def test_of_another_version_is_not_used(self):
        other = DATA[::-1]
        in_order, source = InOrder(), Source(lambda number: PieceBody((DATA, other)[number]))
        assert read(in_order, source, 0, PAGE) == DATA[:PAGE]
        version = Version(SIZE, "two", None, None, 0.0)
        assert read(in_order, source, 2 * PAGE, PAGE, version) == other[2 * PAGE : 3 * PAGE]
        assert source.bodies[0].is_closed

    def test_one_that_is_there_already_is_used(self):
        in_order, source = InOrder(), Source()
        in_order.begin_with(PieceBody(DATA), VERSION)
        assert read(in_order, source, 7, SIZE) == DATA[7:]
        assert source.bodies == []
        assert read(in_order, source, SIZE, 10) == b""
        assert read(in_order, source, 0, 10) == DATA[:10]
        assert len(source.bodies) == 1

    def test_bytes_that_are_there_already(self):
        data = pages_of(3 * PIECE + 5)
        in_order, source, version = InOrder(), Source(), Version(len(data), "one", None, None, 0.0)
        in_order.begin_with(BytesBody(data, True), version)
        for offset in (PIECE - 5, PIECE + 5, 2 * PIECE - 5, 3 * PIECE):
            assert read(in_order, source, offset, 10, version) == data[offset : offset + 10]
        assert in_order.take_surplus_bytes() == len(data) - 35
        assert source.bodies == []

    def test_says_whether_it_is_of_the_version(self):
        for is_proved in (True, False):
            body = PieceBody(DATA, is_proved=is_proved)
            destination = Destination([memoryview(bytearray(10))])
            assert InOrder().read(VERSION, 0, destination, lambda body=body: body) is is_proved


class TestThreads:
    def test_one_pass_serves_all_who_wait(self, rng):
        gate = threading.Event()
        in_order, source = InOrder(), Source(lambda number: PieceBody(DATA, gate=gate))
        offsets = [rng.randrange(SIZE - PAGE) for _ in range(20)]
        crew = Crew(*[lambda offset=offset: read(in_order, source, offset, PAGE) for offset in offsets])
        wait_until(lambda: len(list(in_order._ranges)) == 20, "all threads to wait")
        gate.set()
        assert crew.join_well() == [DATA[offset : offset + PAGE] for offset in offsets]
        assert len(source.bodies) == 1

    def test_many_that_read_here_and_there(self, rng):
        in_order, source = InOrder(), Source()
        plans = [[rng.randrange(SIZE) for _ in range(20)] for _ in range(8)]

        def work(plan):
            return all(read(in_order, source, offset, 3000) == DATA[offset : offset + 3000] for offset in plan)

        assert all(Crew(*[lambda plan=plan: work(plan) for plan in plans]).join_well())

    def test_others_go_on_when_the_driver_is_interrupted(self):
        gate, entered = threading.Event(), threading.Event()

        class Interrupted(PieceBody):
            def pump(self, take):
                entered.set()
                assert gate.wait(30)
                raise KeyboardInterrupt

        in_order, source = InOrder(), Source(lambda number: PieceBody(DATA) if number else Interrupted(DATA))

        def first():
            with pytest.raises(KeyboardInterrupt):
                read(in_order, source, 0, PAGE)

        def second():
            entered.wait(30)
            return read(in_order, source, PAGE, PAGE)

        crew = Crew(first, second)
        wait_until(lambda: len(list(in_order._ranges)) == 2, "both threads to wait")
        gate.set()
        assert crew.join_well()[1] == DATA[PAGE : 2 * PAGE]
        assert source.bodies[0].is_closed


class TestFailures:
    def test_response_that_was_kept_and_breaks_is_begun_anew(self):
        in_order = InOrder()
        source = Source(lambda number: PieceBody(DATA, fails_at=None if number else 10 * PAGE))
        assert read(in_order, source, 0, PAGE) == DATA[:PAGE]
        assert read(in_order, source, PAGE, 40 * PAGE) == DATA[PAGE : 41 * PAGE]
        assert len(source.bodies) == 2

    def test_new_one_that_breaks_is_an_error_once(self):
        in_order = InOrder()
        source = Source(lambda number: PieceBody(DATA, fails_at=None if number else 10 * PAGE))
        with pytest.raises(ConnectionResetError):
            read(in_order, source, 0, 20 * PAGE)
        assert read(in_order, source, 0, SIZE) == DATA

    @pytest.mark.parametrize(("nbytes", "words"), [(SIZE - 1, "ended after"), (SIZE + 1, "longer than the object")])
    def test_other_sizes_than_the_stated_one_are_errors(self, nbytes, words):
        in_order, source = InOrder(), Source(lambda number: PieceBody((DATA + b"x")[:nbytes]))
        with pytest.raises(OSError, match=words) as caught:
            read(in_order, source, PAGE, SIZE)
        assert caught.value.errno == errno.EIO
        assert all(body.is_closed for body in source.bodies)


class OrderedStore(Store):
    """Reads from the beginning only. It finds that out at its first request, unless it knows; requests that have begun by
    then may need a pass each."""

    preferred_request = max_request = 8 * PAGE
    parallel_requests = 8
    latency = "remote"

    def __init__(self, data, knows=False):
        super().__init__(data)
        self.serves_ranges = self.found_out = not knows
        self.source = Source(lambda number: PieceBody(data, piece=PAGE))
        self.in_order = InOrder()
        self._found = threading.Lock()

    def readv_in_ranges(self, offset, buffers):
        with self._found:
            if self.serves_ranges:
                self.serves_ranges = False
                raise NoRangesError
        return self.readv(offset, buffers)

    def answer(self, offset, buffers):
        version = Version(len(self.data), self.version, None, None, 0.0)
        destination = Destination(buffers)
        self.in_order.read(version, offset, destination, self.source)
        return destination.done

    def take_surplus_bytes(self):
        return self.in_order.take_surplus_bytes()

    @property
    def nr_bytes(self):
        """Bytes that all responses brought."""
        return sum(body.at for body in self.source.bodies)


class TestCache:
    @pytest.fixture(params=[True, False], ids=["known", "found out"])
    def store(self, request):
        return OrderedStore(DATA, knows=request.param)

    @pytest.mark.parametrize("random", [False, True])
    def test_object_of_half_the_cache_is_transferred_once(self, make_cache, store, rng, random):
        cache = make_cache(2 * SIZE + 2 * PAGE)
        with cache.open(store) as file:
            if random:
                file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(20):
                offset, nbytes = rng.randrange(SIZE), rng.randrange(3 * PAGE)
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            assert file.read() == DATA
        assert len(store.source.bodies) == 1
        assert cache.stats().store_read_bytes == store.nr_bytes == SIZE
        assert_nothing_is_held(cache)

    def test_larger_object_is_read_in_order(self, make_cache, store):
        cache = make_cache(20 * PAGE)
        with cache.open(store) as file:
            found = b"".join(iter(lambda: file.read(3000), b""))
        assert found == DATA
        assert len(store.source.bodies) == 1
        assert cache.stats().store_read_bytes == store.nr_bytes == SIZE

    def test_what_is_passed_over_counts(self, make_cache, store):
        cache = make_cache(20 * PAGE)
        with cache.open(store) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for page in (40, 10, 30):
                assert file.pread(100, page * PAGE) == DATA[page * PAGE : page * PAGE + 100]
        assert cache.stats().store_read_bytes == store.nr_bytes >= 70 * PAGE
        assert len(store.source.bodies) == 2

    def test_many_ranges_and_threads(self, make_cache, store, rng):
        cache = make_cache(4 * SIZE)
        with cache.open(store) as file:
            ranges = [(100, rng.randrange(SIZE - 100)) for _ in range(30)]
            crew = Crew(*[lambda: file.preadv_many(ranges, hole_size=0)] * 4)
            assert crew.join_well() == [[DATA[offset : offset + n] for n, offset in ranges]] * 4
        assert len(store.source.bodies) <= (store.parallel_requests if store.found_out else 1)

    def test_prefetch(self, make_cache, store):
        cache = make_cache(60 * PAGE)
        with cache.open(store) as file:
            file.prefetch().wait()
            assert file.pread_cached(SIZE, 0) == DATA
        assert len(store.source.bodies) <= (store.parallel_requests if store.found_out else 1)

    @pytest.mark.parametrize("frames", [1, 2, 3, 64])
    def test_small_caches(self, make_cache, store, frames):
        with make_cache(frames * PAGE).open(store) as file:
            assert b"".join(file.pread(PAGE, page * PAGE) for page in range(51)) == DATA

    def test_map(self, make_cache, store):
        with make_cache(4 * SIZE).open(store) as file, file.mmap(access=pagecache.ACCESS_READ) as mapped:
            assert mapped[30 * PAGE] == DATA[30 * PAGE]
            assert mapped[:] == DATA
        assert len(store.source.bodies) == 1

    def test_response_that_breaks_is_an_error_and_fills_nothing(self, make_cache, store):
        def make(number):
            return PieceBody(DATA, piece=PAGE, fails_at=None if number > 3 else 30 * PAGE)

        store.source = Source(make)
        cache = make_cache(4 * SIZE)
        with cache.open(store) as file:
            with pytest.raises(OSError, match="the connection broke") as caught:
                file.pread(SIZE, 0)
            assert caught.value.errno == errno.EIO
            while len(store.source.bodies) < 4:
                with pytest.raises(OSError, match="the connection broke"):
                    file.pread(1, 40 * PAGE)
            assert file.read() == DATA
        assert_nothing_is_held(cache)
