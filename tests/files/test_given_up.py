"""Requests that hang and that no thread waits for: the next reader makes its own, and a late answer lands nowhere."""

import asyncio
import contextlib
import errno
import random
import threading

import pytest
from support import PAGE, PATIENCE_S, Crew, Store, assert_nothing_is_held, pages_of, wait_until
from support.remote_stores import wait_all_read

import pagecache
from pagecache.requests import speed

NR_PAGES = 64
DATA = pages_of(NR_PAGES * PAGE)


class LateStore(Store):
    """Requests that `hangs(offset, nbytes)` says wait for `go_on`, fill their buffers with something else, and say so in
    `late`. The others are answered at once."""

    preferred_request = max_request = 4 * PAGE
    parallel_requests = 4
    latency = "device"

    def __init__(self, data, hangs=lambda offset, nbytes: True, key="late"):
        super().__init__(data, key)
        self.hangs = hangs
        self.go_on = threading.Event()
        self.nr_hanging = self.nr_back = 0
        self.late = []
        self._count = threading.Lock()

    def answer(self, offset, buffers):
        if not self.hangs(offset, sum(map(len, buffers))):
            return super().answer(offset, buffers)
        with self._count:
            self.nr_hanging += 1
        assert self.go_on.wait(PATIENCE_S), "the store was not let answer"
        try:
            for buffer in buffers:
                buffer[:] = b"\xee" * len(buffer)
            return sum(map(len, buffers))
        except BaseException as error:
            self.late.append(error)
            raise
        finally:
            with self._count:
                self.nr_back += 1

    def let_answer(self):
        """Let all that hangs answer, and wait until that is over."""
        self.go_on.set()
        wait_until(lambda: self.nr_back == self.nr_hanging, "late answers")


class Once:
    """Says of the first request for a page that it hangs."""

    def __init__(self, *pages):
        self.pages = set(pages)

    def __call__(self, offset, nbytes):
        hit = self.pages & set(range(offset // PAGE, (offset + nbytes + PAGE - 1) // PAGE))
        self.pages -= hit
        return bool(hit)


@pytest.fixture
def is_impatient(monkeypatch):
    """Every request that is unattended seems to hang, as soon as a thread waits for it."""
    monkeypatch.setattr(speed, "PATIENCE_MIN_S", 0.0)
    monkeypatch.setattr(speed, "PATIENCE_FACTOR", 0)


async def cancel(read, is_hanging):
    """Begin a read, and cancel it as soon as it hangs."""
    task = asyncio.ensure_future(read)
    while not is_hanging():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TestCancelled:
    @pytest.fixture
    def store(self):
        store = LateStore(DATA, Once(5))
        yield store
        store.go_on.set()

    @pytest.fixture
    def file(self, make_cache, store):
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            file.is_random = True
            yield file
            store.let_answer()
            wait_all_read(file)
            assert file.pread(len(DATA), 0) == DATA
        assert_nothing_is_held(cache)

    def give_up(self, file, store):
        asyncio.run(cancel(file.pread_async(10, 5 * PAGE), lambda: store.nr_hanging))

    def test_the_next_reader_asks_for_itself(self, file, store):
        self.give_up(file, store)
        assert file.pread(PAGE, 5 * PAGE) == DATA[5 * PAGE : 6 * PAGE]
        store.let_answer()
        assert file.pread(PAGE, 5 * PAGE) == DATA[5 * PAGE : 6 * PAGE]

    def test_frames_are_not_used_for_others_as_long_as_the_store_may_write_to_them(self, file, store):
        self.give_up(file, store)
        wait_until(lambda: file.cache.stats().nr_pinned, "the frame to be kept")
        for _ in range(4):
            assert file.pread(len(DATA), 0) == DATA
            file.invalidate()
        store.let_answer()
        wait_until(lambda: not file.cache.stats().nr_pinned, "the frame to be free")
        assert store.late == []

    def test_pages_can_be_invalidated_meanwhile(self, file, store):
        """The reader that has gone holds no lock either."""
        self.give_up(file, store)
        file.invalidate()
        assert store.nr_back == 0
        assert file.pread(PAGE, 5 * PAGE) == DATA[5 * PAGE : 6 * PAGE]

    def test_who_waits_gets_the_answer(self, file, store):
        """As long as others wait, the request goes on for them."""
        store.hangs = lambda offset, nbytes: False
        entered, go_on = threading.Event(), threading.Event()
        answer = store.answer

        def slow(offset, buffers):
            entered.set()
            assert go_on.wait(PATIENCE_S)
            return answer(offset, buffers)

        store.answer = slow

        async def main():
            one = asyncio.ensure_future(file.pread_async(10, 5 * PAGE))
            await asyncio.to_thread(entered.wait, PATIENCE_S)
            other = asyncio.ensure_future(file.pread_async(10, 5 * PAGE))
            while not any("wait_for_folio" in str(stack) for stack in map(stack_of, threading.enumerate())):
                await asyncio.sleep(0.001)
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
            go_on.set()
            return await other

        assert asyncio.run(main()) == DATA[5 * PAGE : 5 * PAGE + 10]
        assert len(store.requests) == 1

    def test_who_waits_reads_it_when_it_hangs(self, file, store, is_impatient):
        async def main():
            one = asyncio.ensure_future(file.pread_async(10, 5 * PAGE))
            while not store.nr_hanging:
                await asyncio.sleep(0.001)
            other = asyncio.ensure_future(file.pread_async(10, 5 * PAGE))
            one.cancel()
            return await other

        assert asyncio.run(main()) == DATA[5 * PAGE : 5 * PAGE + 10]
        assert len(store.requests) == 2

    def test_places_of_requests_that_hang_are_others(self, make_cache):
        store = LateStore(DATA, lambda offset, nbytes: offset < 4 * PAGE)
        store.parallel_requests = 2
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            file.is_random = True
            for page in range(4):
                asyncio.run(cancel(file.pread_async(10, page * PAGE), lambda wanted=page + 1: store.nr_hanging == wanted))
            assert file.pread(PAGE, 9 * PAGE) == DATA[9 * PAGE : 10 * PAGE]
            store.let_answer()
            wait_all_read(file)
            queue = file.mapping.backing.request_queue
            assert (queue.limit, queue.nr_running) == (2, 0)
        assert_nothing_is_held(cache)

    def test_a_reader_that_waits_for_a_place_gives_its_folios_up(self, make_cache):
        """One place, which a request has that its reader still waits for."""
        store = LateStore(DATA, Once(0))
        store.parallel_requests = 1
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            file.is_random = True
            crew = Crew(lambda: file.pread(10, 0))
            wait_until(lambda: store.nr_hanging, "the first reader")
            queue = file.mapping.backing.request_queue
            asyncio.run(cancel(file.pread_async(10, 5 * PAGE), lambda: queue._places.nr_urgent_waiting))
            wait_until(lambda: not queue._places.nr_urgent_waiting, "the worker to leave")
            assert not file.mincore()[5]
            store.hangs = lambda offset, nbytes: False
            store.go_on.set()
            crew.join()
            assert file.pread(10, 5 * PAGE) == DATA[5 * PAGE : 5 * PAGE + 10]
            file.invalidate()
        assert_nothing_is_held(cache)


def stack_of(thread):
    """Return the names of the functions that a thread is in."""
    from support import frame_of

    frame, names = frame_of(thread.ident), []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


class TestInTheBackground:
    """Readahead and prefetch have no reader that could give up: a thread that waits for their pages takes them over."""

    @pytest.fixture
    def cache(self, make_cache):
        return make_cache("1MiB")

    WAYS = {
        "pread": lambda file, page: file.pread(PAGE, page * PAGE),
        "view": lambda file, page: bytes(file.view(PAGE, page * PAGE)),
        "map": lambda file, page: file.mmap()[page * PAGE : (page + 1) * PAGE],
        "many": lambda file, page: file.preadv_many([(PAGE, page * PAGE), (10, 0)])[0],
    }

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("begun_by", ["prefetch", "readahead", "ranges"])
    def test_the_next_reader_asks_for_itself(self, cache, is_impatient, way, begun_by):
        store = LateStore(DATA, Once(17))
        with cache.open(store) as file:
            if begun_by == "prefetch":
                file.prefetch(16 * PAGE, 4 * PAGE)
            elif begun_by == "readahead":
                file.pread(16 * PAGE, 0)
                file.fadvise(pagecache.FADV_WILLNEED, 16 * PAGE, 4 * PAGE)
            else:
                from pagecache.files import ranges

                ranges.fetch(file.mapping, [(16, 19)])
            wait_until(lambda: store.nr_hanging, "the request")
            assert self.WAYS[way](file, 17) == DATA[17 * PAGE : 18 * PAGE]
            store.let_answer()
            wait_all_read(file)
            assert file.pread(len(DATA), 0) == DATA
        assert_nothing_is_held(cache)

    def test_a_prefetch_says_that_it_was_given_up(self, cache, is_impatient):
        store = LateStore(DATA, Once(17))
        with cache.open(store) as file:
            prefetch = file.prefetch(16 * PAGE, 4 * PAGE)
            wait_until(lambda: store.nr_hanging, "the request")
            assert file.pread(PAGE, 17 * PAGE) == DATA[17 * PAGE : 18 * PAGE]
            store.let_answer()
            with pytest.raises(TimeoutError, match="hung"):
                prefetch.wait()
        assert_nothing_is_held(cache)

    def test_those_that_wait_behind_ones_that_hang_are_begun(self, cache, is_impatient):
        store = LateStore(DATA, lambda offset, nbytes: offset < 8 * PAGE)
        store.parallel_requests = 2
        with cache.open(store) as file:
            prefetches = [file.prefetch(page * PAGE, 4 * PAGE) for page in (0, 4, 8)]
            wait_until(lambda: store.nr_hanging == 2, "all places")
            assert file.pread(PAGE, 8 * PAGE) == DATA[8 * PAGE : 9 * PAGE]
            store.let_answer()
            for prefetch in prefetches:
                prefetch.wait_done()
        assert_nothing_is_held(cache)

    def test_one_that_is_only_slow_is_waited_for(self, cache):
        store = LateStore(DATA, Once(17))
        with cache.open(store) as file:
            file.prefetch(16 * PAGE, 4 * PAGE)
            wait_until(lambda: store.nr_hanging, "the request")
            crew = Crew(lambda: file.pread(PAGE, 17 * PAGE))
            wait_until(lambda: any("wait_for_folio" in stack_of(thread) for thread in crew.threads), "the reader to wait")
            store.hangs = lambda offset, nbytes: False
            store.data = b"\xee" * len(DATA)  # what the late answer brings as well
            store.go_on.set()
            assert crew.join() == [b"\xee" * PAGE]
            assert len(store.requests) == 1

    def test_patience_fits_what_was_measured(self):
        known = speed.StoreSpeed()
        assert known.patience_s(1 << 20) == speed.PATIENCE_MIN_S
        known.observe(4096, 1.0)
        known.observe(1 << 20, 5.0)
        assert known.patience_s(1 << 20) == pytest.approx(speed.PATIENCE_FACTOR * 5.0, rel=0.01)


@pytest.mark.parametrize("nr_frames", [1, 2, 3, 64])
def test_at_random(make_cache, rng, nr_frames, monkeypatch):
    """Readers come and go, requests hang and answer late and wrongly: no read returns what a late answer brought."""
    monkeypatch.setattr(speed, "PATIENCE_MIN_S", 0.0)
    monkeypatch.setattr(speed, "PATIENCE_FACTOR", 0)
    choice = random.Random(rng.random())
    lock, hanging = threading.Lock(), []

    class RandomStore(LateStore):
        def answer(self, offset, buffers):
            with lock:
                hangs = not self.go_on.is_set() and choice.random() < 0.2
                event = threading.Event()
                if hangs:
                    hanging.append(event)
            if not hangs:
                return Store.answer(self, offset, buffers)
            assert event.wait(PATIENCE_S)
            for buffer in buffers:
                with contextlib.suppress(ValueError):
                    buffer[:] = b"\xee" * len(buffer)
            raise OSError(errno.EIO, "late")  # what is not given up fails

    store = RandomStore(DATA, key=f"random {nr_frames}")
    cache = make_cache(nr_frames * PAGE)

    async def reader(file):
        for _ in range(40):
            page = rng.randrange(NR_PAGES)
            nbytes = rng.choice([10, PAGE, 3 * PAGE])
            read = asyncio.ensure_future(file.pread_async(nbytes, page * PAGE))
            await asyncio.sleep(rng.choice([0, 0.0005]))
            if rng.random() < 0.7:
                read.cancel()
            elif rng.random() < 0.7:
                with lock:
                    events, hanging[:] = list(hanging), []
                for event in events:
                    event.set()
            done, _ = await asyncio.wait([read], timeout=0.02)
            if not done:
                read.cancel()
            try:
                assert await read == DATA[page * PAGE : page * PAGE + nbytes]
            except (asyncio.CancelledError, pagecache.CacheFullError):
                pass
            except OSError as error:
                assert error.errno == errno.EIO

    async def main(file):
        await asyncio.gather(*[reader(file) for _ in range(4)])

    with cache.open(store) as file:
        asyncio.run(main(file))
        with lock:
            store.go_on.set()
            events, hanging[:] = list(hanging), []
        for event in events:
            event.set()
        wait_all_read(file)
        wait_until(lambda: not cache.stats().nr_pinned, "frames to be given back")
        assert file.pread(len(DATA), 0) == DATA
        wait_all_read(file)
    assert_nothing_is_held(cache)
