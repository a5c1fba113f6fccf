"""What the XArray's tests share: arrays that are checked when a test ends."""

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
