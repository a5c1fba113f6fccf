"""Stores over another store keep what that one says about threads: also that only its user's may enter it."""

import types

import pytest
from support import PAGE, Store, pages_of

from pagecache.adapters.peers.store import PeerStore
from pagecache.adapters.valkey.store import TieredStore
from pagecache.stores.base import hints_of

DATA = pages_of(8 * PAGE)


class Foreground(Store):
    background_reads = False
    parallel_requests = 1


def over_peers(origin):
    noted = []
    group = types.SimpleNamespace(request_bytes=1 << 20, extent_bytes=1 << 16, note_own=noted.append)
    return PeerStore(origin, group), noted


def over_second_level(origin):
    level = types.SimpleNamespace(extent_bytes=1 << 16, attach=lambda: None)
    return TieredStore(origin, level, key="object"), []


@pytest.mark.parametrize("layer", [over_peers, over_second_level])
@pytest.mark.parametrize("kind", [Store, Foreground])
def test_background_reads_are_those_of_the_origin(layer, kind):
    hints = hints_of(layer(kind(DATA))[0])
    assert hints.background_reads == hints_of(kind(DATA)).background_reads
    assert (hints.parallel_requests == 1) == (kind is Foreground)


@pytest.mark.parametrize("kind", [Store, Foreground])
def test_what_only_its_user_may_enter_is_not_served_to_peers(kind):
    """They would be answered by threads of the server."""
    origin = kind(DATA)
    assert over_peers(origin)[1] == ([origin] if kind is Store else [])
