"""Peers on separate hosts, with a delay between them: one that is cut off reads from the origin, and comes back."""

import pytest
from support import PATIENCE_S, wait_until
from support.network_hosts import Network, why_not

HOSTS = ("a", "b", "c")
NBYTES = 3 * 1024 * 1024
EXTENT = 128 * 1024
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
        options = {"suspect_s": 1.0, "timeout_s": 0.5, "patience_s": PATIENCE_S}
        options |= {"extent_bytes": EXTENT, "request_bytes": EXTENT}
        settings = {"nbytes": NBYTES, "cache": "32MiB", "members": members, "options": options}
        settings["url"] = origin.started["url"]
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


def rounds_until(workers, condition, what):
    """Have all read everything, in turn and anew, until the answers are as they should be; all of them must be right.

    A machine that is busy makes peers look slow: then there is one more round.
    """
    answers = {}

    def is_so():
        answers.update(in_turn(workers, drop=True))
        assert_right(answers)
        return condition(answers)

    wait_until(is_so, what)
    return answers


def share(answers):
    """Return what came from peers, by host (bytes)."""
    return [answers[name]["peer_bytes"] for name in HOSTS]


def test_a_partition_and_its_end(hosts):
    network, origin, workers = hosts

    def is_read_once(answers):
        return origin.ask()["nbytes"] <= 1.05 * NBYTES and all(share(answers))

    rounds_until(workers, is_read_once, "each byte to leave the origin once")

    network.cut("c", "a")
    network.cut("c", "b")
    answers = in_turn(workers, drop=True)
    assert_right(answers)
    assert network.nr_dropped > 0
    assert answers["c"]["peer_bytes"] == 0
    assert answers["c"]["origin_bytes"] == NBYTES, "one that is cut off reads from the origin"
    assert answers["c"]["peer_failures"] > 0
    rounds_until(workers, lambda answers: all(share(answers)[:2]), "the others to have each other")
    answers = in_turn(workers, drop=True)
    assert answers["c"]["peer_bytes"] == 0

    network.heal()
    rounds_until(workers, is_read_once, "peers to be used again")
