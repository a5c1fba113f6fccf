"""fsspec's own tests of a file system, on `pagecache::` over local files and over memory."""

import pytest

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
abstract = pytest.importorskip("fsspec.tests.abstract", reason="this fsspec comes without its tests")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402


@pytest.fixture(autouse=True)
def cache(make_cache):
    with pagecache.using(make_cache("1MiB")) as cache:
        yield cache


class OverFiles(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self):
        target = fsspec.filesystem("file", auto_mkdir=True)
        yield (system := PageCacheFileSystem(fs=target, skip_instance_cache=True))
        system.invalidate_cache()

    @pytest.fixture
    def fs_path(self, tmpdir):
        return tmpdir


class OverMemory(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self):
        target = fsspec.filesystem("memory", skip_instance_cache=True)
        target.store, target.pseudo_dirs = {}, [""]
        yield (system := PageCacheFileSystem(fs=target, skip_instance_cache=True))
        system.invalidate_cache()

    @pytest.fixture
    def fs_path(self):
        return ""

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)


class TestCopyOverFiles(abstract.AbstractCopyTests, OverFiles):
    pass


class TestGetOverFiles(abstract.AbstractGetTests, OverFiles):
    pass


class TestPutOverFiles(abstract.AbstractPutTests, OverFiles):
    pass


class TestPipeOverFiles(abstract.AbstractPipeTests, OverFiles):
    pass


class TestOpenOverFiles(abstract.AbstractOpenTests, OverFiles):
    pass


class TestCopyOverMemory(abstract.AbstractCopyTests, OverMemory):
    pass


class TestGetOverMemory(abstract.AbstractGetTests, OverMemory):
    pass


class TestPutOverMemory(abstract.AbstractPutTests, OverMemory):
    pass


class TestPipeOverMemory(abstract.AbstractPipeTests, OverMemory):
    pass


class TestOpenOverMemory(abstract.AbstractOpenTests, OverMemory):
    pass
