"""What leaves when frames are short: accesses, second chance, the two lists, refaults, shadows, the budget.

The rules: docs/kernel.md, recency and reclaim.

Activation is lazy here: a second access is only noted, and reclaim moves the folio when it meets it.
"""

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Crew, Store, add_page, checked_cache, few, pages_of, wait_until

import pagecache
from pagecache import truncate
from pagecache._core import AddressSpace, Segment

AGE_MASK = (1 << 30) - 1


class Lists:
    """A mapping of descriptors without data, and its segment's counters as attributes."""

    def __init__(self, nr_frames):
        self.segment = Segment(nr_frames, nr_mappings=4, data=False)
        self.mapping = AddressSpace(self.segment)

    def __getattr__(self, name):
        return self.segment.counters()[name]

    def add(self, *indexes, accesses=0, order=0):
        for index in indexes:
            folio = self.segment.alloc_folio(order)
            assert self.mapping.add_folio(folio, index) == 0
            folio.end_read(True)
            folio.put()
            self.access(index, accesses)

    def access(self, index, times=1):
        folio = self.mapping.get_folio(index)
        for _ in range(times):
            folio.mark_accessed()
        folio.put()

    def cached(self):
        return [index for index, _, _ in self.mapping.folios()]

    def flags(self, index):
        """Return what reclaim knows of a page, in words."""
        with self.mapping.get_folio(index) as folio:
            return {name for name in ("referenced", "active", "workingset") if getattr(folio, name)}

    def distance(self, index):
        """Return the refault distance of an evicted page."""
        return (self.nonresident_age - (self.mapping.get_entry(index) >> 1)) & AGE_MASK

    def evict_all_inactive(self):
        while self.segment.reclaim(1):
            pass


@pytest.fixture
def lists():
    """64 frames, in order when the test ends."""
    lists = Lists(64)
    yield lists
    lists.segment.check()


def with_active(lists, nr_active, nr_inactive):
    """Make pages 1000... active and leave at most so many of pages 2000... inactive."""
    lists.add(*range(1000, 1000 + nr_active), accesses=2)
    lists.add(*range(2000, 2064 - nr_active))
    while lists.nr_active_file < nr_active:
        assert lists.segment.reclaim(1)
    for index in [index for index in lists.cached() if index >= 2000][nr_inactive:]:
        truncate.truncate_inode_pages_range(lists.mapping, index * PAGE, (index + 1) * PAGE - 1)
    assert (lists.nr_active_file, lists.pgdeactivate) == (nr_active, 0)


class TestAccesses:
    def test_a_new_folio_is_on_the_inactive_list_and_not_referenced(self, lists):
        lists.add(0, 1, 2)
        assert (lists.nr_inactive_file, lists.nr_active_file) == (3, 0)
        assert lists.flags(0) == set()

    def test_first_access_references_second_asks_for_activation(self, lists):
        lists.add(0)
        lists.access(0)
        assert lists.flags(0) == {"referenced"}
        lists.access(0)
        assert lists.flags(0) == {"referenced", "active"}
        lists.access(0, 5)
        assert lists.flags(0) == {"referenced", "active"}
        assert lists.nr_active_file == 0

    def test_reclaim_activates_what_was_accessed_twice(self, lists):
        lists.add(0, accesses=2)
        lists.add(*range(1, 64))
        lists.segment.reclaim(1)
        assert lists.nr_active_file == lists.pgactivate == 1
        assert lists.flags(0) == {"active"}

    def test_an_activation_is_one_tick_for_each_page(self, lists):
        lists.add(0, accesses=2, order=2)
        lists.add(*range(8, 60))
        freed = lists.segment.reclaim(1)
        assert lists.pgactivate == 4
        assert lists.nonresident_age == freed + 4

    def test_an_active_folio_becomes_referenced_and_no_more(self, lists):
        with_active(lists, 1, 20)
        lists.access(1000)
        assert lists.flags(1000) == {"active", "referenced"}
        lists.access(1000, 3)
        assert lists.flags(1000) == {"active", "referenced"}
        assert lists.pgactivate == 1

    def test_a_folio_to_be_dropped_behind_notes_no_access(self, lists):
        lists.add(0)
        folio = lists.mapping.get_folio(0)
        folio.set_dropbehind()
        folio.mark_accessed()
        folio.put()
        assert lists.flags(0) == set()

    def test_a_read_counts_once_in_a_folio_and_the_next_one_activates(self, make_cache):
        cache = make_cache(64 * PAGE, policy="kernel")
        with cache.open(pagecache.MemoryStore(bytes(20 * PAGE))) as file:
            file.pread(PAGE, 0)
            assert file.mapping.get_folio(0).referenced
            assert not file.mapping.get_folio(0).active
            file.pread(PAGE, 5 * PAGE)
            file.pread(PAGE, 0)
            assert file.mapping.get_folio(0).active


class TestEviction:
    def test_the_oldest_goes_first(self, lists):
        lists.add(*range(64))
        while lists.nr_file_pages:
            before = lists.cached()
            lists.segment.reclaim(1)
            after = lists.cached()
            assert after == before[len(before) - len(after) :]

    def test_one_access_is_no_second_chance(self, lists):
        lists.add(0, accesses=1)
        lists.add(*range(1, 64))
        lists.segment.reclaim(1)
        assert 0 not in lists.cached()

    def test_two_accesses_are(self, lists):
        lists.add(0, 1, 2, accesses=2)
        lists.add(*range(3, 64))
        lists.segment.reclaim(30)
        assert lists.cached()[:3] == [0, 1, 2]

    def test_a_scan_does_not_evict_what_is_used_again_and_again(self, lists):
        hot = range(16)
        lists.add(*hot, accesses=2)
        for index in range(1000, 2000):
            lists.add(index)
            lists.access(hot[index % 16])
        assert lists.cached()[:16] == [*hot]

    def test_deactivated_folios_go_next(self, lists):
        lists.add(*range(64), accesses=1)
        folio = lists.mapping.get_folio(40)
        folio.deactivate()
        folio.put()
        assert lists.flags(40) == set()
        lists.segment.reclaim(1)
        assert 40 not in lists.cached()

    def test_a_failed_invalidation_deactivates(self, lists):
        with_active(lists, 2, 20)
        held = lists.mapping.get_folio(1000)
        assert truncate.invalidate_mapping_pages(lists.mapping, 1000, 1000) == 0
        assert lists.nr_active_file == 1
        held.put()

    def test_locked_and_held_folios_stay(self, lists):
        lists.add(*range(64))
        locked, held = lists.mapping.get_folio(3), lists.mapping.get_folio(4)
        locked.lock()
        lists.evict_all_inactive()
        assert lists.cached() == [3, 4]
        locked.unlock()
        locked.put()
        held.put()
        lists.evict_all_inactive()
        assert lists.cached() == []

    def test_a_large_folio_leaves_as_a_whole_and_its_shadow_covers_it(self, lists):
        lists.add(8, order=3)
        lists.evict_all_inactive()
        assert {lists.mapping.get_entry(index) for index in range(8, 16)} == {lists.mapping.get_entry(8)}
        assert lists.mapping.get_entry(7) is lists.mapping.get_entry(16) is None
        assert lists.nonresident_age == 8

    def test_reclaim_frees_at_least_what_was_asked_for_if_it_can(self, lists):
        for wanted in (1, 5, 32, 40):
            lists.add(*(index for index in range(60) if index not in lists.cached()))
            assert lists.segment.reclaim(wanted) >= wanted


class TestActiveList:
    def test_is_not_touched_while_the_inactive_list_is_as_long(self, lists):
        with_active(lists, 10, 30)
        while lists.nr_inactive_file > lists.nr_active_file + 4:
            lists.segment.reclaim(1)
        assert (lists.nr_active_file, lists.pgdeactivate) == (10, 0)

    def test_is_trimmed_referenced_or_not_when_the_inactive_list_is_short(self, lists):
        with_active(lists, 20, 30)
        for index in range(1000, 1020, 2):
            lists.access(index)
        while lists.pgdeactivate == 0:
            lists.segment.reclaim(1)
        demoted = [index for index in lists.cached() if "active" not in lists.flags(index) and index < 2000]
        assert demoted == list(range(1000, 1000 + len(demoted)))
        for index in demoted:
            assert lists.flags(index) == ({"workingset", "referenced"} if index % 2 == 0 else {"workingset"})
        assert lists.pgrefill == lists.pgdeactivate

    def test_is_trimmed_when_pages_come_back_too_soon(self, lists):
        with_active(lists, 10, 40)
        victim = min(index for index in range(2000, 2100) if lists.mapping.get_folio(index))
        lists.segment.reclaim(1)
        lists.add(victim)
        assert lists.workingset_activate_file == 1
        assert lists.nr_inactive_file > lists.nr_active_file
        lists.segment.reclaim(4)
        assert lists.pgdeactivate > 0

    @pytest.mark.parametrize("nr_frames", [1, 2, 3, 64, 4096])
    def test_everything_can_be_evicted_in_the_end(self, nr_frames):
        lists = Lists(nr_frames)
        lists.add(*range(nr_frames), accesses=2)
        for _ in range(20):
            lists.evict_all_inactive()
        assert lists.nr_file_pages == 0
        lists.segment.check()


class TestRefaults:
    @pytest.mark.parametrize(("extra", "activates"), [(0, True), (8, True), (9, True), (10, False), (30, False)])
    def test_a_page_is_activated_if_the_active_list_is_as_long_as_its_distance(self, lists, extra, activates):
        with_active(lists, 10, 0)
        lists.add(0)
        lists.add(*range(3000, 3030))
        assert lists.segment.reclaim(1) == 1
        assert lists.distance(0) == 1
        for index in range(5000, 5000 + extra):
            lists.add(index)
            lists.segment.reclaim(1)
        assert lists.pgdeactivate == 0
        assert lists.distance(0) == 1 + extra
        before = lists.segment.counters()
        lists.add(0)
        after = lists.segment.counters()
        assert after["workingset_refault_file"] - before["workingset_refault_file"] == 1
        assert after["workingset_activate_file"] - before["workingset_activate_file"] == activates
        assert after["nr_active_file"] - before["nr_active_file"] == activates
        assert after["nonresident_age"] - before["nonresident_age"] == activates
        assert lists.flags(0) == ({"active"} if activates else set())

    def test_a_page_that_was_in_the_working_set_is_restored_to_it(self, lists):
        with_active(lists, 20, 10)
        while 1000 in lists.cached():
            assert lists.segment.reclaim(1)
        assert lists.mapping.get_entry(1000) & 1
        assert lists.distance(1000) <= lists.nr_active_file
        lists.add(1000)
        assert lists.workingset_restore_file == 1
        assert lists.flags(1000) == {"active", "workingset"}

    def test_a_page_that_comes_back_too_late_is_not_restored(self, lists):
        with_active(lists, 20, 20)
        lists.evict_all_inactive()
        lists.add(1000)
        assert (lists.workingset_restore_file, lists.workingset_refault_file) == (0, 1)
        assert lists.flags(1000) == set()

    def test_refaults_count_pages(self, lists):
        lists.add(0, order=3)
        lists.evict_all_inactive()
        lists.add(0, order=3)
        assert lists.workingset_refault_file == 8

    @pytest.mark.parametrize("remove", ["truncate", "invalidate", "invalidate2"])
    def test_only_reclaim_leaves_shadows(self, lists, remove):
        lists.add(*range(5))
        if remove == "truncate":
            truncate.truncate_inode_pages(lists.mapping, 0)
        elif remove == "invalidate":
            assert truncate.invalidate_mapping_pages(lists.mapping, 0, 10) == 5
        else:
            truncate.invalidate_inode_pages2_range(lists.mapping, 0, 10)
        assert lists.mapping.empty
        lists.add(*range(5))
        assert lists.workingset_refault_file == 0

    def test_cachestat_tells_shadows_that_would_be_activated(self, make_cache):
        cache = make_cache(64 * PAGE, policy="kernel")
        with cache.open(pagecache.MemoryStore(bytes(500 * PAGE))) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for index in range(0, 500, 5):
                file.pread(1, index * PAGE)
            stat = file.cachestat()
            assert stat.nr_cache + stat.nr_evicted == 100
            assert stat.nr_recently_evicted == 0  # the active list is empty

    @few(60)
    @given(st.lists(st.tuples(st.sampled_from("aaaaxxxr"), st.integers(0, 40)), max_size=150))
    def test_every_refault_is_judged_by_its_distance(self, steps):
        lists = Lists(16)
        for action, index in steps:
            is_cached = lists.mapping.get_folio(index) is not None
            if action == "r":
                lists.segment.reclaim(1 + index % 4)
            elif action == "x" and is_cached:
                lists.access(index)
            elif action == "a" and not is_cached:
                room = lists.segment.alloc_folio()
                if room is None:
                    continue
                is_shadow = isinstance(lists.mapping.get_entry(index), int)
                expected = is_shadow and lists.distance(index) <= lists.nr_active_file
                assert lists.mapping.add_folio(room, index) == 0
                assert room.active == expected
                room.end_read(True)
                room.put()
        lists.segment.check()


class TestShadowNodes:
    @pytest.mark.parametrize("nr_frames", [1, 2, 3, 64, 1024])
    def test_shadows_cost_no_more_nodes_than_their_share(self, nr_frames):
        lists = Lists(nr_frames)
        limit = nr_frames // 36 + 8
        for index in range(0, 64 * 300, 7):
            lists.add(index)
            lists.segment.trim_shadows()
            assert lists.nr_nodes <= limit or lists.workingset_nodes == 0
        lists.evict_all_inactive()
        assert lists.nr_nodes <= limit
        assert lists.workingset_nodereclaim > 0
        lists.segment.check()

    def test_pages_that_are_cached_are_never_given_up_for_the_limit(self):
        lists = Lists(64)
        lists.add(*range(0, 64 * 64, 64))
        lists.segment.trim_shadows()
        assert lists.nr_file_pages == 64
        assert lists.nr_nodes > 64 // 36 + 8
        lists.segment.check()

    def test_the_oldest_shadows_go_first(self):
        lists = Lists(8)
        for index in range(0, 64 * 40, 8):
            lists.add(index)
        lists.evict_all_inactive()
        kept = [isinstance(lists.mapping.get_entry(index), int) for index in range(0, 64 * 40, 8)]
        assert kept == sorted(kept)
        assert True in kept
        assert False in kept
        lists.segment.check()


class TestBudget:
    def test_no_page_more_than_there_are_frames(self, frames):
        content = pages_of(300 * PAGE)
        with checked_cache(frames) as cache, cache.open(Store(content)) as file:
            for pos in range(0, len(content), 10_000):
                assert file.pread(10_000, pos) == content[pos : pos + 10_000]
                stats = cache.stats()
                assert stats.nr_file_pages + stats.nr_free_pages <= frames
                assert stats.nr_inactive_file + stats.nr_active_file == stats.nr_file_pages

    def test_a_cache_full_of_views_says_so_and_recovers(self, frames):
        if frames > 64:
            frames = 100
        content = pages_of((frames + 10) * PAGE)
        with checked_cache(frames) as cache, cache.open(Store(content)) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            views = [file.view(10, index * PAGE) for index in range(frames)]
            with pytest.raises(pagecache.CacheFullError, match="pinned") as caught:
                file.pread(1, frames * PAGE)
            assert caught.value.errno == errno.ENOMEM
            assert (caught.value.nr_pinned, caught.value.nr_frames) == (frames, frames)
            for index, view in enumerate(views):
                assert view == content[index * PAGE : index * PAGE + 10]
            views.pop().release()
            assert file.pread(9, frames * PAGE) == content[frames * PAGE : frames * PAGE + 9]
            del views, view
            assert cache.stats().nr_pinned == 0

    def test_two_views_of_one_page_pin_it_once(self, make_cache):
        cache = make_cache(4 * PAGE)
        with cache.open(Store(pages_of(PAGE))) as file:
            first, second = file.view(10, 0), file.view(10, 100)
            assert cache.stats().nr_pinned == 1
            first.release()
            assert cache.stats().nr_pinned == 1
            second.release()
            assert cache.stats().nr_pinned == 0

    def test_the_background_reclaimer_keeps_frames_free(self, make_cache):
        cache = make_cache(4096 * PAGE)
        with cache.open(pagecache.MemoryStore(bytes(4 * 4096 * PAGE))) as file:
            for pos in range(0, file.mapping.size, 1 << 18):
                file.pread(1 << 18, pos)
            wait_until(lambda: cache.stats().nr_free_pages >= 4096 // 64, "frames to be freed in the background")
            assert cache.stats().pgsteal_kswapd > 0

    def test_threads_that_fight_for_frames_leave_the_lists_in_order(self, frames, seed):
        segment = Segment(frames, nr_mappings=8)
        mappings = [AddressSpace(segment) for _ in range(3)]

        def work(number):
            rng = random.Random(seed + number)
            for _ in range(250):
                mapping, index = rng.choice(mappings), rng.randrange(200)
                folio = mapping.get_folio(index)
                if folio is None:
                    add_page(mapping, index >> 1 << 1, order=rng.randrange(2))
                    continue
                folio.mark_accessed()
                if rng.random() < 0.1:
                    folio.deactivate()
                folio.put()
                if rng.random() < 0.05:
                    truncate.invalidate_mapping_pages(mapping, index, index + 20)
                    segment.reclaim(3)

        Crew(*(lambda n=number: work(n) for number in range(4))).join_well()
        segment.check()
