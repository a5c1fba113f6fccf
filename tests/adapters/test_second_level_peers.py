"""Peers above a second level: an owner asks the server before the origin, and what one cluster has read the next finds."""

import pytest
from support import PATIENCE_S, pages_of
from support.peer_support import EXTENT as PEER_EXTENT
from support.peer_support import Machine, Objects, know_each_other
from support.value_servers import ValueServer, has_client, valkey_program

from pagecache.adapters.valkey import SecondLevel, TieredStore

NAME = "data"


@pytest.fixture
def server():
    if valkey_program() is None:
        pytest.skip("no valkey-server and no redis-server: install one, or name one in PAGECACHE_VALKEY_SERVER")
    if not has_client():
        pytest.skip("neither valkey nor redis, the client libraries, is installed")
    with ValueServer() as server:
        yield server


class TieredObjects(Objects):
    """An origin whose stores have a second level."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def open(self, name):
        return TieredStore(super().open(name), self.level)


def cluster(objects, nr_members):
    """Return so many members that know each other."""
    made = [Machine(objects) for _ in range(nr_members)]
    know_each_other(made)
    return made


def read_by_all(machines, data):
    for machine in machines:
        with machine.open(NAME) as file:
            assert file.read() == data


def test_owners_fill_the_server_and_the_next_cluster_reads_it(server):
    data = pages_of(10 * PEER_EXTENT + 77)
    settings = {"extent_bytes": PEER_EXTENT // 4, "timeout_s": PATIENCE_S, "patience_s": PATIENCE_S}
    with SecondLevel(server.url, **settings) as level:
        objects = TieredObjects(level)
        objects.put(NAME, data)
        for number in range(2):
            machines = cluster(objects, 3)
            try:
                read_by_all(machines, data)
                assert level.flush(PATIENCE_S)
                counts = [machine.counts() for machine in machines]
            finally:
                for machine in machines:
                    machine.close()
            assert objects.bytes_read() == len(data), "once for all clusters"
            assert sum(count["origin_bytes"] for count in counts) == (len(data) if number == 0 else 0)
            assert sum(count["second_level_bytes"] for count in counts) == (0 if number == 0 else len(data))
            assert sum(count["peer_bytes"] for count in counts) >= 2 * len(data) - PEER_EXTENT
        objects.put(NAME, data[::-1])
        machines = cluster(objects, 2)
        try:
            read_by_all(machines, data[::-1])
        finally:
            for machine in machines:
                machine.close()


def test_without_peers_and_without_the_server_the_origin_is_left(server):
    data = pages_of(6 * PEER_EXTENT)
    with SecondLevel(server.url, extent_bytes=PEER_EXTENT // 4) as level:
        objects = TieredObjects(level)
        objects.put(NAME, data)
        one, other = cluster(objects, 2)
        try:
            read_by_all([one], data)
            other.close()
            server.kill()
            one.cache.drop_caches()
            read_by_all([one], data)
        finally:
            one.close()
            other.close()
