"""Priorities of files and shares of tenants: what leaves first, what is passed by, and that the budget is always had."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HAS_GIL, PAGE, Crew, Store, few

import pagecache
from pagecache import _core, truncate
from pagecache._core import AddressSpace, Segment

POLICIES = ("kernel", "s3fifo", "sieve", "lirs", "adaptive")
PRIORITIES = ("low", "normal", "high", "keep")

every_policy = pytest.mark.parametrize("policy", POLICIES)


def read_pages(file, indices):
    """Read one byte of each page."""
    for index in indices:
        file.pread(1, index * PAGE)


def opened(cache, key, nr_pages, **how):
    """Open an object of zeros that is read page by page."""
    file = cache.open(Store(bytes(nr_pages * PAGE), key=key), **how)
    file.fadvise(pagecache.FADV_RANDOM)
    return file


def nr_cached(file):
    return file.cachestat().nr_cache


class TestPriority:
    @every_policy
    def test_what_is_not_reused_leaves_before_anything_else(self, make_cache, policy):
        cache = make_cache(256 * PAGE, policy=policy)
        with opened(cache, "hot", 200) as hot, opened(cache, "once", 2000) as once:
            read_pages(hot, [*range(200)])  # used once: no policy would prefer them
            once.fadvise(pagecache.FADV_NOREUSE)
            read_pages(once, range(2000))
            assert nr_cached(hot) == 200
            once.fadvise(pagecache.FADV_NORMAL)
            read_pages(once, range(2000))
            read_pages(once, range(2000))
            assert nr_cached(hot) < 200 or policy in ("lirs", "adaptive")

    def test_readahead_of_a_file_without_reuse_is_read_before_it_leaves(self, make_cache):
        cache = make_cache(256 * PAGE)
        store = Store(bytes(3000 * PAGE))
        with opened(cache, "hot", 100) as hot, cache.open(store) as file:
            read_pages(hot, range(100))
            file.fadvise(pagecache.FADV_NOREUSE)
            while file.read(PAGE):
                pass
            stats = cache.stats()
            assert nr_cached(hot) == 100
        assert stats.store_read_bytes <= (3000 * 1.05 + 100) * PAGE

    def test_advice_counts_while_all_open_files_give_it(self, make_cache):
        cache = make_cache(64 * PAGE)
        store = Store(bytes(10 * PAGE))
        with cache.open(store) as one:
            one.fadvise(pagecache.FADV_NOREUSE)
            assert _core.priority_of(one.mapping) == "low"
            with cache.open(store) as other:
                assert _core.priority_of(one.mapping) == "normal"
                other.fadvise(pagecache.FADV_NOREUSE)
                other.fadvise(pagecache.FADV_NOREUSE)
                assert _core.priority_of(one.mapping) == "low"
            assert _core.priority_of(one.mapping) == "low"
            one.priority = "high"
            assert _core.priority_of(one.mapping) == "high"
            one.priority = "normal"
            assert (one.priority, _core.priority_of(one.mapping)) == ("normal", "low")
            one.fadvise(pagecache.FADV_NORMAL)
            assert _core.priority_of(one.mapping) == "normal"

    @every_policy
    def test_what_is_high_is_passed_by(self, make_cache, policy):
        cache = make_cache(256 * PAGE, policy=policy)
        with opened(cache, "index", 200, priority="high") as index, opened(cache, "rest", 2000) as rest:
            read_pages(index, range(200))
            for _ in range(2):
                read_pages(rest, range(2000))
            assert nr_cached(index) >= 200 - 8

    @every_policy
    def test_what_is_high_leaves_when_nothing_else_can(self, make_cache, policy):
        cache = make_cache(64 * PAGE, policy=policy)
        with opened(cache, "big", 300, priority="high") as big:
            read_pages(big, [*range(300)] * 2)
            assert 16 <= nr_cached(big) <= 64

    @every_policy
    @pytest.mark.parametrize("nr_frames", [1, 2, 3, 64, 1100])
    def test_random_reads_once_an_epoch_hit_what_fits(self, make_cache, rng, policy, nr_frames):
        """Twice as many pages as fit, in a new order each epoch: half of them hit, less what reclaim leaves free."""
        cache = make_cache(nr_frames * PAGE, policy=policy)
        nr_pages = 2 * nr_frames
        with opened(cache, "samples", nr_pages, priority="keep") as file:
            for _epoch in range(3):
                before = cache.stats().store_reads
                read_pages(file, rng.sample(range(nr_pages), nr_pages))
                misses = cache.stats().store_reads - before
            spare = 32 if policy == "kernel" else nr_frames // 128
            ahead = (32 if HAS_GIL else 64) * (nr_frames >= 1024)  # what the reclaimer may free before it is needed
            assert misses <= nr_pages - nr_frames + spare + nr_frames // 64 + ahead + 2

    @every_policy
    def test_others_are_read_beside_what_is_kept(self, make_cache, policy):
        cache = make_cache(64 * PAGE, policy=policy)
        with opened(cache, "samples", 500, priority="keep") as kept, opened(cache, "other", 500) as other:
            read_pages(kept, range(500))
            assert len(other.pread(300 * PAGE, 0)) == 300 * PAGE
            with other.view(PAGE, 0) as view, other.view(PAGE, 9 * PAGE) as second:
                assert view == second == bytes(PAGE)

    def test_unknown_priorities_are_refused(self, make_cache):
        with opened(make_cache("1MiB"), "any", 1) as file, pytest.raises(ValueError, match=r"'urgent'.*keep"):
            file.priority = "urgent"


class TestShares:
    @every_policy
    def test_a_tenant_keeps_its_share_while_another_floods(self, make_cache, policy):
        cache = make_cache(512 * PAGE, policy=policy, shares={"calm": 200 * PAGE, "busy": "20%"})
        with opened(cache, "calm", 180, tenant="calm") as calm, opened(cache, "busy", 1500, tenant="busy") as busy:
            read_pages(calm, range(180))
            read_pages(busy, [*range(1500)] * 2)
            assert nr_cached(calm) == 180
            assert nr_cached(busy) > 250  # borrows what no other needs
            assert cache.shares.usage() == {
                "calm": (200 * PAGE, 180 * PAGE),
                "busy": (102 * PAGE, nr_cached(busy) * PAGE),
            }

    @every_policy
    def test_what_was_borrowed_goes_back(self, make_cache, policy):
        cache = make_cache(512 * PAGE, policy=policy, shares={"one": "50%", "other": "25%"})
        with opened(cache, "one", 250, tenant="one") as one, opened(cache, "other", 1000, tenant="other") as other:
            read_pages(other, [*range(1000)] * 2)
            assert nr_cached(other) > 400
            read_pages(one, range(250))
            assert nr_cached(one) >= 250 - 1
            assert nr_cached(other) >= 128

    def test_an_object_takes_its_pages_to_its_tenant(self, make_cache):
        cache = make_cache(64 * PAGE, shares={"one": "50%", "other": "25%"})
        with opened(cache, "any", 10) as file:
            read_pages(file, range(10))
            cache.shares.assign(file.mapping, "one")
            assert cache.shares.usage()["one"][1] == 10 * PAGE
            cache.check()
            cache.shares.assign(file.mapping, "other")
            assert [used for _, used in cache.shares.usage().values()] == [0, 10 * PAGE]
            cache.shares.assign(file.mapping, None)
            assert [used for _, used in cache.shares.usage().values()] == [0, 0]

    def test_what_cannot_be_shared_is_refused(self, make_cache):
        cache = make_cache(64 * PAGE, shares={"one": "60%"})
        with pytest.raises(ValueError, match="budget"):
            cache.shares.set("other", "50%")
        cache.shares.set("one", "40%")
        cache.shares.set("other", "50%")
        with pytest.raises(ValueError, match=r"'third'.*one, other"):
            opened(cache, "any", 1, tenant="third")
        with pytest.raises(ValueError, match="63"):
            for number in range(64):
                cache.shares.set(f"tenant {number}", 0)


class TestInvariants:
    @few(40)
    @given(
        policy=st.sampled_from(POLICIES),
        nr_frames=st.sampled_from([1, 2, 3, 64]),
        steps=st.lists(
            st.tuples(st.sampled_from("aaauuprtTds"), st.integers(0, 1), st.integers(0, 90), st.integers(0, 3)),
            max_size=120,
        ),
    )
    def test_hold_whatever_happens(self, policy, nr_frames, steps):
        """Add, use, change priority and tenant, reclaim, truncate, deactivate and split pages of two objects."""
        segment = Segment(nr_frames, nr_mappings=4, data=False, policy=policy)
        mappings = [AddressSpace(segment, str(number)) for number in range(2)]
        _core.set_share(segment, 1, nr_frames // 2)
        for action, which, index, order in steps:
            mapping = mappings[which]
            folio = mapping.get_folio(index)
            if action == "a" and folio is None:
                new = segment.alloc_folio(order)
                if new is not None:
                    if mapping.add_folio(new, index & ~((1 << order) - 1)) == 0:
                        new.end_read(True)
                    new.put()
            elif action == "p":
                _core.set_priority(mapping, PRIORITIES[order])
            elif action == "T":
                _core.set_tenant(mapping, order)
            elif action == "r":
                segment.reclaim(1 + index % 40)
            elif folio is not None and action == "u":
                folio.mark_accessed()
            elif folio is not None and action == "d":
                folio.deactivate()
            elif folio is not None and action == "s":
                folio.lock()
                folio.split(index)
                folio.unlock()
            if folio is not None:
                folio.put()
            if action == "t":
                truncate.truncate_inode_pages(mapping, index * PAGE)
        segment.check()
        for _ in range(8 * nr_frames):  # whatever the priorities are, all of it can be had
            segment.reclaim(nr_frames)
        assert segment.counters()["nr_file_pages"] == 0

    @pytest.mark.stress
    @every_policy
    def test_hold_while_priorities_and_tenants_change(self, make_cache, rng, policy):
        cache = make_cache(64 * PAGE, policy=policy, shares={"one": "30%", "other": "30%"})
        files = [opened(cache, f"object {number}", 100) for number in range(3)]

        def read(number):
            file = files[number % 3]
            for step in range(600):
                index = (step * 37 + number * 11) % 100
                assert file.pread(10, index * PAGE) == bytes(10)
                if step % 50 == number:
                    file.priority = PRIORITIES[(step // 50 + number) % 4]
                    cache.shares.assign(file.mapping, ("one", "other", None)[(step // 50) % 3])
                if step % 97 == 0:
                    file.invalidate(0, 40 * PAGE)

        Crew(*(lambda n=number: read(n) for number in range(4))).join_well()
        for file in files:
            file.close()
