"""obstore blocks in calls of its own: what is given up there keeps no page, no frame, and not the main thread."""

import asyncio
import contextlib
import os
import signal
import threading

import pytest
from support import PAGE, PATIENCE_S, Crew, assert_nothing_is_held, pages_of, wait_until
from support.http_server import ObjectServer

from pagecache.requests import speed
from pagecache.stores.obspec import ObspecStore

stores = pytest.importorskip("obstore.store", reason="obstore is not installed")

DATA = pages_of(16 * PAGE)


class HangingServer(ObjectServer):
    """The first range that is asked for once it is armed is answered at the end of the test, with something else."""

    armed = False

    def __init__(self):
        self.entered, self.end, self.over = threading.Event(), threading.Event(), threading.Event()
        super().__init__()

    def alter(self, answer):
        if answer.is_range_request and self.armed and not self.entered.is_set():
            self.entered.set()
            answer.body = b"\xee" * len(answer.body)
            assert self.end.wait(PATIENCE_S), "the test did not end"
            self.over.set()
        super().alter(answer)


@pytest.fixture
def server():
    with HangingServer() as running:
        running.put("object", DATA)
        yield running
        running.end.set()


@pytest.fixture
def file(make_cache, server):
    store = stores.HTTPStore(server.url(""), client_options={"allow_http": True}, retry_config={"max_retries": 0})
    cache = make_cache(PAGE)  # a single frame: what is given up has to let go of it
    with cache.open(ObspecStore(store, "object")) as file:
        file.is_random = True
        server.armed = True
        yield file
        server.end.set()
        assert server.over.wait(PATIENCE_S)
        for page in range(16):
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
    assert_nothing_is_held(cache)


def test_a_cancelled_read(file, server):
    async def main():
        read = asyncio.ensure_future(file.pread_async(10, 5 * PAGE))
        await asyncio.to_thread(server.entered.wait, PATIENCE_S)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        return await file.pread_async(10, 5 * PAGE)

    assert asyncio.run(main()) == DATA[5 * PAGE : 5 * PAGE + 10]
    assert file.pread(PAGE, 9 * PAGE) == DATA[9 * PAGE : 10 * PAGE]
    assert not server.over.is_set()


def test_a_prefetch(file, server, monkeypatch):
    monkeypatch.setattr(speed, "PATIENCE_MIN_S", 0.0)
    monkeypatch.setattr(speed, "PATIENCE_FACTOR", 0)
    prefetch = file.prefetch(5 * PAGE, PAGE)
    assert server.entered.wait(PATIENCE_S)
    assert file.pread(10, 5 * PAGE) == DATA[5 * PAGE : 5 * PAGE + 10]
    assert not server.over.is_set()
    server.end.set()
    with contextlib.suppress(OSError):
        prefetch.wait()


def test_ctrl_c(file, server):
    """The main thread has another one call obstore, which looks for no signals."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        crew = Crew(lambda: server.entered.wait(PATIENCE_S) and os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            file.pread(10, 5 * PAGE)
            pytest.fail("the read came back")
        crew.join_well()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not server.over.is_set()
    assert file.pread(10, 5 * PAGE) == DATA[5 * PAGE : 5 * PAGE + 10]


def test_files_in_memory_are_read_by_the_main_thread_itself(make_cache):
    """Nothing hangs there, and the way through another thread would be most of what it takes."""
    store = stores.MemoryStore()
    store.put("object", DATA)
    threads = []

    class Noting(ObspecStore):
        def read_range(self, *args):
            threads.append(threading.current_thread())
            return super().read_range(*args)

    with make_cache("1MiB").open(Noting(store, "object")) as file:
        assert file.pread(10, 0) == DATA[:10]
        wait_until(lambda: not file.mapping.nr_inflight, "readahead")
    assert threading.main_thread() in threads
