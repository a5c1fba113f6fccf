"""Backing stores: local files in both ways of reading, memory, and whatever else keeps the protocol."""

import errno
import os
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Crew, ShortStore, Store, assert_nothing_is_held, few, pages_of, wait_until

import pagecache
from pagecache.stores import BackingStore, FileStore, MemoryStore, StoreHints, hints_of

ODD_SIZES = [0, 1, 511, 512, 513, PAGE - 1, PAGE, PAGE + 1, 10 * PAGE + 3, 300 * PAGE - 1]
BOTH_WAYS = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


def read_all(store, nbytes, *piece_sizes):
    """Read from offset 0 into buffers of the given sizes; returns what came."""
    buffers = [bytearray(size) for size in piece_sizes]
    done = store.readv(0, [memoryview(buffer) for buffer in buffers])
    return b"".join(buffers)[:done]


class TestProtocol:
    @pytest.mark.parametrize("kind", ["file", "memory", "third party"])
    def test_is_kept(self, kind, data_file):
        path, data = data_file(2 * PAGE + 5)
        store = {"file": lambda: FileStore(path), "memory": lambda: MemoryStore(data), "third party": lambda: Store(data)}
        store = store[kind]()
        assert isinstance(store, BackingStore)
        assert isinstance(store.key, str)
        assert store.size() == len(data)
        assert store.validator() == store.validator()
        assert read_all(store, len(data), 10, PAGE, 3 * PAGE) == data
        assert store.readv(len(data), [memoryview(bytearray(10))]) == 0
        store.close()

    def test_is_not_kept_by_something_else(self):
        assert not isinstance(object(), BackingStore)
        assert not isinstance(b"bytes", BackingStore)

    def test_store_of_five_methods_is_enough(self, make_cache, frames, rng):
        data = pages_of(100 * PAGE + 17)
        store = Store(data)
        cache = make_cache(frames * PAGE)
        with cache.open(store) as file:
            for _ in range(100):
                nbytes, offset = rng.randrange(5 * PAGE), rng.randrange(len(data))
                assert file.pread(nbytes, offset) == data[offset : offset + nbytes]
        assert all(offset % PAGE == 0 for offset, _ in store.requests)
        assert all(offset + nbytes <= len(data) for offset, nbytes in store.requests)
        wait_until(lambda: store.nr_closed == 1, "the store to be closed after its last read")
        assert_nothing_is_held(cache)

    @given(limit=st.integers(1, 3 * PAGE), size=st.integers(0, 20 * PAGE))
    @few(30)
    def test_short_answers_are_completed_by_further_requests(self, frames, limit, size):
        data = pages_of(size)
        limit = max(limit, size // 2000)
        with pagecache.PageCache(frames * PAGE) as cache, cache.open(ShortStore(data, limit)) as file:
            assert file.pread(size, 0) == data
            cache.check()

    def test_answers_may_be_any_kind_of_integer(self, make_cache):
        class Numpy(Store):
            def answer(self, offset, buffers):
                return numpy.int64(super().answer(offset, buffers))

        store = Numpy(pages_of(10 * PAGE))
        with make_cache("1MiB").open(store) as file:
            assert file.readall() == store.data

    def test_neighbouring_missing_pages_become_one_request(self, make_cache):
        store = Store(pages_of(8 * PAGE))
        with make_cache("1MiB").open(store) as file:
            assert file.pread(8 * PAGE, 0) == store.data
        assert store.requests == [(0, 8 * PAGE)]

    def test_requests_end_where_the_object_does(self, make_cache):
        store = Store(pages_of(2 * PAGE + 1))
        with make_cache("1MiB").open(store) as file:
            assert file.readall() == store.data
        assert sum(nbytes for _, nbytes in store.requests) == 2 * PAGE + 1

    def test_empty_object_is_never_asked(self, make_cache):
        store = Store(b"")
        with make_cache("1MiB").open(store) as file:
            assert (file.readall(), file.pread(10, 0), bytes(file.view(10, 0)), list(file)) == (b"", b"", b"", [])
        assert store.requests == []


class TestHints:
    def test_have_defaults(self):
        assert hints_of(Store(b"")) == StoreHints()

    def test_are_taken_from_the_store(self):
        store = Store(b"")
        store.preferred_request, store.max_request, store.parallel_requests, store.latency = 8192, 65536, 3, "local"
        assert hints_of(store) == StoreHints(8192, 65536, 3, "local")

    @pytest.mark.parametrize("name", ["preferred_request", "max_request", "parallel_requests"])
    @pytest.mark.parametrize("value", [0, -1, "many", 1.5, None])
    def test_that_make_no_sense_are_refused_by_open(self, make_cache, name, value):
        store = Store(b"x", key="the store")
        setattr(store, name, value)
        with pytest.raises(ValueError, match=rf"{name} of store 'the store' must be a positive int, not {value!r}"):
            make_cache("1MiB").open(store)
        wait_until(lambda: store.nr_closed == 1, "the store to be closed after its last read")

    @pytest.mark.parametrize("max_request", [1, PAGE, 3 * PAGE, 10 * PAGE + 1])
    def test_no_request_is_larger_than_the_largest(self, make_cache, max_request):
        store = Store(pages_of(200 * PAGE))
        store.max_request = max_request
        cache = make_cache("4MiB")
        with cache.open(store) as file:
            file.fadvise(pagecache.FADV_SEQUENTIAL)
            assert file.readall() == store.data
            cache.drop_caches()
            file.fadvise(pagecache.FADV_WILLNEED)
            assert file.pread(100 * PAGE, 7 * PAGE) == store.data[7 * PAGE : 107 * PAGE]
            cache.check()
        assert max(nbytes for _, nbytes in store.requests) <= max(PAGE, max_request)

    def test_no_more_requests_run_at_once_than_allowed(self, make_cache):
        running, most = [], []

        class Watched(Store):
            preferred_request = 4 * PAGE
            parallel_requests = 2

            def answer(self, offset, buffers):
                running.append(offset)
                most.append(len(running))
                try:
                    return super().answer(offset, buffers)
                finally:
                    running.remove(offset)

        store = Watched(pages_of(300 * PAGE))
        with make_cache("4MiB").open(store) as file:
            readers = [lambda start=start: file.pread(50 * PAGE, start * PAGE) for start in range(0, 300, 50)]
            assert b"".join(Crew(*readers).join_well()) == store.data
        assert max(most) <= 2


class TestFileStore:
    @BOTH_WAYS
    @pytest.mark.parametrize("size", ODD_SIZES)
    def test_reads_files_of_any_size(self, make_cache, data_file, direct, size):
        path, data = data_file(size)
        with make_cache("4MiB").open(path, direct=direct) as file:
            assert file.readall() == data
            assert file.pread(100, max(0, size - 50)) == data[-50:]
            assert file.pread(1, size) == b""

    @BOTH_WAYS
    def test_random_reads_at_every_budget(self, make_cache, data_file, direct, frames, rng):
        path, data = data_file(400 * PAGE + 123)
        cache = make_cache(frames * PAGE)
        with cache.open(path, direct=direct) as file:
            for _ in range(150):
                nbytes, offset = rng.choice([1, 100, PAGE, 50_000]), rng.randrange(len(data))
                assert file.pread(nbytes, offset) == data[offset : offset + nbytes]
        assert_nothing_is_held(cache)

    def test_direct_and_buffered_handles_share_pages(self, make_cache, data_file):
        path, data = data_file(20 * PAGE)
        cache = make_cache("1MiB")
        with cache.open(path, direct=True) as one, cache.open(path) as other:
            assert one.readall() == other.readall() == data
        assert cache.stats().nr_file_pages == 20

    def test_names_one_file_by_one_key(self, data_file, tmp_path):
        path, _ = data_file(10)
        other, _ = data_file(10)
        (tmp_path / "link").symlink_to(path)
        stores = [FileStore(name) for name in (path, tmp_path / "link", os.fsencode(path), other)]
        keys = [store.key for store in stores]
        assert keys[0] == keys[1] == keys[2] != keys[3]
        for store in stores:
            store.close()

    def test_validator_changes_with_the_contents(self, data_file):
        path, data = data_file(100)
        store = FileStore(path)
        seen = {store.validator()}
        for contents in (data + b"x", data, data[::-1], data[:1]):
            path.write_bytes(contents)
            seen.add(store.validator())
        assert len(seen) == 5
        store.close()

    def test_close_gives_the_descriptor_back_once(self, data_file):
        path, _ = data_file(10)
        store = FileStore(path)
        fd = store.fd
        os.fstat(fd)
        store.close()
        store.close()
        with pytest.raises(OSError) as caught:
            os.fstat(fd)
        assert caught.value.errno == errno.EBADF

    def test_writes_truncates_and_syncs(self, tmp_path):
        store = FileStore(tmp_path / "new", "x+b")
        assert store.writev(3, [memoryview(b"abc"), memoryview(b"defg")]) == 7
        store.sync()
        store.sync(datasync=True)
        store.truncate(5)
        assert store.size() == 5
        assert (tmp_path / "new").read_bytes() == b"\0\0\0ab"
        store.close()

    @pytest.mark.parametrize("mode, contents", [("rb", b"abc"), ("r+b", b"abc"), ("w+b", b"")])
    def test_modes_do_what_they_do_for_plain_files(self, make_cache, tmp_path, mode, contents):
        path = tmp_path / "file"
        path.write_bytes(b"abc")
        with make_cache("1MiB").open(path, mode) as file:
            assert (file.readall(), file.mode, file.writable()) == (contents, mode, mode != "rb")

    def test_exclusive_creation(self, make_cache, tmp_path):
        cache = make_cache("1MiB")
        with cache.open(tmp_path / "new", "x+b") as file:
            assert file.truncate(10) == 10
            assert file.readall() == bytes(10)
        with pytest.raises(FileExistsError, match="new"):
            cache.open(tmp_path / "new", "x+b")

    @BOTH_WAYS
    def test_truncation_of_the_file_is_seen_at_once(self, make_cache, data_file, direct):
        path, data = data_file(20 * PAGE)
        with make_cache("1MiB").open(path, "r+b", direct=direct) as file:
            assert file.readall() == data
            for size in (7 * PAGE + 100, 7 * PAGE, 3, 10 * PAGE, 0, PAGE):
                file.truncate(size)
                assert os.path.getsize(path) == size
                assert file.pread(30 * PAGE, 0) == path.read_bytes()

    def test_holes_read_as_zeros(self, make_cache, tmp_path):
        path = tmp_path / "sparse"
        with open(path, "wb") as plain:
            plain.seek(2**40)
            plain.write(b"end")
        with make_cache("64KiB").open(path) as file:
            assert file.pread(10, 2**39) == bytes(10)
            assert file.pread(10, 2**40 - 4) == bytes(4) + b"end"
            assert file.seek(0, 2) == 2**40 + 3


class TestMemoryStore:
    def test_copies_what_it_is_given(self):
        data = bytearray(b"abc")
        store = MemoryStore(data)
        data[:] = b"xyz"
        assert store.tobytes() == b"abc"

    def test_each_has_a_key_unless_one_is_given(self):
        stores = [MemoryStore(b""), MemoryStore(b"")]
        assert stores[0].key != stores[1].key
        assert MemoryStore(b"", key="mine").key == "mine"

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.integers(0, 300), st.binary(max_size=100)),
                st.tuples(st.just("truncate"), st.integers(0, 400), st.none()),
                st.tuples(st.just("punch_hole"), st.integers(0, 400), st.integers(0, 200)),
                st.tuples(st.just("replace"), st.none(), st.binary(max_size=300)),
            ),
            max_size=20,
        )
    )
    @few(60)
    def test_behaves_as_bytes_would(self, operations):
        store, model = MemoryStore(b"start"), bytearray(b"start")
        for name, where, what in operations:
            validator, before = store.validator(), bytes(model)
            if name == "write":
                assert store.writev(where, [memoryview(what[:10]), memoryview(what[10:])]) == len(what)
                if what:
                    model.extend(bytes(max(0, where - len(model))))
                    model[where : where + len(what)] = what
            elif name == "truncate":
                store.truncate(where)
                model = model[:where] + bytes(max(0, where - len(model)))
            elif name == "punch_hole":
                store.punch_hole(where, what)
                model[where : where + what] = bytes(len(model[where : where + what]))
            else:
                store.replace(what)
                model[:] = what
            assert store.tobytes() == model
            assert store.size() == len(model)
            assert store.validator() != validator or model == before
            assert store.validator() == store.validator()

    def test_can_be_truncated_through_the_cache(self, make_cache, frames, seed):
        rng, model = random.Random(seed), bytearray(pages_of(10 * PAGE))
        store = MemoryStore(model)
        cache = make_cache(frames * PAGE)
        with cache.open(store, "r+b") as file:
            for _ in range(60):
                size = rng.choice([0, 1, PAGE, rng.randrange(20 * PAGE)])
                assert file.truncate(size) == size
                model = model[:size] + bytes(max(0, size - len(model)))
                assert store.tobytes() == model
                offset = rng.randrange(20 * PAGE)
                assert file.pread(3 * PAGE, offset) == model[offset : offset + 3 * PAGE]
                if rng.random() < 0.3:
                    assert file.pread(20 * PAGE, 0) == model
        assert_nothing_is_held(cache)

    def test_replacing_the_contents_is_found_out(self, make_cache):
        store = MemoryStore(b"a" * (10 * PAGE))
        with make_cache(4 * PAGE).open(store) as file:
            assert file.pread(PAGE, 0) == b"a" * PAGE
            store.replace(b"b" * (10 * PAGE))
            with pytest.raises(OSError, match="changed while it was cached") as caught:
                file.pread(10 * PAGE, 0)
            assert caught.value.errno == errno.ESTALE
            file.invalidate()
            assert file.pread(10 * PAGE, 0) == b"b" * (10 * PAGE)


def test_memory_stores_never_share_a_key_even_when_their_memory_is_reused():
    keys = [MemoryStore(b"x").key for _ in range(1000)]
    assert len(set(keys)) == len(keys)
