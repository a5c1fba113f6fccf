"""What the tests with real libraries share: a server of real objects, and files opened on it through a cache."""

import contextlib
import inspect

import pytest
from support.http_objects import HttpStore, ObjectServer

with contextlib.suppress(ImportError):
    import pagecache.adapters.fsspec  # noqa: F401  an installed package registers `pagecache://` by itself


@pytest.fixture
def server():
    """A server of objects on this machine that counts its requests."""
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    """A cache with room for what the tests of this directory read."""
    return make_cache("64MiB")


@pytest.fixture
def open_object(server, cache):
    """A factory of files: `file = open_object(path, data)` puts an object on the server and opens it, cold."""
    files = []

    def open_one(path, data=None):
        if data is not None:
            server.put(path, data)
        files.append(cache.open(HttpStore(server.url(path))))
        return files[-1]

    yield open_one
    for file in files:
        file.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run coroutine tests (Zarr's store tests are such) on Zarr's event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    zarr_sync = pytest.importorskip("zarr.core.sync")
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    zarr_sync.sync(pyfuncitem.obj(**arguments))
    return True
