"""The budget is true of all that is resident: for whatever access, beside whatever size, as the system counts it."""

import errno
import os
import random

import pytest
from support import PAGE, Crew, add_page
from support.resident import resident_bytes

import pagecache
from pagecache import _core, truncate
from pagecache._core import AddressSpace, Segment

MIB = 1 << 20
TIB = 1 << 40
SMALL = 96 * MIB  # where 1.8 % is about what every cache needs
STRESS = os.environ.get("PAGECACHE_STRESS") == "1"


class Quick:
    """A store of any size that leaves memory as it is, so that tests take no longer than they must."""

    key = "quick"
    background_reads = False

    def __init__(self, nbytes, key="quick"):
        self.nbytes, self.key = nbytes, key

    def size(self):
        return self.nbytes

    def validator(self):
        return "1"

    def readv(self, offset, buffers):
        for buffer in buffers:
            buffer[::PAGE] = b"\1" * len(buffer[::PAGE])
        return sum(map(len, buffers))

    def close(self):
        pass


def scan(cache, nbytes):
    """Read an object in order."""
    with cache.open(Quick(nbytes, f"scan{nbytes}")) as file:
        for offset in range(0, nbytes, MIB):
            file.pread(MIB, offset)


@pytest.fixture
def read_far_apart(tmp_path):
    """A function that reads single pages of a file of 8 TiB, which is one hole."""
    path = tmp_path / "far"
    with open(path, "wb") as file:
        try:
            file.truncate(8 * TIB)
        except OSError as error:
            pytest.skip(f"no files of 8 TiB here: {error}")

    def read(cache, nr, rng):
        with cache.open(path) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(nr):
                file.pread(1, rng.randrange(8 * TIB))

    return read


def read_objects(cache, nr, nbytes=10_000):
    """Read small objects, one after the other."""
    for number in range(nr):
        with cache.open(Quick(nbytes, f"object{number}")) as file:
            file.pread(nbytes, 0)


def assert_true(cache, size):
    """Hold what the system counts, and what the cache says of it, against the budget."""
    resident = resident_bytes(cache.segment)
    assert resident <= 1.018 * size, f"{resident / size:.4f}"
    memory = cache.stats().memory
    tables = sum(memory[name] for name in ("descriptors", "nodes", "records", "tables"))
    frames = memory["pages"] + memory["held"] + memory["free"] + memory["unreturned"]
    assert resident <= frames + tables
    assert frames + tables <= 1.018 * size
    cache.check()


class TestResident:
    """Each kind of access keeps the segment within its budget and 1.8 %."""

    @pytest.fixture
    def cache(self, make_cache):
        return make_cache(SMALL, max_size=2 * SMALL)

    def test_of_a_scan(self, cache):
        scan(cache, 2 * SMALL)
        assert_true(cache, SMALL)
        assert resident_bytes(cache.segment) > 0.95 * SMALL

    def test_of_pages_far_apart(self, cache, rng, read_far_apart):
        read_far_apart(cache, 5 * SMALL // PAGE // 4, rng)
        assert_true(cache, SMALL)
        stats = cache.stats()
        assert stats.memory["nodes"] > 0.05 * SMALL, "nodes have to cost something here"
        assert stats.nr_file_pages * PAGE > 0.8 * SMALL

    def test_of_many_objects(self, cache):
        read_objects(cache, 5_000)
        assert_true(cache, SMALL)

    def test_of_all_of_these_in_turn_and_nodes_go_back(self, cache, rng, read_far_apart):
        read_far_apart(cache, SMALL // PAGE, rng)
        nodes = cache.stats().memory["nodes"]
        read_objects(cache, 1_000)
        assert_true(cache, SMALL)
        scan(cache, 2 * SMALL)
        assert_true(cache, SMALL)
        assert cache.stats().memory["nodes"] < nodes / 4
        assert cache.stats().nr_file_pages * PAGE > 0.95 * SMALL
        read_far_apart(cache, 1_000, rng)
        assert_true(cache, SMALL)

    def test_after_shrinking_and_growing(self, cache, rng, read_far_apart):
        cache.resize(2 * SMALL)
        scan(cache, 2 * SMALL)
        read_far_apart(cache, SMALL // PAGE // 2, rng)
        assert_true(cache, 2 * SMALL)
        cache.resize(SMALL)
        assert_true(cache, SMALL)
        scan(cache, 2 * SMALL)
        assert_true(cache, SMALL)
        cache.resize(2 * SMALL)
        scan(cache, 3 * SMALL)
        assert_true(cache, 2 * SMALL)
        assert cache.stats().nr_file_pages * PAGE > 0.9 * 2 * SMALL


class TestCharge:
    """A segment of its own, whose nodes are many: what is charged is paid for."""

    @pytest.fixture
    def segment(self):
        segment = Segment(4096, nr_mappings=64)
        yield segment
        segment.check()

    def fill_far_apart(self, segment, mapping, nr, start=0):
        for number in range(start, start + nr):
            assert add_page(mapping, number << 20)

    def test_takes_frames_as_nodes_become_many_and_gives_them_back(self, segment):
        mapping = AddressSpace(segment, "object")
        self.fill_far_apart(segment, mapping, 6000)
        segment.check()
        present, wanted = _core.balloon_frames(segment)
        assert present >= wanted > 0
        assert segment.counters()["nr_frames"] == 4096 - present
        memory = _core.memory_of(segment)
        charged = sum(memory[name] for name in ("descriptors", "nodes", "records", "tables")) - memory["allowance"]
        assert wanted == -(-charged // PAGE)
        truncate.truncate_inode_pages(mapping, 0)
        del mapping
        segment.check()
        assert _core.balloon_frames(segment)[1] == 0
        assert segment.counters()["nr_free_pages"] >= 4096 - 16

    def test_shadows_give_way_before_pages_do(self, segment):
        """What was evicted is forgotten before a page leaves for it."""
        mapping = AddressSpace(segment, "object")
        self.fill_far_apart(segment, mapping, 20_000)
        counters = segment.counters()
        assert counters["workingset_nodereclaim"] > 1000
        assert counters["workingset_nodes"] <= 4096 // 36 + 8
        truncate.truncate_inode_pages(mapping, 0)

    def test_that_cannot_be_paid_is_refused_and_nothing_is_touched(self, segment):
        mapping = AddressSpace(segment, "object")
        folios = []
        while (folio := segment.alloc_folio(9)) is not None:
            folios.append(folio)
        for _ in range(4):
            folios.pop().put()
        added = 0
        while add_page(mapping, added << 20):
            folios.append(mapping.get_folio(added << 20))
            added += 1
        assert 1000 < added < 2048
        before = _core.memory_of(segment)["nodes"]
        assert not add_page(mapping, added << 20)
        assert _core.memory_of(segment)["nodes"] == before
        assert segment.counters()["nr_free_pages"] < 16
        for folio in folios:
            folio.put()
        assert add_page(mapping, added << 20)
        truncate.truncate_inode_pages(mapping, 0)

    def test_goes_on_where_the_system_takes_no_memory(self, segment):
        """As with mlockall: pages are served, and what is resident beyond the budget is said."""
        _core.fail_advice(segment, 1 << 31)
        mapping = AddressSpace(segment, "object")
        self.fill_far_apart(segment, mapping, 6000)
        assert _core.memory_of(segment)["unreturned"] > 0
        segment.check()
        truncate.truncate_inode_pages(mapping, 0)
        segment.check()
        _core.fail_advice(segment, 0)
        self.fill_far_apart(segment, mapping, 6000)
        truncate.truncate_inode_pages(mapping, 0)

    def test_an_injected_failure_of_a_node_still_shows(self, segment):
        mapping = AddressSpace(segment, "object")
        assert add_page(mapping, 1)
        segment.fail_node_allocation(1)
        with segment.alloc_folio() as folio:
            assert mapping.add_folio(folio, 1 << 30) == -errno.ENOMEM
        assert add_page(mapping, 1 << 30)

    @pytest.mark.parametrize("nr_frames", [1, 2, 3, 64])
    def test_tiny_caches_serve_pages_that_are_far_apart(self, nr_frames):
        segment = Segment(nr_frames, nr_mappings=4)
        mapping = AddressSpace(segment, "object")
        for number in range(200):
            assert add_page(mapping, random.Random(number).randrange(1 << 50))
        assert segment.counters()["nr_frames"] >= min(nr_frames, 20), "the first nodes are free"
        segment.check()


def test_nothing_is_touched_first_under_a_lock(make_cache, rng, read_far_apart):
    """Page faults that a thread meets while it holds a lock of the engine: none."""
    if _core.watch_locks(False) < 0:
        pytest.skip("locks are watched in checking builds on Linux")
    cache = make_cache(32 * MIB, max_size=64 * MIB)
    scan(cache, 4 * MIB)  # what is not the segment's: stacks, code
    read_far_apart(cache, 100, rng)
    read_objects(cache, 10)
    cache.resize(33 * MIB)
    _core.watch_locks(True)
    try:
        scan(cache, 48 * MIB)
        read_far_apart(cache, 12_000, rng)
        read_objects(cache, 500)
        cache.resize(64 * MIB)
        scan(cache, 80 * MIB)
        cache.resize(24 * MIB)
        read_far_apart(cache, 6_000, rng)
        cache.resize(64 * MIB)
        scan(cache, 80 * MIB)
    finally:
        assert _core.watch_locks(False) == 0


def test_threads_that_charge_at_once_stay_within_the_budget(make_cache, seed):
    cache = make_cache(16 * MIB, max_size=32 * MIB)
    rounds = 3_000 if STRESS else 400

    def read(number):
        rng = random.Random(seed + number)
        with cache.open(Quick(16 * TIB, f"far{number % 2}")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(rounds):
                assert len(file.pread(1, rng.randrange(16 * TIB))) == 1

    def resize():
        rng = random.Random(seed)
        for _ in range(rounds // 20):
            cache.resize(rng.randint(100, 8192) * PAGE)

    Crew(*[lambda number=number: read(number) for number in range(4)], resize).join_well()
    cache.check()
