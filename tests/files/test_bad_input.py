"""Senseless arguments, closed files, paths that are no files: each a clear error, nothing lost, nothing leaked."""

import io
import os
import socket

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Store, assert_nothing_is_held, checked_cache, few, nr_descriptors, pages_of

import pagecache
from pagecache._core import Segment

DATA = pages_of(20 * PAGE + 100)
NO_INTEGERS = [None, 1.0, "1", b"1", 1j, [1], object(), numpy.float64(1)]
POSITIONAL = {
    "pread": lambda file, nbytes, offset: file.pread(nbytes, offset),
    "view": lambda file, nbytes, offset: bytes(file.view(nbytes, offset)),
    "iter_views": lambda file, nbytes, offset: b"".join(file.iter_views(nbytes, offset)),
}
RANGES = {  # name: (call of offset and length, whether a range without an end is senseless)
    "fadvise": lambda file, offset, length: file.fadvise(pagecache.FADV_WILLNEED, offset, length),
    "dontneed": lambda file, offset, length: file.fadvise(pagecache.FADV_DONTNEED, offset, length),
    "cachestat": lambda file, offset, length: file.cachestat(offset, length),
    "mincore": lambda file, offset, length: file.mincore(offset, length),
    "invalidate": lambda file, offset, length: file.invalidate(offset, length),
}


@pytest.fixture
def file(make_cache):
    """A writable file of known bytes, which must be unharmed when the test ends."""
    cache = make_cache("1MiB")
    with cache.open(pagecache.MemoryStore(DATA, key="the object"), "r+b") as file:
        file.seek(77)
        yield file
        if not file.closed:
            assert file.tell() == 77
            assert file.pread(len(DATA) + 1, 0) == DATA
    assert_nothing_is_held(cache)


class TestNumbers:
    @pytest.mark.parametrize("way", POSITIONAL)
    @pytest.mark.parametrize("value", [-1, -(2**31), -(2**63), -(2**64), -(2**100)])
    def test_negative_ones_are_refused(self, file, way, value):
        for nbytes, offset in ((value, 0), (1, value), (value, value)):
            with pytest.raises((ValueError, OverflowError), match=r"negative|beyond") as caught:
                POSITIONAL[way](file, nbytes, offset)
            assert str(value) in str(caught.value)

    @pytest.mark.parametrize("way", ["pread", "view"])
    @pytest.mark.parametrize("value", [2**63, 2**64, 2**64 + 5, 2**100])
    def test_ones_too_large_for_any_file_are_refused(self, file, way, value):
        for nbytes, offset in ((value, 0), (1, value)):
            with pytest.raises(OverflowError, match=f"{value} is beyond"):
                POSITIONAL[way](file, nbytes, offset)

    @pytest.mark.parametrize("way", POSITIONAL)
    @pytest.mark.parametrize("value", [2**31, 2**32 + 1, 2**52, 2**62, 2**63 - 1])
    def test_large_ones_end_with_the_file(self, file, way, value):
        assert POSITIONAL[way](file, value, 0) == DATA
        assert POSITIONAL[way](file, 1, value) == b""
        assert POSITIONAL[way](file, value, value) == b""
        assert file.preadinto(bytearray(10), value) == 0

    @pytest.mark.parametrize("way", POSITIONAL)
    @pytest.mark.parametrize("value", NO_INTEGERS)
    def test_anything_else_is_refused(self, file, way, value):
        for nbytes, offset in ((value, 0), (1, value)):
            with pytest.raises(TypeError):
                POSITIONAL[way](file, nbytes, offset)
        with pytest.raises(TypeError):
            file.preadinto(bytearray(1), value)

    @pytest.mark.parametrize("way", POSITIONAL)
    @pytest.mark.parametrize("one", [True, numpy.int8(1), numpy.uint64(1), numpy.int64(1), numpy.array(1)], ids=repr)
    def test_all_kinds_of_integers_do(self, file, way, one):
        assert POSITIONAL[way](file, one, one) == DATA[1:2]

    def test_error_of_an_index_method_comes_through(self, file):
        class Odd:
            def __index__(self):
                raise ZeroDivisionError("no number today")

        for call in (lambda: file.pread(Odd(), 0), lambda: file.pread(1, Odd()), lambda: file.read(Odd())):
            with pytest.raises(ZeroDivisionError, match="today"):
                call()

    @given(
        nbytes=st.integers(-(2**65), 2**65),
        offset=st.integers(-(2**65), 2**65),
        way=st.sampled_from(sorted(POSITIONAL)),
    )
    @few(150)
    def test_of_any_size_give_bytes_or_an_error(self, nbytes, offset, way):
        with checked_cache(64) as cache, cache.open(Store(DATA)) as file:
            try:
                assert POSITIONAL[way](file, nbytes, offset) == DATA[offset : offset + nbytes]
                assert min(nbytes, offset) >= 0
            except (ValueError, OverflowError):
                assert not 0 <= min(nbytes, offset) <= max(nbytes, offset) < 2**63

    @pytest.mark.parametrize("offset, whence", [(-1, 0), (-78, 1), (-len(DATA) - 1, 2), (2**63, 0), (2**63 - 1, 2), (1, 9)])
    def test_seek_to_nowhere_leaves_the_position(self, file, offset, whence):
        with pytest.raises((ValueError, OSError)):
            file.seek(offset, whence)

    @pytest.mark.parametrize("offset, whence", [(None, 0), (1.0, 0), ("1", 0), (0, None), (0, 1.0)])
    def test_seek_by_no_integer_is_refused(self, file, offset, whence):
        with pytest.raises(TypeError):
            file.seek(offset, whence)

    @pytest.mark.parametrize("size, error", [(-1, ValueError), (1.5, TypeError), ("3", TypeError), (2**64, Exception)])
    def test_truncate_to_no_size_changes_nothing(self, file, size, error):
        with pytest.raises(error):
            file.truncate(size)

    @pytest.mark.parametrize("name", RANGES)
    def test_ranges_are_checked(self, file, name):
        for offset, length in ((-1, 0), (0, -1), (-PAGE, PAGE), (-(2**70), 0)):
            with pytest.raises(ValueError, match="negative"):
                RANGES[name](file, offset, length)
        for offset, length in ((None, 0), (0, None), (1.5, 0), ("0", 0), (0, b"1")):
            with pytest.raises(TypeError):
                RANGES[name](file, offset, length)

    @pytest.mark.parametrize("name", RANGES)
    @pytest.mark.parametrize(
        "offset, length", [(2**62, 2**62), (0, 2**63 - 1), (2**63 - PAGE, PAGE - 1), (2**51 * PAGE, 0)]
    )
    def test_ranges_beyond_the_end_are_empty_there(self, file, name, offset, length):
        file.pread(PAGE, 0)
        RANGES[name](file, offset, length)

    @pytest.mark.parametrize("name", RANGES)
    @pytest.mark.parametrize("offset, length", [(2**80, 0), (2**80, 2**80), (0, 2**90)])
    def test_senseless_ranges_do_no_harm(self, file, name, offset, length):
        try:
            RANGES[name](file, offset, length)
        except (ValueError, OverflowError) as error:
            assert str(error)

    @pytest.mark.parametrize("advice", [-1, 6, 99, 2**70, None, "random", 1.5])
    def test_unknown_advice_is_named(self, file, advice):
        with pytest.raises((ValueError, TypeError), match="advice"):
            file.fadvise(advice)

    def test_mincore_wants_whole_pages(self, file):
        with pytest.raises(ValueError, match="multiple of the page size"):
            file.mincore(1)


class TestClosedFile:
    CALLS = {
        "pread": lambda file: file.pread(1, 0), "preadinto": lambda file: file.preadinto(bytearray(1), 0),
        "view": lambda file: file.view(1, 0), "iter_views": lambda file: list(file.iter_views(1, 0)),
        "read": lambda file: file.read(1), "read all": lambda file: file.read(), "readall": lambda file: file.readall(),
        "readinto": lambda file: file.readinto(bytearray(1)), "readline": lambda file: file.readline(),
        "readline 0": lambda file: file.readline(0), "readlines": lambda file: file.readlines(),
        "next": lambda file: next(file), "iter": lambda file: iter(file), "seek": lambda file: file.seek(0),
        "tell": lambda file: file.tell(), "truncate": lambda file: file.truncate(1), "flush": lambda file: file.flush(),
        "write": lambda file: file.write(b"x"), "writelines": lambda file: file.writelines([b"x"]),
        "readable": lambda file: file.readable(), "writable": lambda file: file.writable(),
        "seekable": lambda file: file.seekable(), "isatty": lambda file: file.isatty(),
        "fileno": lambda file: file.fileno(), "with": lambda file: file.__enter__(), "mmap": lambda file: file.mmap(),
        "fadvise": lambda file: file.fadvise(pagecache.FADV_NORMAL), "cachestat": lambda file: file.cachestat(),
        "mincore": lambda file: file.mincore(), "invalidate": lambda file: file.invalidate(),
    }  # fmt: skip

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("closed_by", ["file", "cache", "before any read"])
    def test_refuses_everything(self, make_cache, name, closed_by):
        cache = make_cache("1MiB")
        file = cache.open(Store(DATA), "rb")
        if closed_by != "before any read":
            file.pread(PAGE, 0)
        (cache if closed_by == "cache" else file).close()
        with pytest.raises(ValueError, match=r"closed|fileno"):
            self.CALLS[name](file)

    def test_still_says_what_it_was(self, make_cache):
        file = make_cache("1MiB").open(Store(DATA, key="the object"))
        file.close()
        assert file.closed
        assert (file.name, file.mode) == ("the object", "rb")
        assert "closed" in repr(file)
        file.close()


class TestSources:
    @pytest.mark.parametrize("source", [None, 3, 1.5, object(), bytearray(b"path"), ["path"], io.BytesIO(b"x"), Store])
    def test_that_are_neither_path_nor_store_are_refused(self, make_cache, source):
        with pytest.raises(TypeError):
            make_cache("1MiB").open(source)

    def test_that_lack_a_method_are_refused_with_its_name(self, make_cache):
        class NoReadv:
            key = "x"

            def size(self):
                return 1

        with pytest.raises(TypeError, match="NoReadv is neither a path nor a store: it lacks validator, readv, close"):
            make_cache("1MiB").open(NoReadv())

    def test_a_mode_may_be_spelt_as_open_spells_it(self, make_cache, data_file):
        path, data = data_file(10)
        with make_cache("1MiB").open(path, "rb+") as file:
            assert file.mode == "r+b"
            assert file.pread(10, 0) == data

    def test_an_unknown_mode_says_which_one_to_use(self, make_cache, data_file):
        path, _ = data_file(10)
        for mode, meant in (("r", "'rb'"), ("wb", "'w\\+b'"), ("xb", "'x\\+b'"), ("rt", "one of rb")):
            with pytest.raises(ValueError, match=f"use {meant}"):
                make_cache("1MiB").open(path, mode)

    @pytest.mark.parametrize("mode", ["r", "w", "wb", "a", "xb", "rt", "", "rb ", "r+", None, 5, b"rb"])
    def test_unknown_mode_is_named(self, make_cache, data_file, mode):
        path, data = data_file(10)
        for source in (path, Store(data)):
            with pytest.raises(ValueError, match="unknown mode"):
                make_cache("1MiB").open(source, mode)
        assert path.read_bytes() == data

    @pytest.mark.parametrize("url", ["://", "gopher://x"])
    def test_unknown_url_is_named(self, make_cache, url):
        with pytest.raises((ValueError, ImportError), match=f"{url}.*"):
            make_cache("1MiB").open(url)

    @pytest.mark.parametrize("mode", ["r+b", "w+b", "x+b"])
    def test_store_that_cannot_be_written_is_not_opened_for_it(self, make_cache, mode):
        with pytest.raises(OSError, match="cannot be written") as caught:
            make_cache("1MiB").open(Store(DATA, key="the object"), mode)
        assert caught.value.filename == "the object"

    @pytest.mark.parametrize("size", [-1, 2**63, 2**64, 2**100, None, 1.5, "10", b""])
    def test_store_of_no_size_is_refused_and_closed(self, make_cache, size):
        store = Store(b"", key="the object")
        store.size = lambda: size
        cache = make_cache("1MiB")
        with pytest.raises((ValueError, TypeError), match=r"size\(\) of store 'the object' returned"):
            cache.open(store)
        assert store.nr_closed == 1

    @pytest.mark.parametrize("method", ["size", "validator"])
    def test_error_of_a_store_that_is_opened_comes_through(self, make_cache, method):
        def fail():
            raise ConnectionError("the network is down")

        cache = make_cache(0, segment=Segment(256, nr_mappings=3))
        for number in range(10):
            store = Store(b"x", key=str(number))
            setattr(store, method, fail)
            with pytest.raises(ConnectionError, match="the network is down"):
                cache.open(store)
            assert store.nr_closed == 1
        with cache.open(Store(DATA)) as file:
            assert file.readall() == DATA


class TestPaths:
    @pytest.fixture
    def cache(self, make_cache):
        """A cache in which no descriptor is lost."""
        cache = make_cache("1MiB")
        before = nr_descriptors()
        yield cache
        assert nr_descriptors() <= before

    def refuse(self, cache, path, error, **options):
        with pytest.raises(error) as caught:
            cache.open(path, **options)
        if isinstance(caught.value, OSError):
            assert str(path) in str(caught.value)
            assert caught.value.filename == str(path)
            assert caught.value.errno
        return caught.value

    @pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
    @pytest.mark.parametrize("mode", ["rb", "r+b"])
    def test_that_are_missing_or_directories(self, cache, tmp_path, mode, direct):
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        (tmp_path / "file").write_bytes(b"x")
        options = {"mode": mode, "direct": direct}
        self.refuse(cache, tmp_path / "missing", FileNotFoundError, **options)
        self.refuse(cache, tmp_path / "dangling", FileNotFoundError, **options)
        self.refuse(cache, tmp_path / "file" / "below", NotADirectoryError, **options)
        self.refuse(cache, tmp_path / ("x" * 300), OSError, **options)
        self.refuse(cache, tmp_path, IsADirectoryError, **options)

    def test_that_may_not_be_read(self, cache, tmp_path, unprivileged):
        path = tmp_path / "secret"
        path.write_bytes(b"x")
        path.chmod(0)
        for parent in path.parents:
            if parent.owner() == path.owner() and parent != parent.parent and "pytest" in str(parent):
                parent.chmod(0o755)
        with unprivileged():
            self.refuse(cache, path, PermissionError)
            self.refuse(cache, path, PermissionError, direct=True)
        path.chmod(0o444)
        with unprivileged():
            self.refuse(cache, path, PermissionError, mode="r+b")
            cache.open(path).close()

    @pytest.mark.parametrize("mode", ["rb", "r+b"])
    def test_that_are_no_files(self, cache, tmp_path, mode):
        os.mkfifo(tmp_path / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            self.refuse(cache, tmp_path / "socket", OSError, mode=mode)
        for path in (tmp_path / "fifo", "/dev/null", "/dev/zero"):
            assert "not a regular file" in str(self.refuse(cache, path, OSError, mode=mode))

    @pytest.mark.parametrize("path", ["", b"", "nul\0byte"])
    def test_that_cannot_be(self, cache, path):
        with pytest.raises((OSError, ValueError)):
            cache.open(path)
