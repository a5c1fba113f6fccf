"""Eviction policies: exact victims beside a model, what each must withstand, and the engine's invariants for all."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Store, checked_cache, few, pages_of
from support.policy_models import model_of

import pagecache
from pagecache import truncate
from pagecache._core import AddressSpace, Segment, run_trace

POLICIES = ("kernel", "s3fifo", "sieve", "lirs", "adaptive")
OWN = POLICIES[1:]


class Engine:
    """A mapping of descriptors without data under one policy."""

    def __init__(self, nr_frames, policy):
        self.segment = Segment(nr_frames, nr_mappings=4, data=False, policy=policy)
        self.mapping = AddressSpace(self.segment)

    def run(self, pages):
        """Run accesses; return which of them missed."""
        missed = bytearray(len(pages))
        assert run_trace(self.mapping, array("Q", pages), missed) == sum(missed)
        return missed

    def cached(self):
        return {index for index, _, _ in self.mapping.folios()}

    def add(self, index, order=0, flags=()):
        folio = self.segment.alloc_folio(order)
        assert self.mapping.add_folio(folio, index) == 0
        folio.end_read(True)
        return folio


def mixed_trace(rng, nr, nr_pages):
    """Return accesses that are skewed, loop, scan and repeat, one after the other."""
    pages = []
    while len(pages) < nr:
        kind, length = rng.choice(["skewed", "loop", "scan", "again"]), rng.randint(1, nr // 5)
        start = rng.randrange(nr_pages)
        if kind == "skewed":
            pages += [int(rng.paretovariate(0.8)) % nr_pages for _ in range(length)]
        elif kind == "loop":
            width = rng.randint(1, nr_pages)
            pages += [start + step % width for step in range(length)]
        elif kind == "scan":
            pages += [2 * nr_pages + start + step for step in range(length)]
        else:
            pages += [page for page in range(start, start + length // 2) for _ in range(2)]
    return pages[:nr]


class TestExactVictims:
    @pytest.mark.parametrize("policy", ["s3fifo", "sieve", "lirs"])
    @pytest.mark.parametrize("nr_frames", [1, 2, 3, 10, 64, 300, 600])
    def test_every_access_hits_or_misses_as_in_the_model(self, rng, policy, nr_frames):
        pages = mixed_trace(rng, 3000, 3 * nr_frames + 5)
        engine, model = Engine(nr_frames, policy), model_of(policy, nr_frames)
        missed = engine.run(pages)
        for at, page in enumerate(pages):
            assert model.access(page) == missed[at], (at, page)
        assert engine.cached() == set(model.pages)
        engine.segment.check()

    def test_sieve_passes_by_what_was_used(self):
        engine = Engine(4, "sieve")
        engine.run([1, 2, 3, 4, 1, 3])
        engine.run([5])
        assert engine.cached() == {1, 3, 4, 5}
        engine.run([6])
        assert engine.cached() == {1, 3, 5, 6}

    def test_s3fifo_lets_one_touch_pages_pass(self):
        engine = Engine(20, "s3fifo")
        engine.run([*range(10), *range(10)])
        engine.run(range(100, 200))
        assert set(range(10)) <= engine.cached()

    def test_lirs_keeps_what_it_has_in_a_loop(self):
        engine = Engine(100, "lirs")
        misses = sum(engine.run([*range(150)] * 20)[150 * 10 :])
        assert misses <= 150 * 10 * 0.36


class TestAllPolicies:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("nr_frames", [1, 2, 3, 64, 1500])
    def test_everything_can_be_evicted_in_the_end(self, policy, nr_frames):
        engine = Engine(nr_frames, policy)
        engine.run([*range(nr_frames)] * 3)
        for _ in range(40):
            engine.segment.reclaim(nr_frames)
        assert engine.cached() == set()
        engine.segment.check()

    @pytest.mark.parametrize("policy", POLICIES)
    def test_what_is_locked_or_held_stays(self, policy):
        engine = Engine(64, policy)
        engine.run(range(64))
        locked, held = engine.mapping.get_folio(3), engine.mapping.get_folio(60)
        locked.lock()
        for _ in range(40):
            engine.segment.reclaim(64)
        assert engine.cached() == {3, 60}
        locked.unlock()
        locked.put()
        held.put()
        engine.segment.check()

    @pytest.mark.parametrize("policy", POLICIES)
    def test_large_folios_leave_as_a_whole(self, policy):
        engine = Engine(64, policy)
        for index in range(0, 640, 16):
            engine.add(index, order=index // 16 % 5).put()
        assert engine.segment.counters()["nr_file_pages"] <= 64
        engine.segment.check()
        for _ in range(40):
            engine.segment.reclaim(64)
        assert engine.segment.counters()["nr_file_pages"] == 0

    @pytest.mark.parametrize("policy", POLICIES)
    def test_reclaim_frees_what_was_asked_for(self, policy):
        for wanted in (1, 5, 32, 40):
            engine = Engine(64, policy)
            engine.run(range(64))
            assert 64 - len(engine.cached()) < wanted
            assert engine.segment.reclaim(wanted) >= wanted

    @few(40)
    @given(
        policy=st.sampled_from(POLICIES),
        nr_frames=st.sampled_from([1, 2, 3, 64]),
        steps=st.lists(
            st.tuples(st.sampled_from("aaauuuhrtdLs"), st.integers(0, 120), st.integers(0, 3)), max_size=120
        ),
    )
    def test_invariants_hold_whatever_happens(self, policy, nr_frames, steps):
        """Add (with an order), use, hold and let go, reclaim, truncate, deactivate, lock and unlock, split."""
        engine = Engine(nr_frames, policy)
        held = {}
        for action, index, order in steps:
            folio = engine.mapping.get_folio(index)
            if action == "a" and folio is None:
                new = engine.segment.alloc_folio(order)
                if new is not None:
                    if engine.mapping.add_folio(new, index & ~((1 << order) - 1)) == 0:
                        new.end_read(True)
                    new.put()
            elif action == "r":
                engine.segment.reclaim(1 + index % 40)
            elif action == "t":
                for kept in held.values():
                    kept.put()
                held.clear()
                truncate.truncate_inode_pages(engine.mapping, index * PAGE)
            elif folio is not None and action == "u":
                for _ in range(order):
                    folio.mark_accessed()
            elif folio is not None and action == "d":
                folio.deactivate()
            elif folio is not None and action == "h" and index not in held:
                held[index], folio = folio, None
            elif folio is not None and action == "L":
                folio.lock()
                engine.segment.reclaim(4)
                folio.unlock()
            elif folio is not None and action == "s":
                folio.lock()
                folio.split(index)
                folio.unlock()
            if folio is not None:
                folio.put()
        for kept in held.values():
            kept.put()
        engine.segment.check()

    @pytest.mark.parametrize("policy", POLICIES)
    def test_reads_and_writes_under_pressure_are_right(self, policy, rng):
        content = bytearray(pages_of(300 * PAGE))
        store = pagecache.MemoryStore(bytes(content))
        with checked_cache(40, policy=policy) as cache, cache.open(store, "r+b") as file:
            assert cache.segment.policy == policy
            for _ in range(400):
                pos, nbytes = rng.randrange(len(content)), rng.choice((1, 100, PAGE, 30_000))
                if rng.random() < 0.3:
                    data = rng.randbytes(min(nbytes, len(content) - pos))
                    file.pwrite(data, pos)
                    content[pos : pos + len(data)] = data
                else:
                    assert file.pread(nbytes, pos) == content[pos : pos + nbytes]
            file.fsync()

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match=r"unknown policy 'lfu'.*adaptive"):
            pagecache.PageCache("1MiB", policy="lfu")

    def test_the_default_adapts(self, make_cache):
        assert make_cache("1MiB").segment.policy == "adaptive"


class TestReadahead:
    def flooded(self, policy, make_cache):
        """A cache of 512 pages: 200 hot ones, and readahead of a stream of which only the first page is used."""
        cache = make_cache(512 * PAGE, policy=policy)
        hot, stream = Store(bytes(200 * PAGE), key="hot"), Store(bytes(20_000 * PAGE), key="stream")
        with cache.open(hot) as hot_file, cache.open(stream) as stream_file:
            hot_file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(3):
                for index in range(200):
                    hot_file.pread(1, index * PAGE)
            for start in range(0, 19_000, 100):
                stream_file.fadvise(pagecache.FADV_WILLNEED, start * PAGE, 30 * PAGE)
                stream_file.inode.wait_idle(10.0)
            return hot_file.cachestat().nr_cache

    @pytest.mark.parametrize("policy", ["s3fifo", "lirs", "adaptive"])
    def test_what_is_not_asked_for_leaves_first(self, policy, make_cache):
        assert self.flooded(policy, make_cache) >= 190

    @pytest.mark.parametrize("policy", OWN)
    def test_a_window_is_not_evicted_before_it_is_read(self, policy, make_cache):
        cache = make_cache(1024 * PAGE, policy=policy)
        store = Store(bytes(6000 * PAGE))
        with cache.open(store) as file:
            while file.read(PAGE):
                pass
            stats = cache.stats()
        assert stats.store_read_bytes <= 6000 * PAGE * 1.02
        assert stats.readahead_wasted <= 60


    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("nr_frames", [2, 3, 64])
    def test_a_long_read_takes_few_requests_in_a_small_cache(self, policy, nr_frames, make_cache):
        """What is being read is locked: its room comes from what was kept, not one page at a time."""
        cache = make_cache(nr_frames * PAGE, policy=policy)
        with cache.open(pagecache.MemoryStore(bytes(300 * PAGE))) as file:
            assert len(file.readall()) == len(file.pread(300 * PAGE, 0)) == 300 * PAGE
            assert cache.stats().store_reads <= 2 * 300 / nr_frames * 4 + 20


class TestAdaptive:
    def test_a_scan_leaves_the_working_set(self):
        engine = Engine(2000, "adaptive")
        hot = list(range(1000))
        engine.run(hot * 5)
        engine.run(range(10_000, 30_000))
        assert len(engine.cached() & set(hot)) >= 950

    def test_a_flood_of_pages_used_once_costs_little(self, rng):
        engine = Engine(1000, "adaptive")
        pages = []
        for step in range(60_000):
            pages.append(rng.randrange(700) if step % 3 else 10_000 + step)
        missed = engine.run(pages)
        hot = [missed[at] for at in range(30_000, 60_000) if pages[at] < 700]
        assert sum(hot) <= 0.03 * len(hot)

    def test_a_loop_hits_as_often_as_it_can(self):
        engine = Engine(500, "adaptive")
        missed = engine.run([*range(800)] * 30)
        assert sum(missed[800 * 15 :]) <= 800 * 15 * 0.45
        (share, by_recency), _, _ = engine.segment.adapted
        assert share <= 0.1
        assert by_recency

    def test_what_is_recent_stays_when_the_working_set_moves(self, rng):
        """Pages are used around a place that moves on: the only good rule is recency."""
        engine, kernel = Engine(500, "adaptive"), Engine(500, "kernel")
        pages = [step // 40 + int(rng.expovariate(1 / 120)) for step in range(120_000)]
        assert sum(engine.run(pages)) <= 1.02 * sum(kernel.run(pages))

    def test_follows_a_workload_that_changes(self, rng):
        engine = Engine(500, "adaptive")
        engine.run([*range(800)] * 20)
        engine.run([step // 40 + int(rng.expovariate(1 / 120)) for step in range(150_000)])
        (_share, _), nr_switches, _ = engine.segment.adapted
        assert nr_switches >= 1
        missed = engine.run([100_000 + page for page in [*range(800)] * 60])
        assert sum(missed[800 * 50 :]) <= 800 * 10 * 0.55

    def test_large_folios_are_sampled_as_folios(self):
        engine = Engine(4096, "adaptive")
        for _turn in range(4):
            for index in range(0, 64 * 150, 64):
                folio = engine.mapping.get_folio(index)
                if folio is None:
                    engine.add(index, order=6).put()
                else:
                    folio.mark_accessed()
                    folio.put()
        assert sum(engine.segment.adapted[2]) > 0
        engine.segment.check()

    def test_other_policies_have_nothing_to_tell(self):
        assert Engine(10, "lirs").segment.adapted is None
