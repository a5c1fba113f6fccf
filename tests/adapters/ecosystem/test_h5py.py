"""h5py on cached files: it ignores what `readinto` returns, so a short read would be garbage without an error."""

import numpy
import pytest
from support import Crew
from support.http_objects import HttpStore

h5py = pytest.importorskip("h5py")


@pytest.fixture
def many(tmp_path, seed):
    """The bytes of a file of many small data sets, and what they hold."""
    random = numpy.random.default_rng(seed)
    path, wanted = tmp_path / "many.h5", {}
    with h5py.File(path, "w") as file:
        for number in range(300):
            name = f"group{number % 10}/set{number}"
            wanted[name] = random.random(int(random.integers(1, 400)))
            file.create_dataset(name, data=wanted[name]).attrs["number"] = number
    return path.read_bytes(), wanted


def walk(file):
    """Return all data sets of an open HDF5 file."""
    found = {}
    file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        numpy.testing.assert_array_equal(found[name], array)


class TestReading:
    def test_many_small_data_sets_twice(self, many, open_object, cache, server):
        data, wanted = many
        file = open_object("many.h5", data)
        with h5py.File(file, "r") as opened:
            assert_same(walk(opened), wanted)
        cache.check()  # waits for readahead
        server.counts.take()
        with h5py.File(file, "r") as opened:
            assert_same(walk(opened), wanted)
            assert opened["group3/set13"].attrs["number"] == 13
        assert server.counts.take() == (0, 0)

    def test_a_walk_over_a_far_file_takes_few_requests(self, many, open_object, server):
        data, wanted = many
        assert len(data) < 1 << 20  # so that one request brings all of it, whatever the bandwidth
        server.latency_s = 0.005
        with h5py.File(open_object("far.h5", data), "r") as opened:
            assert_same(walk(opened), wanted)
        assert server.counts.take()[0] <= 5

    def test_chunked_and_compressed(self, open_object, tmp_path, rng):
        path = tmp_path / "chunked.h5"
        wanted = numpy.arange(400_000, dtype="i4").reshape(200, 2000)
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=wanted, chunks=(20, 100), compression="gzip")
        with h5py.File(open_object("chunked.h5", path.read_bytes()), "r") as opened:
            for _ in range(20):
                row, column = rng.randrange(190), rng.randrange(1900)
                got = opened["a"][row : row + 10, column : column + 100]
                numpy.testing.assert_array_equal(got, wanted[row : row + 10, column : column + 100])

    def test_pages_of_the_file_as_pages_of_its_own_buffer(self, open_object, tmp_path):
        path = tmp_path / "paged.h5"
        with h5py.File(path, "w", fs_strategy="page", fs_page_size=65536) as file:
            for number in range(50):
                file[f"set{number}"] = numpy.full(100, number)
        with h5py.File(open_object("paged.h5", path.read_bytes()), "r", page_buf_size=1 << 20) as opened:
            assert all((opened[f"set{number}"][...] == number).all() for number in range(50))

    def test_a_cache_smaller_than_the_file(self, many, make_cache, server):
        data, wanted = many
        server.put("many.h5", data)
        with make_cache("64KiB").open(HttpStore(server.url("many.h5"))) as file, h5py.File(file, "r") as opened:
            assert_same(walk(opened), wanted)

    def test_threads_with_a_handle_each(self, many, cache, server):
        data, wanted = many
        server.put("many.h5", data)

        def read():
            with cache.open(HttpStore(server.url("many.h5"))) as file, h5py.File(file, "r") as opened:
                assert_same(walk(opened), wanted)

        Crew(*[read] * 4).join_well()


class TestFailures:
    class Failing(HttpStore):
        error = None

        def readv(self, offset, buffers):
            if self.error is not None:
                raise self.error
            return super().readv(offset, buffers)

    def test_a_request_that_fails_is_an_error_and_the_next_one_is_right(self, cache, server, tmp_path):
        path = tmp_path / "large.h5"
        wanted = numpy.arange(1_000_000)
        with h5py.File(path, "w") as file:
            file["a"] = wanted
        server.put("large.h5", path.read_bytes())
        with cache.open(self.Failing(server.url("large.h5"))) as file, h5py.File(file, "r") as opened:
            file.inode.store.error = OSError(5, "planned")
            got = numpy.full(1000, -1)
            with pytest.raises(OSError, match=r"planned|read"):
                opened["a"].read_direct(got, numpy.s_[900_000:901_000])
            file.inode.store.error = None
            numpy.testing.assert_array_equal(opened["a"][...], wanted)

    def test_a_replaced_object_is_an_error_never_a_mix(self, open_object, server, tmp_path):
        path = tmp_path / "large.h5"
        for value in (1, 2):
            with h5py.File(path, "w") as file:
                file["a"] = numpy.full(1_000_000, value)
            if value == 1:
                opened = h5py.File(open_object("large.h5", path.read_bytes()), "r")
                assert (opened["a"][:10] == 1).all()
            else:
                server.put("large.h5", path.read_bytes())
        with opened, pytest.raises(OSError, match=r"changed|read"):
            opened["a"][...]
