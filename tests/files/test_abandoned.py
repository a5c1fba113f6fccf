"""A read that was cancelled keeps no page: its request ends, and the next reader makes one of its own."""

import asyncio
import threading

import pytest
from support import PAGE, PATIENCE_S, Crew, assert_nothing_is_held, wait_until
from support.http_server import ObjectServer

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

DATA = bytes(range(256)) * 16 * 8


class HangingServer(ObjectServer):
    """The first range that is asked for never comes, until the end of the test."""

    def __init__(self):
        self.entered, self.end = threading.Event(), threading.Event()
        super().__init__()

    def alter(self, answer):
        if answer.is_range_request and self.armed and not self.entered.is_set():
            self.entered.set()
            self.was_waited_for = not self.end.wait(PATIENCE_S)
        super().alter(answer)

    armed = was_waited_for = False


@pytest.fixture
def server():
    with HangingServer() as running:
        yield running
        running.end.set()


@pytest.fixture
def file(make_cache, server):
    with make_cache("1MiB").open(server.put("object", DATA)) as opened:
        server.armed = True
        yield opened


def read_bytes(file):
    return file.pread_async(100, PAGE)


async def read_into(file):
    return await file.preadinto_async(bytearray(100), PAGE)


async def cancelled(server, awaitable, way):
    """Have a read that hangs cancelled, by its task or by a time limit."""
    if way == "task":
        task = asyncio.ensure_future(awaitable)
        await asyncio.to_thread(server.entered.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                task = asyncio.ensure_future(asyncio.to_thread(server.entered.wait, PATIENCE_S))
                task.add_done_callback(lambda _: limit.reschedule(0))
                await awaitable


@pytest.mark.parametrize("way", ["task", "time limit"])
@pytest.mark.parametrize("read", [read_bytes, read_into])
def test_the_next_reader_asks_for_itself(file, server, way, read):
    async def main():
        await cancelled(server, read(file), way)
        return await file.pread_async(100, PAGE)

    assert asyncio.run(main()) == DATA[PAGE : PAGE + 100]
    assert not server.was_waited_for
    assert_nothing_is_held(file.cache)


def test_who_waits_for_the_same_page_reads_it_then(file, server):
    """Its own request, as it is not known what became of the other."""

    async def main():
        await cancelled(server, file.pread_async(100, PAGE), "task")

    crew = Crew(lambda: asyncio.run(main()), lambda: server.entered.wait(PATIENCE_S) and file.pread(100, PAGE))
    assert crew.join_well()[1] == DATA[PAGE : PAGE + 100]
    assert not server.was_waited_for


def test_a_read_of_the_file_system_too(make_cache, server):
    import pagecache.adapters.fsspec

    url = server.put("object", DATA)
    with pagecache.using(make_cache("1MiB")):
        fs = fsspec.filesystem("pagecache", target_protocol="http", skip_instance_cache=True)
        assert fs.info(url)["size"] == len(DATA)
        server.armed = True

        async def main():
            await cancelled(server, fs._cat_file(url, 0, 100), "task")
            return await fs._cat_file(url, 0, 100)

        assert asyncio.run(main()) == DATA[:100]
        assert not server.was_waited_for


def test_a_read_that_is_not_cancelled_is_as_ever(file, server):
    server.entered.set()

    async def main():
        return await asyncio.gather(*(file.pread_async(10, page * PAGE) for page in range(8)))

    assert asyncio.run(main()) == [DATA[page * PAGE : page * PAGE + 10] for page in range(8)]
    wait_until(lambda: not file.mapping.nr_inflight, "requests to end")
