"""No two threads in one instance of a file system that is not for threads: neither two of the cache's, nor one of the
cache's beside its user. Seen by an instance that waits inside each call for a second one."""

import asyncio
import gc
import os
import pickle
import threading
import weakref

import pytest
from support import PAGE, Crew, pages_of

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper  # noqa: E402
from fsspec.implementations.dirfs import DirFileSystem  # noqa: E402
from fsspec.implementations.reference import ReferenceFileSystem  # noqa: E402
from support.watched_fs import WATCHED, watched  # noqa: E402

import pagecache  # noqa: E402
import pagecache.adapters.fsspec  # noqa: E402
from pagecache.adapters.fsspec_cache_type import PageCacheType  # noqa: E402
from pagecache.stores import fsspec_instances, fsspec_kinds  # noqa: E402
from pagecache.stores.fsspec import FsspecStore, store_of_url  # noqa: E402

NR_PAGES = 64
DATA = {name: pages_of((NR_PAGES + number) * PAGE + 5, 8000 * number) for number, name in enumerate("abc")}
ME = threading.current_thread()


@pytest.fixture(autouse=True)
def kind():
    with watched({place + name: data for name, data in DATA.items() for place in ("", "dir/", "top/dir/")}) as found:
        yield found


@pytest.fixture
def fs(kind):
    return kind(skip_instance_cache=True)


@pytest.fixture
def remade(monkeypatch):
    """Say that the class may be made anew."""
    monkeypatch.setitem(fsspec_kinds.REMADE, WATCHED, "for this test")
    fsspec_instances._connections.clear()
    yield
    fsspec_instances._connections.clear()


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


@pytest.fixture
def default(cache):
    with pagecache.using(cache):
        yield cache


def read_beside(file, name, beside):
    """Read a file as libraries do, small and large reads, and call `beside` in between."""
    data, size = DATA[name], len(DATA[name])
    for start in range(0, size // 2, 3000):
        assert file.pread(3000, start) == data[start : start + 3000]
        if start % 42000 == 0:
            beside()
    file.prefetch(size // 2, size // 4)
    beside()
    ranges = [(5000, start) for start in range(size // 2, size, 20000)]
    assert file.preadv_many(ranges) == [data[start : start + nbytes] for nbytes, start in ranges]
    beside()
    assert file.pread(size, 0) == data
    file.inode.wait_idle(30)


def calls_of_a_user(fs, name="b", path="b"):
    """Return what a user of the file system does beside the cache."""

    def beside():
        assert fs.cat_file(path, 100, 20000) == DATA[name][100:20000]
        assert fs.info(path)["size"] == len(DATA[name])

    return beside


class TestUsersInstance:
    def test_is_called_in_the_threads_of_its_user_alone(self, cache, fs):
        read_beside(cache.open(FsspecStore(fs, "a")), "a", calls_of_a_user(fs))
        assert (fs.threads, fs.most_inside) == ({ME}, 1)

    def test_whatever_way_it_is_read(self, cache, fs):
        file = cache.open(FsspecStore(fs, "a"))
        beside = calls_of_a_user(fs)

        async def asynchronously():
            first = asyncio.ensure_future(file.pread_async(len(DATA["a"]), 0))
            await asyncio.sleep(0)
            beside()
            assert await first == DATA["a"]
            cache.drop_caches()
            await asyncio.gather(file.prefetch_async(), file.pread_async(9, 9))

        asyncio.run(asynchronously())
        cache.drop_caches()
        file.fadvise(pagecache.FADV_WILLNEED)
        beside()
        cache.drop_caches()
        mapped = file.mmap()
        for start in range(0, len(DATA["a"]), PAGE):
            assert mapped[start] == DATA["a"][start]
        beside()
        mapped.close()
        with cache.open(FsspecStore(fs, "b"), recheck=True, on_change="reload") as checked:
            assert checked.read() == DATA["b"]
            assert asyncio.run(checked.pread_async(10, 10)) == DATA["b"][10:20]
        assert (fs.threads, fs.most_inside) == ({ME}, 1)

    def test_is_called_by_one_of_the_threads_that_read_through_the_cache_at_a_time(self, make_cache, fs):
        caches = [make_cache("4MiB"), make_cache("1MiB")]
        files = [(one.open(FsspecStore(fs, name)), name) for one in caches for name in DATA]
        fs.threads.clear()
        crew = Crew(*[lambda file=file, name=name: read_beside(file, name, lambda: None) for file, name in files])
        crew.join_well()
        assert fs.most_inside == 1
        assert fs.threads <= set(crew.threads)

    def test_is_not_called_by_a_thread_that_reads_through_another_instance(self, cache, kind):
        """A page that is missing is read by the thread that wants it, from the instance that it was opened on."""
        mine, others = kind(skip_instance_cache=True), kind(skip_instance_cache=True)
        file = cache.open(FsspecStore(mine, "a"))
        mine.threads.clear()

        def read():
            with cache.open(FsspecStore(others, "a")) as opened:
                assert opened.pread(len(DATA["a"]), 0) == DATA["a"]

        crew = Crew(read)
        crew.join_well()
        assert file.pread(PAGE, 0) == DATA["a"][:PAGE]
        assert (mine.threads, others.threads) == ({ME}, set(crew.threads))

    def test_two_files_of_one_instance_share_their_pages(self, cache, fs):
        with cache.open(FsspecStore(fs, "a")) as one, cache.open(FsspecStore(fs, "a")) as other:
            assert one.pread(len(DATA["a"]), 0) == DATA["a"]
            nr_calls = fs.nr_calls
            assert other.pread(len(DATA["a"]), 0) == DATA["a"]
            assert fs.nr_calls == nr_calls

    def test_goes_when_its_user_lets_it_go(self, cache, kind):
        fs = kind(skip_instance_cache=True)
        with cache.open(FsspecStore(fs, "a")) as file:
            assert file.pread(10, 0) == DATA["a"][:10]
        kind.instances.clear()
        gone = weakref.ref(fs)
        del fs, file
        cache.drop_caches()
        cache.forget("fsspec:", whole=False)
        gc.collect()
        assert gone() is None

    def test_a_url_of_an_unknown_class_is_read_in_the_callers_threads_too(self, cache, kind):
        def open_and_read():
            with cache.open("watched://a") as file:
                read_beside(file, "a", calls_of_a_user(fsspec.filesystem("watched")))

        crew = Crew(open_and_read, open_and_read)
        crew.join_well()
        for fs in kind.instances:
            assert fs.most_inside <= 1
            assert len(fs.threads) <= 1


class TestOptions:
    def test_a_file_system_that_is_said_to_be_for_threads_is_read_in_parallel(self, cache, fs):
        with cache.open(FsspecStore(fs, "a", thread_safe=True)) as file:
            file.preadv_many([(PAGE, start) for start in range(0, len(DATA["a"]), 20 * PAGE)], hole_size=0)
            file.inode.wait_idle(30)
        assert fs.most_inside > 1
        assert ME not in fs.threads or len(fs.threads) > 1

    def test_through_a_url(self, cache, kind):
        with cache.open("watched://a", thread_safe=True) as file:
            file.preadv_many([(PAGE, start) for start in range(0, len(DATA["a"]), 20 * PAGE)], hole_size=0)
            file.inode.wait_idle(30)
        assert max(fs.most_inside for fs in kind.instances) > 1

    def test_through_the_chained_file_system(self, default, fs):
        chained = fsspec.filesystem("pagecache", fs=fs, thread_safe=True, skip_instance_cache=True)
        file = chained.open("a")
        file.preadv_many([(PAGE, start) for start in range(0, len(DATA["a"]), 20 * PAGE)], hole_size=0)
        file.inode.wait_idle(30)
        assert fs.most_inside > 1

    def test_through_the_cache_of_a_file(self, default, fs):
        def read(**options):
            with fs.open("a", cache_type="pagecache", cache_options=options) as file:
                for start in range(0, len(DATA["a"]), 3000):
                    file.seek(start)
                    assert file.read(3000) == DATA["a"][start : start + 3000]
                file.cache._file.inode.wait_idle(30)

        read()
        assert (fs.threads, fs.most_inside) == ({ME}, 1)
        read(thread_safe=True)
        assert len(fs.threads) > 1

    def test_a_known_one_that_is_said_to_be_for_no_threads_is_read_by_its_user(self, cache):
        memory = fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)
        memory.pipe_file("/a", DATA["a"])
        assert FsspecStore(memory, "/a").background_reads
        assert not FsspecStore(memory, "/a", thread_safe=False).background_reads
        assert not store_of_url("memory://a", thread_safe=False, recheck=False).background_reads

    def test_an_instance_of_its_own_is_read_in_the_background_one_call_at_a_time(self, cache, fs):
        with cache.open(FsspecStore(fs, "a", exclusive=True)) as file:
            read_beside(file, "a", lambda: None)
        assert fs.most_inside == 1
        assert len(fs.threads) > 1

    @pytest.mark.parametrize("thread_safe", [None, True, False])
    def test_they_go_with_the_store_to_other_processes_and_copies(self, fs, thread_safe):
        store = pickle.loads(pickle.dumps(FsspecStore(fs, "a", thread_safe=thread_safe)))
        assert store.background_reads == bool(thread_safe)
        assert (store.parallel_requests > 1) == bool(thread_safe)


class TestOwnInstance:
    def test_is_made_like_the_users_and_called_by_one_thread_at_a_time(self, cache, fs, kind, remade):
        files = [(cache.open(FsspecStore(fs, name)), name) for name in DATA]
        (own,) = [other for other in kind.instances if other is not fs]
        read_beside(files[0][0], "a", calls_of_a_user(fs))
        Crew(*[lambda f=file, n=name: read_beside(f, n, lambda: None) for file, name in files[1:]]).join_well()
        assert (fs.threads, fs.most_inside) == ({ME}, 1)
        assert own.most_inside == 1
        assert any(thread.name.startswith("pagecache") for thread in own.threads)
        assert own is not fs

    def test_is_one_for_all_that_are_alike(self, cache, kind, remade):
        systems = [kind(skip_instance_cache=True), kind(skip_instance_cache=True), kind(7, skip_instance_cache=True)]
        stores = [FsspecStore(fs, "a") for fs in systems]
        stores += [store_of_url("watched://a"), store_of_url("watched://a", number=7)]
        kept = [store._instance for store in stores]
        assert kept[0] is kept[1] is kept[3]
        assert kept[2] is not kept[0]
        assert len(kind.instances) == len(systems) + 3  # `7` and `number=7` are written differently

    def test_of_a_url_is_no_others(self, cache, kind, remade):
        mine = fsspec.filesystem("watched")
        with cache.open("watched://a") as file:
            read_beside(file, "a", calls_of_a_user(mine))
        (own,) = [other for other in kind.instances if other is not mine]
        assert (mine.threads, mine.most_inside, own.most_inside) == ({ME}, 1, 1)
        assert fsspec.filesystem("watched") is mine

    def test_that_cannot_be_made_is_done_without(self, cache, fs, kind, remade, monkeypatch):
        def refuse(*args, **options):
            raise ConnectionRefusedError("one is enough")

        monkeypatch.setattr(kind, "__init__", refuse)
        read_beside(cache.open(FsspecStore(fs, "a")), "a", calls_of_a_user(fs))
        assert (fs.threads, fs.most_inside) == ({ME}, 1)

    def test_is_not_made_from_arguments_that_are_shared(self, cache, kind, remade):
        fs = kind(connection=object(), skip_instance_cache=True)
        read_beside(cache.open(FsspecStore(fs, "a")), "a", calls_of_a_user(fs))
        assert kind.instances == [fs]
        assert (fs.threads, fs.most_inside) == ({ME}, 1)

    def test_is_not_made_of_a_class_of_ones_own(self, cache, kind, remade):
        class Mine(kind):
            pass

        fs = Mine(skip_instance_cache=True)
        read_beside(cache.open(FsspecStore(fs, "a")), "a", calls_of_a_user(fs))
        assert kind.instances == [fs]

    @pytest.mark.parametrize("error", [EOFError("half an answer"), KeyboardInterrupt(), OSError(5, "reset")], ids=repr)
    def test_after_a_call_that_did_not_end_well_another_one_is_made(self, cache, fs, kind, remade, error):
        store = FsspecStore(fs, "a")
        first = kind.instances[-1]
        first.fails = error
        with pytest.raises(type(error) if isinstance(error, KeyboardInterrupt) else OSError):
            store.refresh()
        with cache.open(store) as file:
            assert file.pread(len(DATA["a"]), 0) == DATA["a"]
        assert len(kind.instances) == 3
        assert kind.instances[-1].most_inside == 1

    def test_an_answer_is_no_reason_for_that(self, cache, fs, kind, remade):
        with pytest.raises(FileNotFoundError):
            FsspecStore(fs, "nothing")
        with cache.open(FsspecStore(fs, "a")) as file:
            assert file.pread(10, 0) == DATA["a"][:10]
        assert len(kind.instances) == 2

    def test_a_store_in_another_process_makes_one_there(self, cache, fs, kind, remade):
        store = FsspecStore(fs, "a")
        fsspec_instances._connections.clear()  # as in a process that has not opened it yet
        again = pickle.loads(pickle.dumps(store))
        assert again._instance is not store._instance
        assert again.background_reads
        assert again.key == store.key
        assert len({id(other) for other in kind.instances}) == 4  # what was pickled is fsspec's own again

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_a_child_makes_one_of_its_own_and_waits_for_no_lock_of_the_parent(self, cache, fs, kind, remade):
        store = FsspecStore(fs, "a")
        own = kind.instances[-1]
        with store._instance.turn():
            child = os.fork()
            if child == 0:
                try:
                    with pagecache.PageCache("1MiB") as other, other.open(store) as file:
                        good = file.pread(len(DATA["a"]), 0) == DATA["a"]
                    made = kind.instances[-1]
                    os._exit(0 if good and made is not own and own.nr_calls == nr_calls_of(own) else 1)
                finally:
                    os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def nr_calls_of(fs):
    """Return how often an instance was called when this module last looked: the one `info` of the parent."""
    return 1


def over_directory(fs):
    return DirFileSystem("dir", fs), "a"


def over_wrapper(fs):
    return AsyncFileSystemWrapper(fs), "a"


def over_wrapper_for_a_loop(fs):
    return AsyncFileSystemWrapper(fs, asynchronous=True), "a"


def over_directory_of_wrapper(fs):
    return DirFileSystem("dir", AsyncFileSystemWrapper(fs)), "a"


def over_reference(fs):
    references = {"a": ["watched://a"], "part": ["watched://a", 0, 5]}
    return ReferenceFileSystem(references, fs={"watched": AsyncFileSystemWrapper(fs)}), "a"


def over_simplecache(fs):
    return fsspec.filesystem("simplecache", fs=fs), "a"


def over_filecache(fs):
    return fsspec.filesystem("filecache", fs=fs), "a"


def over_blockcache(fs):
    return fsspec.filesystem("blockcache", fs=fs), "a"


def over_pagecache(fs):
    return fsspec.filesystem("pagecache", fs=fs, skip_instance_cache=True), "a"


def over_directory_of_directory(fs):
    return DirFileSystem("dir", DirFileSystem("top", fs)), "a"


LAYERS = [over_directory, over_wrapper, over_wrapper_for_a_loop, over_directory_of_wrapper, over_reference,
          over_simplecache, over_filecache, over_blockcache, over_pagecache, over_directory_of_directory]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
class TestLayers:
    def test_the_instance_below_is_called_one_at_a_time_while_a_user_waits(self, cache, fs, layer):
        above, path = layer(fs)
        below = calls_of_a_user(fs)
        read_beside(cache.open(FsspecStore(above, path)), "a", below)
        assert fs.most_inside == 1

    def test_also_where_it_is_read_directly_by_another_thread(self, cache, fs, layer):
        above, path = layer(fs)
        files = [(cache.open(FsspecStore(above, path)), "a"), (cache.open(FsspecStore(fs, "b")), "b")]
        Crew(*[lambda f=file, n=name: read_beside(f, n, lambda: None) for file, name in files]).join_well()
        assert fs.most_inside == 1

    def test_through_the_chained_file_system(self, default, fs, layer):
        above, path = layer(fs)
        chained = fsspec.filesystem("pagecache", fs=above, skip_instance_cache=True)
        below = calls_of_a_user(fs)
        for start in range(0, len(DATA["a"]), 40000):
            assert chained.cat_file(path, start, start + 40000) == DATA["a"][start : start + 40000]
            below()
        chained.invalidate_cache()
        read_beside(chained.open(path), "a", below)
        assert chained.info(path)["size"] == len(DATA["a"])
        assert fs.most_inside == 1


class TestChainedFileSystem:
    def test_threads_that_list_read_and_write_take_turns(self, default, fs):
        chained = fsspec.filesystem("pagecache", fs=fs, skip_instance_cache=True)

        def write():
            for number in range(5):
                chained.pipe_file(f"new{number}", b"new")
                assert chained.cat_file(f"new{number}") == b"new"

        def look():
            for _ in range(5):
                assert chained.exists("a")
                assert chained.info("b")["size"] == len(DATA["b"])
                assert "c" in chained.ls("", detail=False)

        Crew(write, look, lambda: read_beside(chained.open("c"), "c", lambda: None)).join_well()
        assert fs.most_inside == 1

    def test_of_a_protocol_reads_from_an_instance_that_the_user_cannot_get(self, default, kind, remade):
        chained = fsspec.filesystem("pagecache", target_protocol="watched", skip_instance_cache=True)
        read_beside(chained.open("a"), "a", calls_of_a_user(chained.fs))
        assert chained.fs is chained.fs
        assert all(fs.most_inside == 1 for fs in kind.instances)
        assert chained.fs.threads == {ME}
        assert chained.instance.fs is not chained.fs

    def test_what_is_written_is_seen_in_listings(self, default, kind, remade):
        chained = fsspec.filesystem("pagecache", target_protocol="watched", skip_instance_cache=True)
        assert not chained.exists("new")
        chained.pipe_file("new", b"new")
        assert "new" in chained.ls("", detail=False)
        assert chained.cat_file("new") == b"new"

    def test_asynchronous_calls_of_a_users_instance_are_made_in_the_thread_of_the_loop(self, default, fs):
        async def use():
            chained = fsspec.filesystem("pagecache", fs=fs, asynchronous=True, skip_instance_cache=True)
            reading = asyncio.gather(chained._cat_file("a"), chained._cat_ranges(["b", "c"], [0, 5], [9, 5000]))
            await asyncio.sleep(0)
            calls_of_a_user(fs)()
            assert await reading == [DATA["a"], [DATA["b"][:9], DATA["c"][5:5000]]]
            assert (await chained._info("a"))["size"] == len(DATA["a"])

        asyncio.run(use())
        assert (fs.threads, fs.most_inside) == ({ME}, 1)

    def test_invalidate_cache_forgets_what_was_read_in_the_callers_threads(self, default, fs, kind):
        chained = fsspec.filesystem("pagecache", fs=fs, recheck=False, skip_instance_cache=True)
        assert chained.cat_file("a") == DATA["a"]
        kind.objects["a"] = b"other"
        assert chained.cat_file("a") == DATA["a"]
        chained.invalidate_cache("a")
        assert chained.cat_file("a") == b"other"


class TestFetchers:
    def test_a_function_that_reads_is_called_by_the_thread_that_reads_alone(self, default, fs):
        reading = fs.open("a", cache_type="none")
        kept = PageCacheType(PAGE, lambda start, end: reading._fetch_range(start, end), len(DATA["a"]))
        beside = calls_of_a_user(fs)
        for start in range(0, len(DATA["a"]), 3000):
            assert kept._fetch(start, start + 3000) == DATA["a"][start : start + 3000]
            if start % 30000 == 0:
                beside()
        assert (fs.threads, fs.most_inside) == ({ME}, 1)
        kept.close()
