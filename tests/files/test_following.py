"""Caches that follow the limit and the pressure of memory: what is read is injected, no clock is waited for."""

import gc
import threading

import pytest
from support import PAGE, Store, pages_of, wait_until

import pagecache
from pagecache import budget, units
from pagecache.budget import PRESSURE_HIGH, PRESSURE_LOW, Follower, Reading

MIB = 1 << 20
GIB = 1 << 30


def sizes_of(follower, size, readings):
    """Return the sizes that a cache gets by one reading after the other."""
    out = []
    for reading in readings:
        size = follower.size_for(reading, size)
        out.append(size)
    return out


class TestFollower:
    def test_a_share_of_the_limit_up_to_the_maximum(self):
        follower = Follower(0.25, 8 * GIB)
        readings = [Reading(limit, 0.0) for limit in (16 * GIB, 4 * GIB, 64 * GIB, 2 * PAGE)]
        assert sizes_of(follower, 4 * GIB, readings) == [4 * GIB, GIB, 8 * GIB, PAGE]

    def test_small_changes_of_the_limit_are_passed_over(self):
        follower = Follower(0.5, 8 * GIB)
        limits = [8 * GIB, 8 * GIB - 400 * MIB, 8 * GIB + 400 * MIB, 7 * GIB]
        assert sizes_of(follower, 4 * GIB, [Reading(limit, 0.0) for limit in limits]) == [4 * GIB] * 3 + [7 * GIB // 2]

    def test_pressure_takes_an_eighth_at_each_look_down_to_a_quarter(self):
        follower = Follower(0.5, 8 * GIB)
        sizes = sizes_of(follower, GIB, [Reading(2 * GIB, PRESSURE_HIGH)] * 20)
        assert sizes[0] == GIB * 7 // 8 and sizes[-1] == sizes[-2] == GIB // 4
        assert sizes == sorted(sizes, reverse=True)

    def test_between_the_marks_it_stays_and_below_it_grows_again(self):
        follower = Follower(0.5, 8 * GIB)
        (small,) = sizes_of(follower, GIB, [Reading(2 * GIB, 50.0)])
        between = (PRESSURE_HIGH + PRESSURE_LOW) / 2
        assert sizes_of(follower, small, [Reading(2 * GIB, between)] * 5) == [small] * 5
        assert sizes_of(follower, small, [Reading(2 * GIB, PRESSURE_LOW)] * 3) == [GIB] * 3

    def test_without_pressure_to_read_the_limit_counts(self):
        assert sizes_of(Follower(0.5, 8 * GIB), GIB, [Reading(4 * GIB, None), Reading(GIB, None)]) == [2 * GIB, GIB // 2]

    def test_what_swings_around_a_mark_does_not_swing_the_size(self):
        follower = Follower(0.5, 8 * GIB)
        swings = [Reading(2 * GIB, pressure) for pressure in (9.0, 2.0) * 20]
        assert set(sizes_of(follower, GIB, swings)) == {GIB}


class TestCache:
    @pytest.fixture
    def memory(self, monkeypatch):
        """What the process may use, as a list whose last number counts."""
        limits = [64 * MIB]
        for module in (budget, units):
            monkeypatch.setattr(module, "memory_limit", lambda: limits[-1])
        monkeypatch.setattr(budget, "LOOK_S", 3600.0)
        return limits

    def test_follows_what_is_read_and_keeps_its_bytes(self, make_cache, memory):
        cache = make_cache("25%", max_size=32 * MIB)
        assert cache.size == 16 * MIB
        with cache.open(Store(pages_of(MIB))) as file:
            steps = [(64 * MIB, 0.0, 16), (16 * MIB, 0.0, 4), (16 * MIB, 20.0, 3.5), (256 * MIB, 0.0, 32)]
            for limit, pressure, size in steps:
                cache._budget.look(Reading(limit, pressure))
                assert cache.size == size * MIB
                assert file.pread(10 * MIB, 0) == pages_of(MIB)
                cache.check()

    def test_does_not_follow_without_a_maximum_or_a_part(self, make_cache, memory):
        for cache in (make_cache("25%"), make_cache(MIB, max_size=2 * MIB)):
            size = cache.size
            cache._budget.look(Reading(4 * MIB, 50.0))
            assert cache.size == size

    def test_a_size_that_is_set_ends_it_and_a_part_begins_it_again(self, make_cache, memory):
        cache = make_cache("25%", max_size=32 * MIB)
        cache.resize(MIB)
        cache._budget.look(Reading(64 * MIB, 0.0))
        assert cache.size == MIB
        cache.resize("25%")
        cache._budget.look(Reading(32 * MIB, 0.0))
        assert cache.size == 8 * MIB

    def test_a_part_of_much_memory_is_the_maximum(self, make_cache, memory):
        memory.append(64 * GIB)
        assert make_cache("25%", max_size=2 * MIB).size == 2 * MIB

    def test_what_cannot_be_had_now_is_tried_again(self, make_cache, memory):
        cache = make_cache("25%", max_size=32 * MIB)
        with cache.open(Store(pages_of(MIB))) as file:
            views = [file.view(PAGE, place * PAGE) for place in range(3)]
            cache._budget.look(Reading(4 * PAGE, 0.0))
            assert cache.size == 16 * MIB and bytes(views[0]) == pages_of(PAGE)
            for view in views:
                view.release()
            cache._budget.look(Reading(4 * PAGE, 0.0))
            assert cache.size == PAGE

    def test_the_thread_looks_and_ends_with_the_cache(self, make_cache, memory, monkeypatch):
        monkeypatch.setattr(budget, "LOOK_S", 0.001)
        monkeypatch.setattr(budget, "memory_pressure", lambda: 0.0)

        def threads():
            return [thread for thread in threading.enumerate() if thread.name == "pagecache-follow"]

        cache = make_cache("25%", max_size=32 * MIB)
        wait_until(threads, "the thread to start")
        memory.append(16 * MIB)
        wait_until(lambda: cache.size == 4 * MIB, "the cache to follow")
        cache.close()
        wait_until(lambda: not threads(), "the thread to end")
        dropped = pagecache.PageCache("25%", max_size=32 * MIB)
        wait_until(threads, "the thread to start")
        del dropped
        gc.collect()
        wait_until(lambda: not threads(), "the thread of a cache that was dropped to end")


class TestReadings:
    def test_of_groups_count_high_as_a_limit(self, tmp_path, monkeypatch):
        (tmp_path / "memory.high").write_text("1048576\n")
        (tmp_path / "memory.max").write_text("max\n")
        monkeypatch.setattr(units, "_cgroup_limit_files", lambda: [tmp_path / "memory.high", tmp_path / "memory.max"])
        assert units.memory_limit() == MIB

    def test_pressure_is_that_of_the_innermost_group(self, tmp_path, monkeypatch):
        inner = tmp_path / "inner"
        inner.mkdir()
        line = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        monkeypatch.setattr(units, "_cgroup_limit_files", lambda: [tmp_path / "memory.max", inner / "memory.max"])
        (tmp_path / "memory.pressure").write_text(line.format("2.50"))
        assert units.memory_pressure() == 2.5
        (inner / "memory.pressure").write_text(line.format("12.00"))
        assert units.memory_pressure() == 12.0

    def test_of_this_system_can_be_read(self):
        assert units.memory_limit() > MIB
        pressure = units.memory_pressure()
        assert pressure is None or 0 <= pressure <= 100
