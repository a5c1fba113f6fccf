"""Stores without `background_reads`: only threads that read, or prefetch, enter them, and readahead waits for itself."""

import asyncio
import threading

import pytest
from support import PAGE, Crew, Store, assert_nothing_is_held, pages_of, read

import pagecache
from pagecache.stores.base import hints_of

NR_PAGES = 256
DATA = pages_of(NR_PAGES * PAGE)
FRAMES = (1, 2, 3, 64, 1024)


class ForegroundStore(Store):
    """Notes which threads enter it."""

    background_reads = False
    parallel_requests = 4
    preferred_request = 8 * PAGE
    max_request = 8 * PAGE

    def __init__(self, data=DATA, key="foreground"):
        super().__init__(data, key)
        self.threads = set()
        self.fails_at = None

    def answer(self, offset, buffers):
        self.threads.add(threading.current_thread())
        if self.fails_at is not None and offset <= self.fails_at < offset + sum(map(len, buffers)):
            raise OSError(5, "it fails here")
        return super().answer(offset, buffers)


@pytest.fixture(params=FRAMES, ids=lambda frames: f"{frames} frames")
def cache(request, make_cache):
    return make_cache(request.param * PAGE)


@pytest.fixture
def store():
    found = ForegroundStore()
    yield found
    assert found.threads == {threading.current_thread()}


WAYS = {
    "scan": lambda file: b"".join(file.pread(PAGE, page * PAGE) for page in range(NR_PAGES)),
    "read at the position": lambda file: b"".join(iter(lambda: file.read(5000), b"")),
    "one read": lambda file: file.pread(len(DATA), 0),
    "backwards": lambda file: b"".join([file.pread(PAGE, page * PAGE) for page in reversed(range(NR_PAGES))][::-1]),
    "many ranges": lambda file: b"".join(file.preadv_many([(3 * PAGE, at) for at in range(0, len(DATA), 3 * PAGE)])),
    "prefetch": lambda file: (file.prefetch().wait(), file.pread(len(DATA), 0))[1],
    "advice": lambda file: (file.fadvise(pagecache.FADV_WILLNEED), file.pread(len(DATA), 0))[1],
    "views": lambda file: read(file, "iter_views", len(DATA), 0),
    "map": lambda file: b"".join(file.mmap()[page * PAGE : (page + 1) * PAGE] for page in range(NR_PAGES)),
    "pread_async": lambda file: asyncio.run(file.pread_async(len(DATA), 0)),
    "prefetch_async": lambda file: (asyncio.run(file.prefetch_async()), file.pread(len(DATA), 0))[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_only_the_reader_enters_the_store(cache, store, way):
    with cache.open(store) as file:
        assert WAYS[way](file) == DATA


@pytest.mark.parametrize("options", [{"recheck": True}, {"on_change": "reload"}], ids=str)
def test_so_do_files_that_look_at_the_version(make_cache, store, options):
    with make_cache("4MiB").open(store, **options) as file:
        assert WAYS["scan"](file) == DATA
        file.cache.drop_caches()
        assert asyncio.run(file.pread_async(len(DATA), 0)) == DATA
        file.cache.drop_caches()
        buffer = bytearray(len(DATA))
        assert asyncio.run(file.preadinto_async(buffer, 0)) == len(DATA)
        assert buffer == DATA


def test_each_thread_reads_what_it_wants_itself(make_cache):
    store = ForegroundStore()
    file = make_cache("4MiB").open(store)
    crew = Crew(*[lambda: WAYS["scan"](file)] * 4)
    assert crew.join_well() == [DATA] * 4
    assert store.threads <= set(crew.threads)


def test_readahead_reads_in_large_requests_and_nothing_twice(make_cache, store):
    with make_cache("4MiB").open(store) as file:
        assert WAYS["scan"](file) == DATA
    assert sum(nbytes for _, nbytes in store.requests) == len(DATA)
    assert len(store.requests) < NR_PAGES / 4


def test_what_the_reader_waits_for_comes_first(make_cache, store):
    with make_cache("4MiB").open(store) as file:
        file.pread(40 * PAGE, 0)
        assert [offset for offset, _ in store.requests] == sorted(offset for offset, _ in store.requests)


@pytest.mark.parametrize("way", ["scan", "one read", "many ranges", "prefetch", "map"])
def test_a_failure_is_of_the_page_that_cannot_be_read(make_cache, store, way):
    cache = make_cache("4MiB")
    with cache.open(store) as file:
        store.fails_at = 100 * PAGE
        with pytest.raises(OSError, match="it fails here"):
            WAYS[way](file)
        for page in range(90):
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
        store.fails_at = None
        assert WAYS[way](file) == DATA
    assert_nothing_is_held(cache)


@pytest.mark.parametrize("way", ["scan", "one read", "many ranges", "prefetch", "prefetch_async", "map"])
@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_an_interrupt_ends_the_read_and_holds_nothing(make_cache, store, way, number):
    class Interrupt(BaseException):
        pass

    def interrupt(offset, buffers):
        store.threads.add(threading.current_thread())
        if len(store.requests) == number + 1:
            raise Interrupt
        return Store.answer(store, offset, buffers)

    store.answer = interrupt
    cache = make_cache("4MiB")
    with cache.open(store) as file:
        with pytest.raises(Interrupt):
            WAYS[way](file)
        assert file.inode.wait_idle(1)
        assert WAYS[way](file) == DATA
    assert_nothing_is_held(cache)


def test_a_prefetch_is_done_when_it_returns(make_cache, store):
    with make_cache("4MiB").open(store) as file:
        assert file.prefetch(0, 20 * PAGE).done
        nr_requests = len(store.requests)
        assert file.pread(20 * PAGE, 0) == DATA[: 20 * PAGE]
        assert len(store.requests) == nr_requests


def test_a_store_that_waits_for_the_running_loop_is_read_by_a_worker(make_cache):
    store = ForegroundStore()

    async def read_first():
        store.loop = asyncio.get_running_loop()
        return await file.pread_async(PAGE, 0)

    with make_cache("4MiB").open(store) as file:
        assert asyncio.run(read_first()) == DATA[:PAGE]
    assert store.threads != {threading.current_thread()}


def test_the_hint_is_a_bool():
    store = ForegroundStore()
    assert not hints_of(store).background_reads
    assert hints_of(Store(DATA)).background_reads
    store.background_reads = None
    with pytest.raises(ValueError, match="background_reads"):
        hints_of(store)
