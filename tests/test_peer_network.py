"""Peers on separate hosts, with a delay between them: one that is cut off reads from the origin, and comes back."""

import pytest
from network_hosts import Network, why_not
from support import PATIENCE_S, wait_until

HOSTS = ("a", "b", "c")
NBYTES = 6 * 1024 * 1024
EXTENT = 256 * 1024
PORT = 7400


@pytest.fixture(scope="module")
def hosts():
    """Three members and an origin, each on a host of its own: (network, origin, members)."""
    for library in ("fsspec", "aiohttp"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Network([*HOSTS, "origin"], delay_s=0.002) as network:
        origin = network.start("origin", "origin", nbytes=NBYTES)
        members = [f"{network.addresses[name]}:{PORT}" for name in HOSTS]
        options = {"extent_bytes": EXTENT, "request_bytes": EXTENT, "suspect_s": 0.2, "timeout_s": 1.0, "patience_s": PATIENCE_S}
        settings = {"nbytes": NBYTES, "cache": "32MiB", "members": members, "url": origin.started["url"], "options": options}
        workers = {
            name: network.start(name, "member", me=me, **settings) for name, me in zip(HOSTS, members, strict=True)
        }
        assert all(worker.started for worker in workers.values())
        yield network, origin, workers


def in_turn(workers, **command):
    """Have all workers do the same, one after the other; returns the answers."""
    return {name: worker.ask(**command) for name, worker in workers.items()}


def assert_right(answers):
    assert [(name, answer["wrong"]) for name, answer in answers.items()] == [(name, 0) for name in answers]


def test_a_partition_and_its_end(hosts):
    network, origin, workers = hosts
    answers = in_turn(workers)
    assert_right(answers)
    sent = origin.ask()["nbytes"]
    assert sent <= 1.05 * NBYTES, "each byte leaves the origin once"
    assert all(answer["peer_failures"] == 0 for answer in answers.values())

    network.cut("c", "a")
    network.cut("c", "b")
    answers = in_turn(workers, drop=True)
    assert_right(answers)
    assert network.nr_dropped > 0
    assert answers["c"]["peer_bytes"] == 0
    assert answers["c"]["origin_bytes"] == NBYTES, "who is cut off reads from the origin"
    assert answers["c"]["peer_failures"] > 0
    assert answers["a"]["peer_bytes"] > 0, "the others have each other"
    assert answers["b"]["peer_bytes"] > 0
    for answer in answers.values():
        assert answer["longest_s"] < PATIENCE_S

    network.heal()
    last = {}

    def peers_are_used_again():
        last.update(in_turn(workers, drop=True))
        assert_right(last)
        return all(answer["peer_bytes"] > 0 and answer["peer_failures"] == 0 for answer in last.values())

    wait_until(peers_are_used_again, "peers to be used again")
    origin.ask()
    assert_right(in_turn(workers))
    last.update(in_turn(workers, drop=True))
    assert_right(last)
    assert sum(answer["peer_bytes"] + answer["origin_bytes"] for answer in last.values()) >= 3 * NBYTES
    assert last["c"]["origin_bytes"] < NBYTES, "its own share, and no more"
