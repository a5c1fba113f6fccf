"""Sets that keep nothing alive and may be walked while other threads change them."""

import gc
import threading

from support import STRESS, Crew

from pagecache.weak_members import WeakMembers


class Thing:
    """What can be referred to weakly."""


def test_members_are_there_as_long_as_they_live_and_are_not_discarded():
    things, members = [Thing() for _ in range(3)], WeakMembers()
    for thing in (*things, things[0]):
        members.add(thing)
    assert (len(members), {id(member) for member in members}) == (3, {id(thing) for thing in things})
    members.discard(things[0])
    members.discard(things[0])
    assert things[0] not in list(members)
    del things[1:]
    gc.collect()
    assert (len(members), list(members)) == (0, [])


def test_they_are_walked_while_others_come_and_go():
    members, done = WeakMembers(), threading.Event()
    kept = [Thing() for _ in range(100)]
    for thing in kept:
        members.add(thing)

    def change():
        try:
            for _ in range(20_000 if STRESS else 2000):
                passing = [Thing() for _ in range(10)]
                for thing in passing:
                    members.add(thing)
                members.discard(passing[0])
        finally:
            done.set()

    def walk():
        while not done.is_set():
            found = {id(member) for member in members}
            assert found >= {id(thing) for thing in kept}

    Crew(change, walk, walk).join_well()
    gc.collect()
    assert len(members) == len(kept)
