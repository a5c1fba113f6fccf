"""A wait in the engine holds no other thread up: neither the GIL while it sleeps for a lock, nor a lock during a long walk;
and no chance to go on is missed."""

import subprocess
import sys
import textwrap
import threading
from array import array

import pytest
from support import Crew, WatchedMemoryWait, add_page, wait_until

from pagecache._core import AddressSpace, MemoryWait, Segment, run_trace
from pagecache.requests import fill

NR_WALKED = 500_000  # folios: some 250 times as many as a walk looks at in one go

WAITS = """
    import sys, threading
    from pagecache._core import AddressSpace, EventCount, Segment, _hold_engine_lock

    def folio_given_back(segment, mapping):
        folio = segment.alloc_folio()
        return folio.put

    def folio_looked_for(segment, mapping):
        return lambda: mapping.get_folio(99)

    def folio_added(segment, mapping):
        folio = segment.alloc_folio()
        def add():
            assert mapping.add_folio(folio, 1 << 30) == 0
            folio.unlock()
            folio.put()
        return add

    def mapping_made(segment, mapping):
        return lambda: made.append(AddressSpace(segment))

    made = []
    cases = {"index": folio_looked_for, "lru": folio_added, "buddy": folio_given_back, "nodes": folio_added,
             "mappings": mapping_made}
    for name, prepare in cases.items():
        segment = Segment(64, nr_mappings=4)
        mapping = AddressSpace(segment)
        call = prepare(segment, mapping)
        held, until = EventCount(), EventCount()
        holder = threading.Thread(target=_hold_engine_lock, args=(segment, name, held, until, mapping.number))
        holder.start()
        held.wait(0)
        calling = threading.Event()
        waiter = threading.Thread(target=lambda: (calling.set(), call()))
        waiter.start()
        calling.wait()
        for _ in range(3):
            threading.Event().wait(0.01)        # needs the GIL to go on
            assert waiter.is_alive(), name
        until.advance()
        waiter.join()
        holder.join()
        segment.check()
        print(name)
"""


def test_no_thread_sleeps_for_an_engine_lock_with_the_gil():
    """For each lock, alone and inside another: the thread that waits would keep all others from running."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(WAITS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["index", "lru", "buddy", "nodes", "mappings"]


@pytest.fixture(scope="module")
def long_mapping():
    """A mapping with many small folios, without data."""
    segment = Segment(NR_WALKED + 1000, data=False, nr_mappings=4)
    mapping = AddressSpace(segment)
    run_trace(mapping, array("Q", range(NR_WALKED)))
    assert mapping.nrpages == NR_WALKED
    yield mapping
    segment.check()


WALKS = {
    "cachestat": lambda mapping: mapping.cachestat(0, NR_WALKED)[0],
    "nr_unused": lambda mapping: NR_WALKED - mapping.nr_unused(),
    "folios": lambda mapping: len(mapping.folios()),
}


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_over_a_whole_file_lets_others_have_the_lock(long_mapping, name):
    """Lookups under the lock during one walk are hundreds where a processor is free for them; two where it is held."""
    mapping, walk = long_mapping, WALKS[name]
    for _ in range(50):
        done = threading.Event()

        def walk_on(done=done):
            try:
                return walk(mapping)
            finally:
                done.set()

        crew = Crew(walk_on)
        nr_served = 0
        while not done.is_set():
            assert mapping.get_folio(NR_WALKED + 5) is None
            nr_served += 1
        assert crew.join_well() == [NR_WALKED]
        if nr_served > 10:
            return
    raise AssertionError(f"{nr_served} lookups during a walk")


def test_walks_count_what_a_walk_in_one_go_counts(long_mapping):
    """Whatever the place at which the lock is given up: between folios of one node, and between nodes."""
    for first, last in [(0, 0), (1, 2047), (0, 2048), (63, 64), (2000, 7000), (NR_WALKED - 1, NR_WALKED + 100)]:
        expected = min(last, NR_WALKED - 1) - first + 1
        assert long_mapping.cachestat(first, last) == (expected, 0, 0, 0, 0)
        assert sum(long_mapping.mincore(first, last - first + 1)) == expected
    assert long_mapping.next_present(NR_WALKED, 1 << 40) == (1 << 40) + 1
    assert [folio[0] for folio in long_mapping.folios()] == list(range(NR_WALKED))


def test_walks_go_on_behind_shadows_large_folios_and_the_last_page():
    segment = Segment(8192, nr_mappings=4)
    mapping = AddressSpace(segment)
    places = [*range(0, 5000, 2), 5120, (1 << 52) - 1]
    for index in places:
        assert add_page(mapping, index, b"x", 9 if index == 5120 else 0)
    found = mapping.cachestat(0, (1 << 64) - 1)
    assert found[0] == len(places) - 1 + 512 and len(mapping.folios()) == len(places)
    assert mapping.next_present(5000, (1 << 64) - 2) == 5120
    assert mapping.next_present(5120 + 512, (1 << 64) - 2) == (1 << 52) - 1
    for _ in range(20):
        segment.reclaim(4096)
    assert mapping.nrpages == 0
    assert mapping.cachestat(0, (1 << 64) - 1)[3] > 0  # shadows
    assert mapping.next_present(0, (1 << 64) - 2) == (1 << 64) - 1
    assert mapping.nr_unused() == 0 and mapping.folios() == []
    segment.check()


def test_mincore_of_a_terabyte_touches_what_is_cached_and_no_more():
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "RUSAGE_THREAD"):
        pytest.skip("needs the page faults of one thread")
    segment = Segment(64, nr_mappings=4)
    mapping = AddressSpace(segment)
    last = (1 << 28) - 1
    for index in (0, 5, 1 << 20, last):
        assert add_page(mapping, index)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    found = mapping.mincore(0, 1 << 28)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    assert (len(found), found[0], found[5], found[1 << 20], found[last]) == (1 << 28, 1, 1, 1, 1)
    assert found[1:5] == bytes(4) and found[6:1000] == bytes(994) and found[-1000:-1] == bytes(999)
    assert faults < 64  # of 65,536 pages


class TestMemoryWait:
    def test_what_is_given_back_before_the_sleep_is_not_missed(self, monkeypatch):
        """Between the first look and the announcement it is not announced that memory has become free."""
        segment = Segment(1, nr_mappings=2)
        held = segment.alloc_folio()
        waits = []

        class Between:
            """The segment; what it holds is given back right after the first look."""

            nr_looks = 0

            def __getattr__(self, name):
                return getattr(segment, name)

            def alloc_folio(self, order=0):
                folio = segment.alloc_folio(order)
                if self.nr_looks == 0:
                    held.put()
                self.nr_looks += 1
                return folio

        monkeypatch.setattr(fill, "MemoryWait", lambda _: WatchedMemoryWait(segment, waits.append))
        fill.alloc_folio(Between()).put()
        assert waits == []

    @pytest.mark.parametrize("ended_by", ["put", "unlock"])
    def test_an_event_between_look_and_sleep_ends_the_sleep(self, ended_by):
        segment = Segment(1, nr_mappings=2)
        mapping = AddressSpace(segment)
        folio = segment.alloc_folio()
        if ended_by == "unlock":
            assert mapping.add_folio(folio, 0) == 0
        with MemoryWait(segment) as memory:
            assert memory.look(segment.alloc_folio) is None
            if ended_by == "unlock":
                folio.unlock()
            folio.put()
            memory.wait(1000)  # would take longer than a test may
            memory.look(segment.alloc_folio).put()
        assert segment.counters()["nr_waiting_for_memory"] == 0

    def test_what_a_look_itself_gives_back_ends_no_sleep(self):
        """A folio that cannot leave is taken off its list and put back by every look: that is no news."""
        segment = Segment(1, nr_mappings=2)
        mapping = AddressSpace(segment)
        assert add_page(mapping, 0, b"x")
        held = mapping.get_folio(0)
        slept = threading.Event()

        def wait():
            with MemoryWait(segment) as memory:
                assert memory.look(segment.alloc_folio) is None
                memory.wait(1000)
                slept.set()
                memory.look(segment.alloc_folio).put()

        crew = Crew(wait)
        wait_until(lambda: segment.counters()["nr_waiting_for_memory"] == 1, "the waiter")
        for _ in range(20):
            threading.Event().wait(0.001)
        assert not slept.is_set()
        held.put()
        crew.join_well()

    def test_dropping_it_ends_the_wait(self):
        segment = Segment(1, nr_mappings=2)
        wait = MemoryWait(segment)
        wait.__enter__()
        assert segment.counters()["nr_waiting_for_memory"] == 1
        del wait
        assert segment.counters()["nr_waiting_for_memory"] == 0
