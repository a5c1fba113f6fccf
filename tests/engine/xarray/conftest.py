"""What the XArray's tests share: arrays that are checked when a test ends."""

import functools

import pytest

from pagecache._core import XArray


@pytest.fixture
def make_xa():
    """A factory of arrays, `make_xa(**options)`, that must be in order, and give back every node, at the end."""
    arrays = []

    def make(**options):
        arrays.append(XArray(**options))
        return arrays[-1]

    yield make
    for xa in arrays:
        xa.check()
        xa.clear()
        xa.check()
        assert xa.nr_nodes == 0
        assert xa.empty


@pytest.fixture
def xa(make_xa):
    """An empty array."""
    return make_xa()


def pytest_collection_modifyitems(config, items):
    """Where pytest-run-parallel runs each test in several threads, give each thread an array of its own: a fixture is made
    once for all of them."""
    if str(getattr(config.option, "parallel_threads", 1)) == "1":
        return
    for item in items:
        if "xa" in getattr(item, "fixturenames", ()):
            item.obj = _with_own_array(item.obj)


def _with_own_array(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        kwargs["xa"] = XArray()
        test(*args, **kwargs)
        kwargs["xa"].check()

    return run
