"""Positional reads and views: right bytes at every cache size, pins that hold, a budget that is never exceeded."""

import contextlib
import errno
import random

import numpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import PAGE, WAYS, Crew, Store, checked_cache, few, pages_of, read

import pagecache

SIZES = st.one_of(st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1, 33 * PAGE, 150 * PAGE + 7]), st.integers(0, 80 * PAGE))
OFFSETS = st.one_of(st.integers(0, 20), st.integers(0, 150).map(lambda page: page * PAGE), st.integers(0, 160 * PAGE))
LENGTHS = st.one_of(st.integers(0, 40), st.integers(0, 5).map(lambda page: page * PAGE), st.integers(0, 90 * PAGE))
READS = st.lists(st.tuples(st.sampled_from(WAYS), LENGTHS, OFFSETS), min_size=1, max_size=12)


def address_of(view):
    return numpy.frombuffer(view, numpy.uint8).ctypes.data


class TestRightBytes:
    @given(size=SIZES, reads=READS)
    @example(size=PAGE, reads=[(kind, PAGE, offset) for kind in WAYS for offset in (0, PAGE - 1, PAGE, PAGE + 1)])
    @few(40)
    def test_of_a_store(self, frames, size, reads):
        data = pages_of(size)
        with checked_cache(frames) as cache, cache.open(pagecache.MemoryStore(data)) as file:
            for kind, nbytes, offset in reads:
                assert read(file, kind, nbytes, offset) == data[offset : offset + nbytes]

    @pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
    def test_of_a_file(self, frames, direct, data_file, rng):
        for size in (1, PAGE, 3 * PAGE + 1, rng.randrange(300 * PAGE)):
            path, data = data_file(size)
            with checked_cache(frames) as cache, cache.open(path, direct=direct) as file:
                for _ in range(60):
                    nbytes, offset = rng.choice([7, PAGE, 20 * PAGE]), rng.randrange(size + 1)
                    assert read(file, rng.choice(WAYS), nbytes, offset) == data[offset : offset + nbytes]

    @pytest.mark.parametrize("folios", ["small", "large"])
    def test_into_memory_that_begins_anywhere_in_a_page(self, make_cache, folios):
        """Which loop copies depends on that; what lies around the memory is not touched."""
        data = pages_of(80 * PAGE)
        with make_cache(128 * PAGE).open(pagecache.MemoryStore(data)) as file:
            if folios == "small":
                file.fadvise(pagecache.FADV_RANDOM)
                for page in (31 * page % 80 for page in range(80)):
                    file.pread(1, page * PAGE)
            assert file.readall() == data
            for place in (0, 1, 16, 48, 496, 511, 512, 513, 2048, 3583, 3584, 3585, 4048, 4095):
                memory = numpy.full(82 * PAGE, 0xAA, numpy.uint8)
                start = (place - memory.ctypes.data) % PAGE
                for nbytes, offset in ((16 * PAGE, 0), (19 * PAGE + 77, PAGE - 3), (80 * PAGE, 0)):
                    memory[:] = 0xAA
                    assert file.preadinto(memory[start : start + nbytes], offset) == nbytes
                    assert memory[start : start + nbytes].tobytes() == data[offset : offset + nbytes]
                    assert (memory[:start] == 0xAA).all() and (memory[start + nbytes :] == 0xAA).all()

    @pytest.mark.parametrize("kind", WAYS)
    def test_in_order_from_start_to_end(self, frames, kind, data_file):
        path, data = data_file(400 * PAGE + 99)
        with checked_cache(frames) as cache, cache.open(path) as file:
            assert b"".join(read(file, kind, 10_000, offset) for offset in range(0, len(data), 10_000)) == data
            assert read(file, kind, 10, len(data)) == b""

    @pytest.mark.parametrize("kind", WAYS)
    def test_at_the_very_end_of_the_largest_object(self, make_cache, kind):
        class Boundless(Store):
            def size(self):
                return 2**63 - 1

            def answer(self, offset, buffers):
                for buffer in buffers:
                    buffer[:] = pages_of(len(buffer), offset)
                    offset += len(buffer)
                return sum(map(len, buffers))

        with make_cache("64KiB").open(Boundless(b"")) as file:
            for offset in (2**62, 2**63 - 1 - 2 * PAGE, 2**63 - 10):
                start = offset // 8 * 8
                expected = pages_of(PAGE + 8, start)[offset - start :][:PAGE]
                assert read(file, kind, PAGE, offset) == expected[: 2**63 - 1 - offset]
            assert read(file, kind, 1, 2**63 - 1) == b""

    def test_position_and_other_readers_do_not_matter(self, make_cache, data_file):
        path, data = data_file(20 * PAGE)
        with make_cache("1MiB").open(path) as file:
            file.seek(123)
            for kind in WAYS:
                read(file, kind, 100, 5 * PAGE)
            assert file.tell() == 123
            assert file.read(10) == data[123:133]


class TestViews:
    @pytest.fixture
    def opened(self, make_cache):
        """A cache of 64 frames, a writable file of 300 pages open in it, and its bytes."""
        data = pages_of(300 * PAGE)
        cache = make_cache(64 * PAGE)
        with cache.open(pagecache.MemoryStore(data), "r+b") as file:
            yield cache, file, data

    def test_is_read_only_bytes(self, opened):
        _, file, data = opened
        with file.view(100, 50) as view:
            assert (view.readonly, view.format, view.ndim, view.nbytes) == (True, "B", 1, 100)
            assert view.contiguous
            with pytest.raises(TypeError):
                view[0] = 1
            assert view == data[50:150]

    def test_of_one_page_is_not_copied(self, opened):
        _, file, _ = opened
        with file.view(100, 5 * PAGE) as one, file.view(100, 5 * PAGE) as other:
            assert address_of(one) == address_of(other)

    def test_pieces_are_never_copied_and_join_without_gap(self, opened):
        cache, file, data = opened
        views = list(file.iter_views(10 * PAGE, 100))
        assert b"".join(views) == data[100 : 100 + 10 * PAGE]
        again = list(file.iter_views(10 * PAGE, 100))
        assert [address_of(view) for view in again] == [address_of(view) for view in views]
        assert cache.stats().nr_pinned >= 10

    def test_counts_until_its_last_buffer_is_released(self, opened):
        """Not until what is behind the buffers ends, which may be later where there is no GIL."""
        cache, file, data = opened
        file.fadvise(pagecache.FADV_RANDOM)
        view = file.view(PAGE, 0)
        part, kept = view[10:20], view.obj
        view.release()
        with memoryview(kept) as again:
            assert (cache.stats().nr_pinned, again) == (1, data[:PAGE])
        assert (cache.stats().nr_pinned, part) == (1, data[10:20])
        part.release()
        assert cache.stats().nr_pinned == 0
        with pytest.raises(BufferError, match="released"):
            memoryview(kept)
        assert cache.stats().nr_pinned == 0

    def test_each_page_counts_once_however_many_views_show_it(self, opened):
        cache, file, _ = opened
        file.fadvise(pagecache.FADV_RANDOM)
        views = [file.view(10, 7 * PAGE + start) for start in range(20)]
        assert cache.stats().nr_pinned == 1
        for view in views:
            view.release()
        assert cache.stats().nr_pinned == 0

    def test_slices_and_arrays_hold_the_page_too(self, opened):
        cache, file, data = opened
        array = numpy.frombuffer(file.view(PAGE, 0)[100:200], numpy.uint8)
        assert cache.stats().nr_pinned > 0
        file.readall()
        assert array.tobytes() == data[100:200]
        del array
        assert cache.stats().nr_pinned == 0

    @pytest.mark.parametrize("first", [0, 1, 137])
    @pytest.mark.parametrize("event", ["eviction", "truncate", "cut", "invalidate", "drop", "replace", "close"])
    def test_live_view_shows_the_same_bytes_whatever_happens(self, opened, event, first):
        cache, file, data = opened
        file.readall()
        nbytes, offset = 5000 if first == 1 else 3000, first * PAGE + 50
        views = [file.view(nbytes, offset), *file.iter_views(3 * PAGE, first * PAGE)]
        expected = [data[offset : offset + nbytes]]
        expected.append(data[first * PAGE : (first + 3) * PAGE])
        if event == "truncate":
            file.truncate(0)
        elif event == "cut":
            file.truncate(first * PAGE + 100)
            file.truncate(len(data))
            assert file.pread(5000, first * PAGE) == data[first * PAGE :][:100] + bytes(4900)
        elif event == "invalidate":
            file.invalidate()
        elif event == "drop":
            cache.drop_caches()
        elif event == "replace":
            file.inode.store.replace(bytes(len(data)))
            with cache.open(file.inode.store) as again:
                assert again.pread(5000, first * PAGE) == bytes(5000)
        elif event == "close":
            cache.close()
        if event != "close":
            with cache.open(Store(b"\xee" * (200 * PAGE), key="other")) as other:
                assert other.readall() == other.pread(10**7, 0)
        assert [bytes(views[0]), b"".join(views[1:])] == expected
        for view in views:
            view.release()

    def test_view_outlives_cache_file_and_all_names(self, data_file):
        path, data = data_file(50 * PAGE)
        cache = pagecache.PageCache(64 * PAGE)
        file = cache.open(path)
        view = file.view(1000, 7 * PAGE)
        cache.close()
        del cache, file
        assert view == data[7 * PAGE : 7 * PAGE + 1000]

    def test_closing_the_file_ends_an_iteration(self, opened):
        _, file, _ = opened
        pieces = file.iter_views(200 * PAGE, 0)
        assert len(next(pieces)) > 0
        file.close()
        with pytest.raises(ValueError, match="closed"):
            list(pieces)


class TestBudget:
    def pin_everything(self, file, nr_pages, stack):
        """Hold views of ever more pages until no frame is left; returns the error."""
        try:
            for page in range(nr_pages):
                stack.enter_context(file.view(PAGE, page * PAGE))
        except pagecache.CacheFullError as error:
            return error
        raise AssertionError("more pages were pinned than there are frames")

    def test_everything_pinned_is_a_clear_error_and_a_release_ends_it(self, make_cache, frames):
        nr_pages = frames + 40
        data = pages_of(nr_pages * PAGE)
        cache = make_cache(frames * PAGE)
        with cache.open(pagecache.MemoryStore(data)) as file, contextlib.ExitStack() as stack:
            error = self.pin_everything(file, nr_pages, stack)
            assert isinstance(error, OSError)
            assert not isinstance(error, MemoryError)
            assert error.errno == errno.ENOMEM
            assert (error.nr_pinned, error.nr_frames, error.nr_dirty, error.nr_writeback) == (frames, frames, 0, 0)
            assert f"of {frames} pages {frames} are pinned" in str(error)
            assert cache.stats().resident_bytes <= cache.size
            cache.check()
            with pytest.raises(pagecache.CacheFullError):
                read(file, WAYS[frames % 4], 10, len(data) - 10)
            stack.close()
            assert cache.stats().nr_pinned == 0
            assert file.pread(len(data), 0) == data

    def test_one_released_page_is_enough_to_go_on(self, make_cache):
        data = pages_of(200 * PAGE)
        cache = make_cache(8 * PAGE)
        with cache.open(pagecache.MemoryStore(data)) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            views = [file.view(PAGE, page * PAGE) for page in range(8)]
            with pytest.raises(pagecache.CacheFullError):
                file.pread(1, 8 * PAGE)
            views.pop().release()
            assert file.pread(len(data), 0) == data
            assert b"".join(views) == data[: 7 * PAGE]

    def test_reads_of_pinned_pages_need_no_frame(self, make_cache, frames):
        data = pages_of(frames * PAGE)
        with make_cache(frames * PAGE).open(pagecache.MemoryStore(data)) as file, contextlib.ExitStack() as stack:
            for view in file.iter_views(len(data), 0):
                stack.enter_context(view)
            for kind in set(WAYS) - {"view"}:
                assert read(file, kind, len(data), 0) == data
            if frames > 1:  # but a copy does
                with pytest.raises(pagecache.CacheFullError, match="iter_views"):
                    file.view(PAGE + 1, 0)

    def test_is_never_exceeded_while_views_come_and_go(self, make_cache, frames, seed):
        rng = random.Random(seed)
        data = pages_of((3 * frames + 50) * PAGE)
        cache = make_cache(frames * PAGE)
        held = []
        with cache.open(pagecache.MemoryStore(data)) as file:
            for _ in range(300):
                offset = rng.randrange(len(data))
                if len(held) * 16 >= frames or rng.random() < 0.4:
                    for _, view in held[: len(held) // 2 + 1]:
                        view.release()
                    del held[: len(held) // 2 + 1]
                with contextlib.suppress(pagecache.CacheFullError):
                    held.append((offset, file.view(rng.randrange(1, 2 * PAGE), offset)))
                stats = cache.stats()
                assert stats.nr_file_pages + stats.nr_free_pages <= frames
                assert stats.nr_pinned <= frames
                assert all(view == data[start : start + len(view)] for start, view in held)

    @pytest.mark.stress
    def test_threads_with_views_see_right_bytes(self, make_cache, seed):
        data = pages_of(300 * PAGE)
        cache = make_cache(64 * PAGE)

        def reader(number):
            rng = random.Random(seed + number)
            with cache.open(store) as file:
                for _ in range(300):
                    offset, kind = rng.randrange(len(data)), rng.choice(WAYS)
                    with file.view(rng.randrange(1, PAGE), offset) as view:
                        nbytes, start = rng.randrange(3 * PAGE), rng.randrange(len(data))
                        assert read(file, kind, nbytes, start) == data[start : start + nbytes]
                        assert view == data[offset : offset + len(view)]

        store = pagecache.MemoryStore(data)
        Crew(*(lambda number=number: reader(number) for number in range(6))).join_well()
        assert cache.stats().nr_pinned == 0
