"""Windows that fit the store: what is measured, how large requests and windows become, exact numbers."""

import pytest
from support import PAGE, Crew, pages_of
from support.remote_stores import CountingStore

from pagecache.files.inode import Streams
from pagecache.readahead.window import BUDGET_SHARE, MIN_WINDOW_PAGES, window_pages
from pagecache.requests.backing import Backing
from pagecache.requests.speed import StoreSpeed, request_bytes
from pagecache.stores.base import StoreHints

KIB, MIB = 1 << 10, 1 << 20
PLENTY = 1 << 24  # frames


def speed_of(latency_s, bandwidth_bytes_s, sizes=(128 * KIB, 4 * MIB)):
    """Return what is measured on a store that is exactly so."""
    speed = StoreSpeed()
    for nbytes in sizes:
        speed.observe(nbytes, latency_s + nbytes / bandwidth_bytes_s)
    return speed


class TestSpeed:
    def test_nothing_is_known_at_first(self):
        assert (StoreSpeed().latency_s, StoreSpeed().bandwidth_bytes_s, StoreSpeed().in_flight_bytes) == (0, 0, 0)

    @pytest.mark.parametrize("latency_s", [0.0001, 0.02, 1.5])
    @pytest.mark.parametrize("bandwidth", [MIB, 64 * MIB, 1000 * MIB])
    def test_two_sizes_give_the_line(self, latency_s, bandwidth):
        speed = speed_of(latency_s, bandwidth)
        assert speed.latency_s == pytest.approx(latency_s)
        assert speed.bandwidth_bytes_s == pytest.approx(bandwidth)

    def test_one_size_is_all_latency(self):
        speed = StoreSpeed()
        speed.observe(128 * KIB, 0.022)
        assert speed.latency_s == 0.022
        assert speed.in_flight_bytes == pytest.approx(128 * KIB)

    def test_queueing_does_not_count(self):
        speed = speed_of(0.02, 64 * MIB)
        for factor in (2, 5, 10):
            speed.observe(4 * MIB, factor * 0.0825)
            speed.observe(128 * KIB, factor * 0.022)
        assert speed.latency_s == pytest.approx(0.02)
        assert speed.bandwidth_bytes_s == pytest.approx(64 * MIB)

    def test_a_store_that_became_slower_is_noticed(self):
        speed = speed_of(0.001, 64 * MIB, sizes=(MIB,))
        for _ in range(65):
            speed.observe(MIB, 0.5)
        assert speed.latency_s == 0.5

    def test_larger_requests_that_are_no_slower_do_not_divide_by_nothing(self):
        speed = StoreSpeed()
        for nbytes, seconds in [(4096, 0.02), (MIB, 0.02), (4 * MIB, 0.01), (8 * MIB, 0.0), (0, 1.0), (-1, 1.0)]:
            speed.observe(nbytes, seconds)
        assert (speed.latency_s, speed.bandwidth_bytes_s) == (0.0, 0.0)


class TestRequests:
    @pytest.mark.parametrize(
        ("latency_s", "bandwidth", "expected"),
        [
            (0.0, 1, 16 * MIB),  # nothing known: all that it takes
            (0.0001, 64 * MIB, 16 * MIB),  # near: the same
            (0.0006, 8 * MIB, 128 * KIB),  # 16 * 5 KiB is less than what it prefers
            (0.0009, 64 * MIB, MIB),  # 16 * 59 KiB
            (0.0012, 64 * MIB, 2 * MIB),  # the next power of two
            (0.02, 64 * MIB, 16 * MIB),  # 20.5 MiB, but 16 MiB is the most
        ],
    )
    def test_carry_sixteen_times_what_is_in_flight(self, latency_s, bandwidth, expected):
        speed = speed_of(latency_s, bandwidth) if latency_s else StoreSpeed()
        assert request_bytes(StoreHints(), speed) == expected

    def test_are_never_larger_than_the_store_takes_nor_smaller_than_a_page(self):
        assert request_bytes(StoreHints(preferred_request=10 * MIB, max_request=3 * MIB), StoreSpeed()) == 3 * MIB
        assert request_bytes(StoreHints(preferred_request=1, max_request=1), StoreSpeed()) == PAGE

    @pytest.mark.parametrize(
        ("nr_pages", "expected"), [(1, 1), (32, 32), (256, 256), (653, 653), (654, 327), (4096, 512), (10**6, 4096)]
    )
    def test_of_a_run_are_spread_over_the_connections_that_are_worthwhile(self, nr_pages, expected):
        backing = Backing(StoreHints(), None)
        backing.speed = speed_of(0.02, 64 * MIB)
        assert backing.request_pages(nr_pages) == expected

    @pytest.mark.parametrize(
        ("nr_pages", "expected"), [(32, 32), (400, 400), (653, 653), (654, 327), (10**4, 1250), (10**6, 4096)]
    )
    def test_of_a_block_carry_no_less_than_they_cost(self, make_cache, nr_pages, expected):
        with make_cache(MIB).open(CountingStore(pages_of(1))) as file:
            backing = Backing(StoreHints(), None)
            backing.speed = speed_of(0.02, 64 * MIB)  # 327 pages in flight
            assert backing.block_request_pages(file.mapping, nr_pages) == expected

    @pytest.mark.parametrize(
        ("latency_s", "bandwidth", "expected"), [(0.02, 64 * MIB, 256), (0.002, 64 * MIB, 32), (0.0001, 64 * MIB, 16)]
    )
    def test_read_through_holes_that_cost_less(self, latency_s, bandwidth, expected):
        backing = Backing(StoreHints(), None)
        backing.speed = speed_of(latency_s, bandwidth)
        assert backing.hole_pages() == expected

    def test_that_are_too_short_to_measure_bandwidth_say_how_high_it_is_at_least(self):
        speed = speed_of(0.02, 1000 * MIB, sizes=(4 * KIB, 256 * KIB))
        assert speed.free_bytes >= 256 * KIB / 0.05
        assert speed_of(0.02, MIB).free_bytes == pytest.approx(0.02 * MIB)


class TestWindows:
    @pytest.mark.parametrize(
        ("latency", "latency_s", "expected"),
        [
            ("local", 0.02, 32),  # the system below reads ahead
            ("remote", None, 32),  # nothing known
            ("remote", 0.0004, 32),  # near: the kernel's limit
            ("remote", 0.0009, 2 * 8 * 256),
            ("remote", 0.02, 2 * 8 * 4096),
            ("device", None, 2 * 8 * 4096),
        ],
    )
    def test_keep_all_connections_busy(self, latency, latency_s, expected):
        speed = speed_of(latency_s, 64 * MIB) if latency_s else StoreSpeed()
        assert window_pages(StoreHints(latency=latency), speed, PLENTY, 1) == expected

    @pytest.mark.parametrize("nr_streams", [0, 1, 2, 7, 1000])
    @pytest.mark.parametrize("nr_frames", [1, 3, 64, 16384, 1 << 18])
    def test_of_all_streams_together_hold_a_quarter_of_the_budget(self, nr_frames, nr_streams):
        window = window_pages(StoreHints(), speed_of(0.02, 64 * MIB), nr_frames, nr_streams)
        assert 1 <= window <= nr_frames
        assert window <= max(MIN_WINDOW_PAGES, nr_frames // (BUDGET_SHARE * max(1, nr_streams)))

    def test_of_files_shrink_while_others_are_read_ahead_and_grow_when_they_close(self, make_cache):
        cache = make_cache(256 * PAGE)
        files = [cache.open(CountingStore(pages_of(64 * PAGE), key=f"c{number}")) for number in range(4)]
        alone = files[0].ra.ra_pages
        assert alone == 256 // 4
        for file in files:
            for page in range(32):
                file.pread(PAGE, page * PAGE)
        files[0].fit_window()
        assert files[0].ra.ra_pages == 256 // 4 // 4
        for file in files[1:]:
            file.close()
        files[0].fit_window()
        assert files[0].ra.ra_pages == alone

    def test_that_advice_doubled_stay_doubled(self, make_cache):
        import pagecache

        file = make_cache("1MiB").open(CountingStore(pages_of(64 * PAGE)))
        normal = file.ra.ra_pages
        file.fadvise(pagecache.FADV_SEQUENTIAL)
        file.fit_window()
        assert file.ra.ra_pages == 2 * normal
        file.fadvise(pagecache.FADV_NORMAL)
        assert file.ra.ra_pages == normal


def test_streams_are_counted_by_any_number_of_threads():
    streams, files = Streams(), [object() for _ in range(64)]

    def come_and_go(mine):
        for _ in range(200):
            for file in mine:
                streams.add(file)
                streams.add(file)
            for file in mine[:-1]:
                streams.discard(file)
                streams.discard(file)

    Crew(*[lambda part=files[at : at + 8]: come_and_go(part) for at in range(0, 64, 8)]).join_well()
    assert streams.nr == 8
