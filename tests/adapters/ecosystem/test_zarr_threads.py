"""Zarr over file systems that are not for threads: Zarr calls them in several at once, the cache does not."""

import io
import tarfile
import warnings

import pytest
from support.watched_fs import watched

zarr = pytest.importorskip("zarr", reason="zarr is not installed")
fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
np = pytest.importorskip("numpy", reason="numpy is not installed")
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper  # noqa: E402
from fsspec.implementations.reference import ReferenceFileSystem  # noqa: E402
from zarr.storage import FsspecStore, MemoryStore  # noqa: E402

from pagecache.adapters.zarr import PageCacheStore  # noqa: E402

SHAPE = (40, 3000)
DATA = np.arange(SHAPE[0] * SHAPE[1], dtype="i4").reshape(SHAPE)


@pytest.fixture(scope="module", params=["chunks", "shards"])
def values(request):
    """The keys of an array, and what they hold."""
    store = MemoryStore()
    layout = {"chunks": (1, 1000)} | ({"shards": (10, 3000)} if request.param == "shards" else {})
    zarr.create_array(store, shape=SHAPE, dtype=DATA.dtype, compressors=None, **layout)[:] = DATA
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


@pytest.fixture
def cache(make_cache):
    return make_cache("8MiB")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr's, of file systems that are bound to no loop
        yield


def read_beside(store, beside=lambda: None):
    """Read an array whole and in parts."""
    array = zarr.open_array(store, mode="r")
    assert (array[:] == DATA).all()
    beside()
    assert (array[3:30:5, 100:2500:7] == DATA[3:30:5, 100:2500:7]).all()
    beside()
    assert (array[:] == DATA).all()


def over_wrapper(fs, values):
    return FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path="", read_only=True)


def over_reference(fs, values):
    references = {key: [f"watched://{key}"] for key in values}
    targets = {"watched": AsyncFileSystemWrapper(fs, asynchronous=True)}
    return FsspecStore(ReferenceFileSystem(references, fs=targets, asynchronous=True), path="", read_only=True)


@pytest.mark.parametrize("store_over", [over_wrapper, over_reference])
def test_an_instance_is_called_one_at_a_time(cache, values, store_over):
    with watched(values) as kind:
        fs = kind(skip_instance_cache=True)
        store = PageCacheStore(store_over(fs, values), cache)
        read_beside(store, lambda: fs.cat_file("zarr.json"))
        assert fs.most_inside == 1
        assert fs.nr_calls > 3


@pytest.mark.parametrize("store_over", [over_wrapper, over_reference])
def test_without_a_cache_it_is_called_in_many_threads(values, store_over):
    """What the tests here would show."""
    with watched(values) as kind:
        fs = kind(skip_instance_cache=True)
        read_beside(store_over(fs, values))
        assert fs.most_inside > 1


@pytest.mark.parametrize("fo", ["path", "file object"])
def test_an_array_in_a_tar_file_has_the_right_numbers(cache, values, tmp_path, fo):
    path = tmp_path / "array.tar"
    with tarfile.open(path, "w") as tar:
        for key, value in values.items():
            member = tarfile.TarInfo(key)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    fs = fsspec.filesystem("tar", fo=str(path) if fo == "path" else io.BytesIO(path.read_bytes()))
    for _ in range(3):
        store = FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path="", read_only=True)
        read_beside(PageCacheStore(store, cache), lambda: fs.cat_file("zarr.json"))
        cache.drop_caches()
