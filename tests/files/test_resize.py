"""`PageCache.resize`: memory comes and goes, nothing is lost, and what keeps a cache from shrinking is named."""

import errno
import os
import random

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support import PAGE, Crew, Store, add_page, bytes_of, few, pages_of, wait_until
from support.failing_store import FailingStore
from support.resident import resident_bytes

import pagecache
from pagecache import _core
from pagecache._core import AddressSpace, Segment

MIB = 1 << 20
NR_STEPS = 400 if os.environ.get("PAGECACHE_STRESS") == "1" else 40


class Endless:
    """A store of any size whose bytes cost nothing to make."""

    key = "endless"

    def __init__(self, nbytes=1 << 40):
        self.nbytes = nbytes

    def size(self):
        return self.nbytes

    def validator(self):
        return "1"

    def readv(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = b"\1" * len(buffer)
        return sum(map(len, buffers))

    def close(self):
        pass


def fill(file, nbytes):
    """Read so many bytes in order."""
    for offset in range(0, nbytes, MIB):
        file.pread(MIB, offset)


class TestMemory:
    def test_goes_back_to_the_system_and_comes_again(self, make_cache):
        cache = make_cache(96 * MIB, max_size=128 * MIB)
        with cache.open(Endless()) as file:
            fill(file, 128 * MIB)
            assert 0.9 * 96 * MIB < resident_bytes(cache.segment) <= 1.018 * 96 * MIB
            for size in (128 * MIB, 100 * MIB, 128 * MIB):
                cache.resize(size)
                fill(file, 160 * MIB)
                assert cache.size == cache.stats().budget_bytes == size
                assert 0.9 * size < resident_bytes(cache.segment) <= 1.018 * size
                cache.check()
            cache.resize(4 * MIB)
            cache.check()
            assert resident_bytes(cache.segment) <= 1.018 * 4 * MIB + 64 * PAGE

    def test_of_a_cache_that_may_grow_is_not_touched_before(self, make_cache):
        cache = make_cache(MIB, max_size="64GiB")
        with cache.open(Endless()) as file:
            fill(file, 8 * MIB)
        assert resident_bytes(cache.segment) <= MIB + 256 * PAGE

    def test_descriptors_of_blocks_that_are_out_begin_with_other_sequence_numbers(self):
        """A reader without a reference may hold on to a number for ever."""
        segment = Segment(2048, nr_mappings=4)
        mapping = AddressSpace(segment, "object")
        for index in range(2048):
            assert add_page(mapping, index, b"x" * PAGE)
        seqs = {}
        for index in range(2048):
            folio = mapping.get_folio(index)
            seqs[folio.frame] = folio.seq
            folio.put()
        assert 0 not in seqs.values()
        _core.set_budget(segment, 1)
        while _core.balloon_frames(segment)[0] < _core.balloon_frames(segment)[1]:
            assert _core.fill_balloon(segment) > 0
        segment.check()
        _core.set_budget(segment, 2048)
        segment.check()
        mapping.size = 0
        for index in range(2048):
            assert add_page(mapping, 5000 + index, b"y" * PAGE)
            folio = mapping.get_folio(5000 + index)
            assert folio.seq > seqs[folio.frame]
            folio.put()
            assert bytes_of(mapping, 5000 + index) == b"y" * PAGE
        segment.check()

    def test_that_the_system_does_not_take_is_an_error_and_changes_nothing(self, make_cache):
        cache = make_cache(4 * MIB)
        with cache.open(Endless()) as file:
            fill(file, 8 * MIB)
            _core.fail_advice(cache.segment, 1)
            with pytest.raises(OSError, match=r"cannot shrink to 1\.0 MiB: the system does not take memory back") as caught:
                cache.resize(MIB)
            assert caught.value.errno == errno.ENOMEM
            assert cache.size == 4 * MIB
            cache.check()
            fill(file, 8 * MIB)
            _core.fail_advice(cache.segment, 0)
            cache.resize(MIB)
            assert cache.size == MIB


class TestBadSizes:
    def test_more_than_the_maximum_names_it_and_what_to_do(self, make_cache):
        with pytest.raises(ValueError, match=r"at most, not 2\.0 MiB: make it with a larger max_size"):
            make_cache(MIB).resize(2 * MIB)

    @pytest.mark.parametrize("size", [0, PAGE - 1, -PAGE])
    def test_less_than_a_page(self, make_cache, size):
        cache = make_cache(MIB)
        with pytest.raises(ValueError, match="holds no page"):
            cache.resize(size)
        assert cache.size == MIB

    def test_a_maximum_below_the_size(self):
        with pytest.raises(ValueError, match=r"more than max_size, 1\.0 MiB: give a larger max_size"):
            pagecache.PageCache(2 * MIB, max_size=MIB)

    def test_of_a_closed_cache(self, make_cache):
        cache = make_cache(MIB)
        cache.close()
        with pytest.raises(ValueError, match="closed"):
            cache.resize(PAGE)

    def test_frames_that_are_registered_stay(self, make_cache):
        with pytest.raises(ValueError, match="register_frames keeps all frames"):
            pagecache.PageCache(MIB, max_size=2 * MIB, register_frames=True)
        cache = make_cache(MIB, register_frames=True)
        if not cache.segment.pins_frames:
            pytest.skip("io_uring registers no frames here")
        with pytest.raises(ValueError, match="without register_frames"):
            cache.resize(PAGE)
        cache.resize(MIB)


class TestMetadata:
    @pytest.mark.parametrize("large", [64, 300, 511, 512, 560, 1024, 2000])
    @pytest.mark.parametrize("small", [1, 2, 3])
    def test_of_a_large_cache_leaves_a_small_one_all_its_pages(self, make_cache, large, small):
        """Pages far apart need many index nodes: these go with the pages, and so does what the balloon took for them."""
        cache = make_cache(large * PAGE)
        with cache.open(Endless()) as far, cache.open(Store(pages_of(64 * PAGE))) as file:
            for nr_read in (20, 60, 200, 400):
                for page in random.Random(nr_read).sample(range(1 << 28), nr_read):
                    assert far.pread(1, page * PAGE) == b"\1"
                cache.resize(small * PAGE)
                cache.check()
                present, wanted = _core.balloon_frames(cache.segment)
                assert present == wanted == large - small
                assert file.pread(64 * PAGE, 0) == pages_of(64 * PAGE)
                cache.check()
                cache.resize(large * PAGE)


class TestWhatIsHeld:
    def test_pinned_pages_are_named_and_all_stays_as_it_was(self, make_cache):
        cache = make_cache(64 * PAGE)
        with cache.open(Store(pages_of(64 * PAGE))) as file:
            views = [file.view(PAGE, index * PAGE) for index in range(20)]
            held = cache.stats().nr_pinned
            with pytest.raises(pagecache.CacheFullError, match=f"cannot shrink to 40\\.0 KiB.*{held} are pinned") as caught:
                cache.resize(10 * PAGE)
            assert caught.value.nr_pinned == held
            assert cache.size == 64 * PAGE
            assert file.pread(64 * PAGE, 0) == pages_of(64 * PAGE)
            cache.resize(held * PAGE)
            assert [bytes(view) for view in views] == [pages_of(PAGE, index * PAGE) for index in range(20)]
            for view in views:
                view.release()
            cache.resize(PAGE)
            assert file.pread(64 * PAGE, 0) == pages_of(64 * PAGE)

    def test_pages_that_are_pinned_meanwhile_end_the_attempt(self, make_cache, monkeypatch):
        cache = make_cache(64 * PAGE)
        with cache.open(Store(pages_of(64 * PAGE))) as file:
            views = []
            original = _core.set_budget

            def pin_first(segment, nr_pages):
                if nr_pages == 4:
                    views.extend(file.view(PAGE, index * PAGE) for index in range(8))
                original(segment, nr_pages)

            monkeypatch.setattr(_core, "set_budget", pin_first)
            with pytest.raises(pagecache.CacheFullError, match="cannot shrink"):
                cache.resize(4 * PAGE)
            assert cache.size == 64 * PAGE and len(views) == 8
            for view in views:
                view.release()

    def test_everything_dirty_is_written_back(self, make_cache):
        cache = make_cache(256 * PAGE, max_size=512 * PAGE, dirty_limit="100%", dirty_background="99%", dirty_expire_s=3600)
        store = pagecache.MemoryStore(bytes(200 * PAGE))
        data = random.Random(1).randbytes(200 * PAGE)
        with cache.open(store, "r+b") as file:
            file.pwrite(data, 0)
            assert cache.stats().nr_dirty == 200
            cache.resize(3 * PAGE)
            stats = cache.stats()
            assert stats.nr_file_pages <= 3 and stats.nr_dirty <= 3
            assert file.pread(len(data), 0) == data
            cache.resize(512 * PAGE)
            assert file.pread(len(data), 0) == data
        cache.sync()
        assert store.tobytes() == data

    def test_dirty_pages_that_cannot_be_written_stay_and_the_error_is_reported(self, make_cache):
        cache = make_cache(64 * PAGE, dirty_limit="100%", dirty_background="50%")
        store = FailingStore(bytes(60 * PAGE), "writev", fails_at=0, for_ever=True)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x" * (60 * PAGE), 0)
            with pytest.raises(pagecache.CacheFullError, match=r"cannot shrink to 8.0 KiB.*dirty") as caught:
                cache.resize(2 * PAGE)
            assert isinstance(caught.value.__cause__, OSError)
            assert cache.size == 64 * PAGE
            assert file.pread(60 * PAGE, 0) == b"x" * (60 * PAGE)
            store.is_healed = True
            cache.resize(2 * PAGE)
            assert file.pread(60 * PAGE, 0) == b"x" * (60 * PAGE)
            with pytest.raises(OSError, match="Input/output error"):
                file.fsync()  # reports what failed before, once
            file.fsync()
        assert store.tobytes() == b"x" * (60 * PAGE)


class TestParts:
    def test_limits_and_shares_follow(self, make_cache):
        cache = make_cache(1000 * PAGE, max_size=4000 * PAGE, dirty_limit="20%", dirty_background=50 * PAGE,
                           shares={"quarter": "25%", "fixed": 500 * PAGE})  # fmt: skip
        assert cache.segment.dirty_limits == (200, 50)
        cache.resize(4000 * PAGE)
        assert cache.segment.dirty_limits == (800, 50)
        assert {name: share // PAGE for name, (share, _) in cache.shares.usage().items()} == {"quarter": 1000, "fixed": 500}
        cache.resize(100 * PAGE)
        assert cache.segment.dirty_limits == (20, 10)
        usage = {name: share // PAGE for name, (share, _) in cache.shares.usage().items()}
        assert usage["quarter"] + usage["fixed"] <= 100 and usage["fixed"] > usage["quarter"] > 0
        cache.resize(1000 * PAGE)
        assert {name: share // PAGE for name, (share, _) in cache.shares.usage().items()} == {"quarter": 250, "fixed": 500}

    def test_a_window_follows(self, make_cache):
        cache = make_cache(64 * PAGE, max_size=4096 * PAGE)
        with cache.open(Endless()) as file:
            file.pread(PAGE, 0)
            before = file.inode.ra_pages
            cache.resize(4096 * PAGE)
            assert file.inode.ra_pages > before

    def test_a_cache_that_grows_large_gets_a_background_reclaimer(self, make_cache):
        cache = make_cache(64 * PAGE, max_size=4096 * PAGE)
        cache.resize(4096 * PAGE)
        with cache.open(Endless()) as file:
            fill(file, 32 * MIB)
            wait_until(lambda: cache.stats().nr_free_pages >= 4096 // 64, "frames to be freed in the background")


class ResizeModel(RuleBasedStateMachine):
    """Reads, writes, resizes and forgets in any order, against a model that is bytes; invariants hold after each step."""

    @initialize(frames=st.sampled_from([1, 2, 3, 64]), more=st.sampled_from([1, 64, 600, 2000]))
    def start(self, frames, more):
        self.max_frames = frames + more
        self.cache = pagecache.PageCache(frames * PAGE, max_size=self.max_frames * PAGE, dirty_limit="50%")
        self.data = bytearray(pages_of(700 * PAGE))
        self.store = pagecache.MemoryStore(self.data)
        self.file = self.cache.open(self.store, "r+b")
        self.far = self.cache.open(Endless())

    @rule(page=st.integers(0, 699), nr=st.integers(1, 300))
    def read(self, page, nr):
        assert self.file.pread(nr * PAGE, page * PAGE) == self.data[page * PAGE : (page + nr) * PAGE]

    @rule(page=st.integers(0, 699), nr=st.integers(1, 100), byte=st.integers(0, 255))
    def write(self, page, nr, byte):
        piece = bytes([byte]) * (min(nr, 700 - page) * PAGE)
        self.file.pwrite(piece, page * PAGE)
        self.data[page * PAGE : page * PAGE + len(piece)] = piece

    @rule(seed=st.integers(0, 99), nr=st.integers(1, 60))
    def read_far_apart(self, seed, nr):
        for page in random.Random(seed).sample(range(1 << 28), nr):
            assert self.far.pread(1, page * PAGE) == b"\1"

    @rule(share=st.floats(0, 1))
    def resize(self, share):
        pages = max(1, round(share * self.max_frames))
        self.cache.resize(pages * PAGE)
        assert self.cache.size == pages * PAGE

    @rule()
    def forget(self):
        self.far.close()
        self.cache.forget("endless")
        self.far = self.cache.open(Endless())

    @rule()
    def view(self):
        view = self.file.view(PAGE, 0)
        before = bytes(view)
        if self.cache.size < 2 * PAGE or self.max_frames < 8:
            view.release()
            return
        self.cache.resize(max(2 * PAGE, self.cache.size // 2, self.cache.stats().nr_pinned * PAGE))
        assert bytes(view) == before
        view.release()

    @invariant()
    def all_is_in_order(self):
        if hasattr(self, "cache"):
            self.cache.check()
            stats = self.cache.stats()
            assert stats.nr_file_pages * PAGE <= self.cache.size

    def teardown(self):
        if hasattr(self, "cache"):
            self.file.close()
            self.far.close()
            self.cache.check()
            self.cache.close()
            assert self.store.tobytes() == self.data


TestResizeModel = ResizeModel.TestCase
TestResizeModel.settings = few(10)


@pytest.mark.parametrize("nr_frames", [8, 64, 3000])
def test_threads_read_and_write_while_the_size_changes(make_cache, nr_frames, seed):
    cache = make_cache(nr_frames * PAGE, max_size=2 * nr_frames * PAGE)
    rng = random.Random(seed)
    sizes = [rng.randint(6, 2 * nr_frames) for _ in range(NR_STEPS)]
    data = pages_of(1000 * PAGE)
    store = pagecache.MemoryStore(bytes(1000 * PAGE))
    done = []

    def resize():
        for size in sizes:
            cache.resize(size * PAGE)
            assert cache.size == size * PAGE
        done.append(True)

    def read():
        place = random.Random(seed + 1)
        with cache.open(Store(data)) as file:
            while not done:
                page, nr = place.randrange(1000), place.randint(1, 40)
                assert file.pread(nr * PAGE, page * PAGE) == data[page * PAGE : (page + nr) * PAGE]

    def write():
        place, expected = random.Random(seed + 2), bytearray(1000 * PAGE)
        with cache.open(store, "r+b") as file:
            while not done:
                page, piece = place.randrange(990), place.randbytes(1) * (PAGE * place.randint(1, 10))
                file.pwrite(piece, page * PAGE)
                expected[page * PAGE : page * PAGE + len(piece)] = piece
                page = place.randrange(990)
                assert file.pread(3 * PAGE, page * PAGE) == expected[page * PAGE : page * PAGE + 3 * PAGE]
        assert store.tobytes() == expected

    Crew(resize, read, read, write).join_well()
