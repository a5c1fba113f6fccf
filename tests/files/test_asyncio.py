"""Reads for asyncio: hits do not suspend, misses do not block, cancellation and a closed loop harm no other."""

import asyncio

import pytest
from support import PAGE, PATIENCE_S, BlockingStore, FaultyStore, Store, assert_nothing_is_held, pages_of, wait_until
from support.remote_stores import CountingStore, HangingStore, wait_all_read

NR_PAGES = 256
DATA = pages_of(NR_PAGES * PAGE)


def drive(coroutine):
    """Return what a coroutine returns without a loop: it must not suspend."""
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    return stop.value.value


def run(coroutine):
    """Run a coroutine in a loop of its own, with a bound on how long."""
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


class TestHits:
    def test_return_without_a_trip_through_the_loop(self, make_cache):
        with make_cache("2MiB").open(Store(DATA)) as file:
            file.pread(len(DATA), 0)
            wait_all_read(file)
            assert drive(file.pread_async(10, 5)) == DATA[5:15]
            assert drive(file.pread_async(100_000, 4000)) == DATA[4000:104_000]
            buffer = bytearray(PAGE)
            assert drive(file.preadinto_async(buffer, PAGE)) == PAGE
            assert buffer == DATA[PAGE : 2 * PAGE]
            assert drive(file.pread_async(0, 0)) == b""

    def test_up_to_the_end_of_the_file_too(self, make_cache):
        with make_cache("2MiB").open(Store(DATA[:5000])) as file:
            file.pread(5000, 0)
            assert drive(file.pread_async(10_000, 4000)) == DATA[4000:5000]
            assert run(file.pread_async(10, 5000)) == b""
            buffer = bytearray(3000)
            assert drive(file.preadinto_async(buffer, 4000)) == 1000


class TestMisses:
    def test_do_not_block_the_loop(self, make_cache):
        store = BlockingStore(DATA)

        async def main(file):
            read = asyncio.create_task(file.pread_async(PAGE, 0))
            while not store.entered.is_set():
                await asyncio.sleep(0.001)
            assert not read.done()
            store.go_on.set()
            return await read

        with make_cache("2MiB").open(store) as file:
            assert run(main(file)) == DATA[:PAGE]

    def test_many_at_once_share_one_fetch(self, make_cache):
        store = BlockingStore(DATA)

        async def main(file):
            reads = [asyncio.create_task(file.pread_async(100, 7 * PAGE + number)) for number in range(50)]
            while not store.entered.is_set():
                await asyncio.sleep(0.001)
            store.go_on.set()
            return await asyncio.gather(*reads)

        with make_cache("2MiB").open(store) as file:
            assert run(main(file)) == [DATA[7 * PAGE + number :][:100] for number in range(50)]
        assert len(store.requests) == 1

    def test_more_than_there_are_threads_do_not_wait_for_each_other_for_ever(self, make_cache):
        """All threads of callers come to wait for readahead: the store's requests need threads of their own."""
        store = HangingStore(DATA, {0})
        pages = [number % 2 for number in range(600)] + [4 + number % 4 for number in range(900)]

        async def main(file):
            reads = [asyncio.create_task(file.pread_async(PAGE, page * PAGE)) for page in pages[:600]]
            while not store.entered.is_set():
                await asyncio.sleep(0.001)
            reads += [asyncio.create_task(file.pread_async(PAGE, page * PAGE)) for page in pages[600:]]
            await asyncio.sleep(0)
            store.go_on.set()
            return await asyncio.gather(*reads)

        with make_cache("2MiB").open(store) as file:
            results = run(main(file))
            wait_all_read(file)
        assert results == [DATA[page * PAGE :][:PAGE] for page in pages]

    def test_raise_what_a_read_raises(self, make_cache):
        store = FaultyStore(DATA, lambda *_: OSError(5, "bad"))
        with make_cache("2MiB").open(store) as file:
            with pytest.raises(OSError, match="bad"):
                run(file.pread_async(1, 0))
            with pytest.raises(OSError, match="bad"):
                run(file.prefetch_async())
        with pytest.raises(ValueError, match="closed"):
            run(file.pread_async(1, 0))

    def test_into_a_buffer(self, make_cache):
        buffer = bytearray(10_000)
        with make_cache("2MiB").open(Store(DATA)) as file:
            assert run(file.preadinto_async(buffer, 100)) == 10_000
            assert buffer == DATA[100:10_100]
            wait_all_read(file)

    def test_prefetch_is_awaited(self, make_cache):
        with make_cache("2MiB").open(CountingStore(DATA)) as file:
            run(file.prefetch_async(0, 100 * PAGE))
            assert sum(file.mincore()) == 100
            run(file.prefetch_async(len(DATA), 1))


class TestCancelling:
    def test_a_read_leaves_it_to_others(self, make_cache):
        store = BlockingStore(DATA)
        cache = make_cache("2MiB")

        async def main(file):
            cancelled = asyncio.create_task(file.pread_async(PAGE, 0))
            kept = asyncio.create_task(file.pread_async(PAGE, 0))
            while not store.entered.is_set() or not is_awaited(file):
                await asyncio.sleep(0.001)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            store.go_on.set()
            return await kept

        def is_awaited(file):
            folio = file.inode.mapping.get_folio(0)
            if folio is None:
                return False
            with folio:
                return folio.waiters

        with cache.open(store) as file:
            assert run(main(file)) == DATA[:PAGE]
            assert len(store.requests) == 1
        assert_nothing_is_held(cache)

    def test_a_prefetch_skips_the_rest(self, make_cache):
        store = HangingStore(DATA, range(NR_PAGES))

        async def main(file):
            task = asyncio.create_task(file.prefetch_async())
            while len(store.requests) < 4:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            store.go_on.set()

        cache = make_cache("2MiB")
        with cache.open(store) as file:
            run(main(file))
            wait_until(lambda: sum(file.mincore()) == 16, "what had begun")
            assert len(store.requests) == 4
            assert file.pread(len(DATA), 0) == DATA
            wait_all_read(file)
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("what", ["pread_async", "prefetch_async"])
    def test_a_loop_that_is_closed_meanwhile_is_not_called(self, make_cache, what, caplog):
        store = BlockingStore(DATA)
        cache = make_cache("2MiB")
        file = cache.open(store)
        loop = asyncio.new_event_loop()
        task = loop.create_task(getattr(file, what)(0 if what == "prefetch_async" else PAGE, 0))
        while not store.entered.is_set():
            loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        store.go_on.set()
        wait_until(lambda: file.mincore()[0], "the page")
        wait_all_read(file)
        assert not task.done()
        assert run(file.pread_async(PAGE, 0)) == DATA[:PAGE]
        file.close()
        assert_nothing_is_held(cache)
        task._log_destroy_pending = False
        task.get_coro().close()
        assert caplog.text == ""

    def test_at_random_leaves_the_engine_sane(self, make_cache, rng):
        cache = make_cache("512KiB")

        async def reader(file):
            for _ in range(20):
                offset = rng.randrange(len(DATA))
                read = asyncio.create_task(file.pread_async(20_000, offset))
                await asyncio.sleep(rng.choice([0, 0, 0.0005]))
                if rng.random() < 0.5:
                    read.cancel()
                try:
                    assert await read == DATA[offset : offset + 20_000]
                except asyncio.CancelledError:
                    pass

        async def main(file):
            await asyncio.gather(*[reader(file) for _ in range(10)])

        with cache.open(CountingStore(DATA)) as file:
            run(main(file))
            wait_until(lambda: file.inode.wait_idle(PATIENCE_S), "background reads")
            assert file.pread(len(DATA), 0) == DATA
            wait_all_read(file)
