"""Fixtures of tests of a second level, as a plugin: real servers, and levels on them."""

import pytest

from support.second_level_support import level_on
from support.value_servers import PROGRAMS, ValueServer, has_client


@pytest.fixture(scope="module", params=["valkey", "memcached"])
def shared_server(request):
    """A server that is not harmed by the tests that share it; each gets an empty one by `server`."""
    if PROGRAMS[request.param] is None:
        pytest.skip(f"no server of {request.param}: install it, or name one in PAGECACHE_VALKEY_SERVER")
    if request.param == "valkey" and not has_client():
        pytest.skip("neither valkey nor redis, the client libraries, is installed")
    with ValueServer(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """A server without values."""
    shared_server.say(b"flush_all\r\n" if shared_server.kind == "memcached" else b"FLUSHALL\r\n")
    return shared_server


@pytest.fixture
def own_server(shared_server):
    """A server that a test may kill."""
    with ValueServer(shared_server.kind) as server:
        yield server


@pytest.fixture
def level(server):
    """A level on a server without values."""
    with level_on(server) as level:
        yield level
