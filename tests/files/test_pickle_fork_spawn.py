"""Files and file systems in other processes: pickled, forked, spawned; each process has a cache of its own."""

import gc
import multiprocessing
import os
import pickle

import pytest
from support import PAGE, PATIENCE_S, Crew, Store, pages_of
from support.http_server import ObjectServer

import pagecache

SIZE = 50 * PAGE + 99
DATA = pages_of(SIZE)
METHODS = ("fork", "spawn")


@pytest.fixture
def server():
    """A server; file systems that earlier tests left are gone: a forked child would wait for each one's event loop."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    for name in ("http", "https", "s3", "memory", "file"):
        if name in fsspec.registry:
            fsspec.registry[name].clear_instance_cache()
    gc.collect()
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("4MiB")) as cache:
        yield cache


class Samples:
    """What a data loader is given: it reads its samples through a file system, a page each."""

    def __init__(self, system, url):
        self.system, self.url = system, url

    def __getitem__(self, number):
        return self.system.cat_file(self.url, number * PAGE, (number + 1) * PAGE)


def read_sample(samples, number, answers):
    """Send a sample, and the process's own budget."""
    try:
        answers.put((number, samples[number], pagecache.default_cache().size, os.getpid()))
    except BaseException as error:
        answers.put((number, repr(error), 0, os.getpid()))


def read_file(packed, answers):
    """Open a pickled file and send where it is and what comes next."""
    with pickle.loads(packed) as file:
        answers.put((file.tell(), file.read(100), file.mode))


def run(method, target, *args, count=1):
    """Run functions in processes, which get a queue for their answers; returns what they send."""
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    given = [tuple(arg(number) if callable(arg) else arg for arg in args) for number in range(count)]
    processes = [context.Process(target=target, args=(*arguments, answers)) for arguments in given]
    for process in processes:
        process.start()
    results = [answers.get(timeout=PATIENCE_S) for _ in processes]
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    return results


class TestPickle:
    def test_position_and_mode_travel_and_contents_do_not(self, cache, data_file):
        path, data = data_file(SIZE)
        with cache.open(path) as file:
            file.seek(4321)
            packed = pickle.dumps(file)
            assert len(packed) < 1000
            with pickle.loads(packed) as again:
                assert (again.tell(), again.mode, again.name) == (4321, "rb", str(path))
                assert again.read(100) == data[4321:4421]
                assert again.inode is file.inode

    @pytest.mark.parametrize("mode", ["r+b", "w+b", "x+b"])
    def test_file_that_was_made_is_not_made_again(self, cache, tmp_path, mode):
        path = tmp_path / "file"
        if mode == "r+b":
            path.write_bytes(DATA)
        with cache.open(path, mode) as file:
            path.write_bytes(DATA)
            with pickle.loads(pickle.dumps(file)) as again:
                assert again.mode == "r+b"
        assert path.read_bytes() == DATA

    def test_versioned_files_keep_their_ways(self, cache, server):
        with cache.open(server.put("object", b"\1" * SIZE), recheck=True, on_change="reload") as file:
            file.read(10)
            with pickle.loads(pickle.dumps(file)) as again:
                assert again.tell() == 10
                server.put("object", b"\2" * SIZE)
                assert set(again.read()) == {2}

    def test_closed_file_is_refused(self, cache, data_file):
        file = cache.open(data_file(10)[0])
        file.close()
        with pytest.raises(ValueError, match="closed"):
            pickle.dumps(file)

    def test_contents_of_memory_do_not_travel(self, cache):
        with cache.open(pagecache.MemoryStore(DATA)) as file, pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(file)

    def test_stores_pickle_as_their_names(self, server, data_file):
        store = pagecache.FileStore(data_file(SIZE)[0])
        again = pickle.loads(pickle.dumps(store))
        assert (again.key, again.path) == (store.key, store.path)
        store.close()
        again.close()
        fsspec_store = pytest.importorskip("pagecache.stores.fsspec").store_of_url(server.put("object", DATA), recheck=5)
        again = pickle.loads(pickle.dumps(fsspec_store))
        assert (again.key, again.recheck, again.validator()) == (fsspec_store.key, 5.0, fsspec_store.validator())

    def test_object_that_is_gone_is_an_error_when_it_is_opened(self, cache, server):
        with cache.open(server.put("object", DATA)) as file:
            packed = pickle.dumps(file)
        server.remove("object")
        with pytest.raises(FileNotFoundError):
            pickle.loads(packed)


@pytest.mark.parametrize("method", METHODS)
class TestProcesses:
    def test_pickled_file(self, method, cache, server, monkeypatch):
        monkeypatch.setenv("PAGECACHE_SIZE", "2MiB")
        with cache.open(server.put("object", DATA)) as file:
            file.seek(777)
            file.read(1)
            [answer] = run(method, read_file, pickle.dumps(file))
        assert answer == (778, DATA[778:878], "rb")

    def test_workers_of_a_data_loader(self, method, cache, server, monkeypatch):
        """The parent has read through the file system, and the workers get it by fork or by pickle."""
        pytest.importorskip("pagecache.adapters.fsspec")
        import fsspec

        monkeypatch.setenv("PAGECACHE_SIZE", "2MiB")
        url = server.put("object", DATA)
        system = fsspec.filesystem("pagecache", target_protocol="http")
        samples = Samples(system, url)
        assert samples[0] == DATA[:PAGE]
        answers = run(method, read_sample, samples, lambda number: number, count=3)
        assert sorted(number for number, _, _, _ in answers) == [0, 1, 2]
        for number, sample, size, pid in answers:
            assert sample == DATA[number * PAGE : (number + 1) * PAGE]
            assert size == 2 << 20  # the child's own cache, not the parent's
            assert pid != os.getpid()
        assert samples[3] == DATA[3 * PAGE : 4 * PAGE]
        system.invalidate_cache()

    def test_pool(self, method, cache, server, monkeypatch):
        pytest.importorskip("pagecache.adapters.fsspec")
        import fsspec

        monkeypatch.setenv("PAGECACHE_SIZE", "2MiB")
        url = server.put("object", DATA)
        system = fsspec.filesystem("pagecache", target_protocol="http", recheck=60)
        samples = Samples(system, url)
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(samples.__getitem__, range(20)) == [DATA[n * PAGE : (n + 1) * PAGE] for n in range(20)]
        system.invalidate_cache()


def send_of_inherited(file, system, url, answers):
    """Send what comes of using what the parent had open."""
    try:
        file.pread(1, 0)
        result = "read"
    except RuntimeError as error:
        result = str(error)
    answers.put((result, system.cat_file(url, 0, 10), system.size(url)))


def test_forked_child_says_what_to_do_with_an_inherited_file(cache, server):
    pytest.importorskip("pagecache.adapters.fsspec")
    import fsspec

    url = server.put("object", DATA)
    system = fsspec.filesystem("pagecache", target_protocol="http")
    with system.open(url) as file:
        assert file.read(10) == DATA[:10]
        [(said, sample, size)] = run("fork", send_of_inherited, file, system, url)
    assert "open a new one after fork" in said
    assert (sample, size) == (DATA[:10], SIZE)
    system.invalidate_cache()


class TestUsing:
    def test_innermost_block_counts_for_all_threads(self, make_cache):
        outer, inner = make_cache("1MiB"), make_cache("1MiB")
        with pagecache.using(outer) as given:
            assert given is outer
            with pagecache.using(inner):
                assert Crew(pagecache.default_cache).join_well() == [inner]
            assert pagecache.default_cache() is outer

    def test_blocks_that_end_in_another_order(self, make_cache):
        first, second = make_cache("1MiB"), make_cache("1MiB")
        one, two = pagecache.using(first), pagecache.using(second)
        with one:
            two.__enter__()
        assert pagecache.default_cache() is second
        two.__exit__(None, None, None)
        with pagecache.using(first):
            assert pagecache.default_cache() is first

    def test_block_ends_with_an_exception(self, make_cache):
        cache = make_cache("1MiB")
        with pytest.raises(KeyError), pagecache.using(cache):
            raise KeyError
        with pagecache.using(make_cache("1MiB")) as other:
            assert pagecache.default_cache() is other

    def test_closed_cache_is_passed_over(self, make_cache):
        outer, inner = make_cache("1MiB"), make_cache("1MiB")
        with pagecache.using(outer), pagecache.using(inner):
            inner.close()
            assert pagecache.default_cache() is outer

    def test_what_is_no_cache_is_refused(self):
        with pytest.raises(AttributeError), pagecache.using("1MiB"):
            pass

    def test_size_given_on_first_use(self, monkeypatch):
        monkeypatch.delenv("PAGECACHE_SIZE", raising=False)
        with pagecache.default_cache("3MiB") as cache:
            assert cache.size == 3 << 20
            assert pagecache.default_cache("5MiB") is cache
        monkeypatch.setenv("PAGECACHE_SIZE", "2MiB")
        with pagecache.default_cache("3MiB") as cache:
            assert cache.size == 2 << 20


class TestForget:
    def test_objects_are_opened_as_new(self, make_cache):
        cache = make_cache("1MiB")
        store = Store(DATA, key="dir/object")
        other = Store(DATA, key="dir/object-2")
        with cache.open(store) as file, cache.open(other) as kept:
            assert file.read() == kept.read() == DATA
            cache.forget("dir/object")
            with cache.open(Store(DATA, key="dir/object")) as again, cache.open(other) as same:
                assert again.inode is not file.inode
                assert same.inode is kept.inode
            cache.forget("dir")
            with cache.open(other) as again:
                assert again.inode is not kept.inode
            assert file.pread(10, 0) == DATA[:10]
        cache.forget("dir/ob", whole=False)
        del file, kept, again, same  # what was forgotten goes with the last file
        gc.collect()
        assert cache.stats().nr_file_pages == 0
