"""What the tests of SQLite through the cache share: connections that are closed before the cache is checked."""

import pytest


@pytest.fixture
def connect(make_cache):
    """A factory of connections through the cache: `connect(source, cache=None, **options)`, by default on one of 1 MiB."""
    adapter = pytest.importorskip("pagecache.adapters.sqlite", reason="apsw is not installed", exc_type=ImportError)
    opened = []
    default = []

    def make(source, cache=None, **options):
        if cache is None:
            default[:] = default or [make_cache("1MiB")]
            cache = default[0]
        opened.append(adapter.connect(source if hasattr(source, "readv") else str(source), cache, **options))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close(True)
