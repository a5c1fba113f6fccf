"""A wrapped Zarr store that is not open yet: its first user opens it, once, whatever is asked, from any thread."""

import asyncio
import threading
import zipfile

import pytest
from support import Crew

zarr = pytest.importorskip("zarr", minversion="3")
fsspec = pytest.importorskip("fsspec", minversion="2024.12")

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore, WrapperStore, ZipStore  # noqa: E402

from pagecache.adapters.zarr import PageCacheStore  # noqa: E402

PROTOTYPE = default_buffer_prototype()
VALUES = {f"a/{number}": bytes([number]) * 5000 for number in range(8)}


def buffer(data):
    return PROTOTYPE.buffer.from_bytes(data)


def local(root, mode="r"):
    return LocalStore(root / "tree", read_only=mode == "r")


def archive(root, mode="r"):
    return ZipStore(root / "archive.zip", mode=mode)


def wrapped(root, mode="r"):
    fs = AsyncFileSystemWrapper(fsspec.filesystem("file", auto_mkdir=True), asynchronous=True)
    return FsspecStore(fs, path=str(root / "tree"), read_only=mode == "r")


def logged(root, mode="r"):
    return LoggingStore(archive(root, mode), log_level="ERROR")


STORES = [local, archive, wrapped, logged]


@pytest.fixture
def root(tmp_path):
    """A directory with the values as files, and in an archive."""
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as packed:
        for key, value in VALUES.items():
            (tmp_path / "tree" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / key).write_bytes(value)
            packed.writestr(key, value)
    return tmp_path


async def collected(stream):
    return sorted([entry async for entry in stream])


QUESTIONS = {
    "get": (lambda store: sync(store.get("a/3", PROTOTYPE)).to_bytes(), VALUES["a/3"]),
    "get_sync": (lambda store: store.get_sync("a/3").to_bytes(), VALUES["a/3"]),
    "get_partial_values": (
        lambda store: sync(store.get_partial_values(PROTOTYPE, [("a/3", None)]))[0].to_bytes(), VALUES["a/3"],
    ),
    "exists": (lambda store: (sync(store.exists("a/3")), sync(store.exists("a/9"))), (True, False)),
    "getsize": (lambda store: sync(store.getsize("a/3")), 5000),
    "getsize_prefix": (lambda store: sync(store.getsize_prefix("a/")), 40_000),
    "is_empty": (lambda store: (sync(store.is_empty("a")), sync(store.is_empty("b"))), (False, True)),
    "list": (lambda store: sync(collected(store.list())), sorted(VALUES)),
    "list_prefix": (lambda store: sync(collected(store.list_prefix("a/"))), sorted(VALUES)),
    "list_dir": (lambda store: sync(collected(store.list_dir("a"))), sorted(key[2:] for key in VALUES)),
    "close": (lambda store: store.close(), None),
    "with": (lambda store: store.__exit__(None, None, None), None),
}  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("make", STORES)
def test_whatever_is_asked_first(root, make_cache, make, question):
    store = PageCacheStore(make(root), make_cache("1MiB"))
    ask, answer = QUESTIONS[question]
    assert ask(store) == answer
    assert QUESTIONS["get"][0](store) == VALUES["a/3"]
    store.close()


CHANGES = {
    "set": lambda store: sync(store.set("b/1", buffer(b"value"))),
    "set_sync": lambda store: store.set_sync("b/1", buffer(b"value")),
    "_set_many": lambda store: sync(store._set_many([("b/1", buffer(b"value"))])),
    "set_if_not_exists": lambda store: sync(store.set_if_not_exists("b/1", buffer(b"value"))),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", STORES)
def test_whatever_is_changed_first(root, make_cache, make, change):
    store = PageCacheStore(make(root, "a"), make_cache("1MiB"))
    CHANGES[change](store)
    assert sync(store.get("b/1", PROTOTYPE)).to_bytes() == b"value"
    store.close()


@pytest.mark.parametrize("way", ["delete", "delete_sync", "delete_dir", "clear"])
@pytest.mark.parametrize("make", [local, wrapped])
def test_whatever_is_removed_first(root, make_cache, make, way):
    store = PageCacheStore(make(root, "a"), make_cache("1MiB"))
    arguments = {"delete": ("a/3",), "delete_sync": ("a/3",), "delete_dir": ("a",), "clear": ()}[way]
    done = getattr(store, way)(*arguments)
    if done is not None:
        sync(done)
    assert sync(store.get("a/3", PROTOTYPE)) is None


class Counting(WrapperStore):
    """Counts how often it is opened, and how many do so at once; the first opening waits for others to come."""

    def __init__(self, store, patience=None):
        super().__init__(store)
        self.nr_opened = 0
        self.patience = patience

    async def _open(self):
        self.nr_opened += 1
        if self.patience is not None:
            await asyncio.to_thread(self.patience)
        await super()._open()


@pytest.mark.parametrize("make", STORES)
def test_by_threads_and_event_loops_at_once(root, make_cache, make):
    """A third of such runs failed with "store is already open" where `LocalStore` opened itself."""
    cache = make_cache("4MiB")

    def in_loop(store, key):
        return asyncio.run(_get(store, key))

    for _ in range(10):
        store = PageCacheStore(make(root), cache)
        calls = [
            *[lambda store=store, key=key: store.get_sync(key).to_bytes() for key in list(VALUES)[:4]],
            *[lambda store=store, key=key: in_loop(store, key) for key in list(VALUES)[4:]],
        ]
        assert Crew(*calls).join_well() == list(VALUES.values())
        store.close()


async def _get(store, key):
    return (await store.get(key, PROTOTYPE)).to_bytes()


def test_is_opened_once_by_those_who_come_together(make_cache):
    others = threading.Barrier(5)
    inner = Counting(MemoryStore({"k": buffer(b"value")}), patience=lambda: others.wait(20))
    store = PageCacheStore(inner, make_cache("1MiB"))

    async def many():
        return await asyncio.gather(*[store.exists(f"{number}") for number in range(8)])

    def come():
        others.wait(20)
        return store.get_sync("k").to_bytes()

    crew = Crew(*[come] * 4)
    assert sync(many()) == [False] * 8
    assert crew.join_well() == [b"value"] * 4
    assert inner.nr_opened == 1


def test_one_that_is_opened_by_its_owner_meanwhile(make_cache):
    inner = MemoryStore({"k": buffer(b"value")})
    outer = Counting(inner, patience=lambda: sync(inner._open()))
    assert QUESTIONS["exists"][0](PageCacheStore(outer, make_cache("1MiB"))) == (False, False)


def _error_of(call, *args):
    try:
        return call(*args)
    except Exception as error:
        return type(error).__name__


def test_one_that_cannot_be_opened_yet(tmp_path, make_cache):
    store = PageCacheStore(LocalStore(tmp_path / "tree", read_only=True), make_cache("1MiB"))
    for ask, _ in (QUESTIONS["get"], QUESTIONS["get_sync"], QUESTIONS["exists"], QUESTIONS["list"]):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            ask(store)
    assert Crew(*[lambda: _error_of(store.get_sync, "a/3")] * 4).join_well() == ["FileNotFoundError"] * 4
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "3").write_bytes(VALUES["a/3"])
    assert QUESTIONS["get"][0](store) == VALUES["a/3"]


def test_waiters_go_on_when_the_first_gives_up(make_cache):
    go_on = threading.Event()
    inner = Counting(MemoryStore({"k": buffer(b"value")}), patience=lambda: go_on.wait(20))
    store = PageCacheStore(inner, make_cache("1MiB"))

    async def scene():
        tasks = [asyncio.ensure_future(store.exists("k")) for _ in range(3)]
        while not inner.nr_opened:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = sync(scene())
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [True, True]
