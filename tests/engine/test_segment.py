"""The segment: one region mapped at two addresses, what `attach` refuses, and the sizes of its arrays."""

import contextlib
import errno
import os
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import PAGE, Crew, add_page, bytes_of, checked_cache, few, pages_of, wait_until

import pagecache
from pagecache import truncate
from pagecache._core import AddressSpace, Segment

LAYOUT_BYTES = 88  # fixed fields at the start of the header
EINVAL = 22


def shared_segment(nr_frames, nr_mappings=16, data=True):
    """A segment in a memory file, where the system has such files."""
    try:
        return Segment(nr_frames, nr_mappings=nr_mappings, data=data, shared=True)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip("needs memory files (memfd_create)")


@pytest.fixture
def shared(frames):
    """A shared segment, and a second view of it."""
    segment = shared_segment(frames)
    yield segment, Segment.attach(segment.fd)
    segment.check()


class TestTwoViews:
    def test_are_at_different_addresses_and_show_the_same_state(self, shared):
        one, two = shared
        assert one.base_address != two.base_address
        assert one.counters() == two.counters()
        assert one.sizes() == two.sizes()
        assert one.nr_frames == two.nr_frames

    def test_each_sees_the_pages_that_the_other_cached(self, shared):
        one, two = shared
        here = AddressSpace(one, "here")
        there = AddressSpace(two, "there", number=here.number)
        assert add_page(here, 5, pages_of(PAGE, 5 * PAGE))
        assert bytes_of(there, 5) == pages_of(PAGE, 5 * PAGE)
        there.size = 6 * PAGE
        assert here.size == 6 * PAGE
        truncate.truncate_inode_pages(there, 0)
        assert bytes_of(here, 5) is None
        assert add_page(there, 7, pages_of(PAGE, 7 * PAGE))
        assert bytes_of(here, 7) == pages_of(PAGE, 7 * PAGE)
        assert here.folios() == there.folios() == [(7, 0, True)]

    def test_each_has_mappings_of_its_own_in_one_budget(self, shared):
        one, two = shared
        first, second = AddressSpace(one, "first"), AddressSpace(two, "second")
        assert first.number != second.number
        for index in range(2 * one.nr_frames):
            for mapping in (first, second):
                assert add_page(mapping, index, bytes([mapping.number]) * PAGE)
        counters = two.counters()
        assert counters["nr_file_pages"] + counters["nr_free_pages"] == one.nr_frames
        assert first.nrpages + second.nrpages == counters["nr_file_pages"]
        for mapping in (first, second):
            for index, _, _ in mapping.folios():
                assert bytes_of(mapping, index) == bytes([mapping.number]) * PAGE
        one.check()
        two.check()

    def test_a_folio_locked_through_one_is_locked_in_the_other(self, shared):
        one, two = shared
        here = AddressSpace(one, "here")
        there = AddressSpace(two, "there", number=here.number)
        add_page(here, 0, bytes(PAGE))
        mine, theirs = here.get_folio(0), there.get_folio(0)
        mine.lock()
        crew = Crew(theirs.lock)
        wait_until(lambda: mine.waiters, "the other view to wait")
        mine.unlock()
        crew.join_well()
        assert mine.locked
        theirs.unlock()
        mine.put()
        theirs.put()

    def test_a_waiting_lock_is_woken_from_the_other_view(self, shared):
        one, two = shared
        here = AddressSpace(one, "here")
        there = AddressSpace(two, "there", number=here.number)
        here.lock_exclusive()
        crew = Crew(there.lock_shared)
        wait_until(lambda: here.nr_waiting == (1, 0), "the other view to wait")
        here.unlock_exclusive()
        crew.join_well()
        there.unlock_shared()

    def test_two_caches_on_one_segment_read_right_and_evict_each_other(self, data_file):
        path, data = data_file(64 * PAGE + 100)
        segment = shared_segment(32)
        with checked_cache(32, segment=segment) as one, checked_cache(32, segment=Segment.attach(segment.fd)) as two:
            with one.open(path) as mine, two.open(path) as theirs:
                for pos in range(0, len(data), 3000):
                    assert mine.pread(3000, pos) == data[pos : pos + 3000]
                    assert theirs.pread(3000, pos) == data[pos : pos + 3000]
            assert one.stats().nr_file_pages == two.stats().nr_file_pages <= 32
            assert one.stats().evictions > 64

    def test_threads_on_both_views_leave_everything_in_order(self, shared, rng):
        one, two = shared
        here = AddressSpace(one, "here")
        there = AddressSpace(two, "there", number=here.number)
        seeds = [rng.random() for _ in range(4)]

        def work(mapping, number):
            choose = type(rng)(seeds[number])
            for _ in range(150):
                index = choose.randrange(100)
                if choose.random() < 0.6:
                    add_page(mapping, index, bytes([index]) * PAGE)
                elif choose.random() < 0.9:
                    found = bytes_of(mapping, index)
                    assert found is None or len(set(found)) == 1
                else:
                    truncate.invalidate_mapping_pages(mapping, index, index + 10)

        Crew(*(lambda m=mapping, n=number: work(m, n) for number, mapping in enumerate([here, there] * 2))).join_well()
        for index, _, uptodate in here.folios():
            assert uptodate
            assert bytes_of(there, index) == bytes([index]) * PAGE


class TestAdoptedMapping:
    def test_must_exist(self):
        segment = Segment(4, nr_mappings=8)
        for number in (1, 7, 8, 2**32 - 1):
            with pytest.raises(ValueError, match="no mapping"):
                AddressSpace(segment, number=number)

    def test_stays_when_the_adopter_goes(self):
        segment = Segment(4, nr_mappings=8)
        maker = AddressSpace(segment, "maker")
        adopter = AddressSpace(segment, "adopter", number=maker.number)
        add_page(adopter, 3, b"x" * PAGE)
        del adopter
        assert bytes_of(maker, 3) == b"x" * PAGE
        segment.check()


@pytest.fixture(scope="module")
def segment():
    """A shared segment that is not used."""
    return shared_segment(64)


@contextlib.contextmanager
def altered(segment, at, mask):
    """One byte of a segment's header changed, for as long as the context lasts."""
    (value,) = os.pread(segment.fd, 1, at)
    os.pwrite(segment.fd, bytes([value ^ mask]), at)
    try:
        yield
    finally:
        os.pwrite(segment.fd, bytes([value]), at)


class TestAttach:
    def test_refuses_what_is_no_segment(self, tmp_path, segment, rng):
        path = tmp_path / "file"
        whole = os.pread(segment.fd, os.fstat(segment.fd).st_size, 0)
        for content in (b"", b"PCHS", rng.randbytes(100_000), bytes(len(whole)), whole[:-1], whole + b"\0" * PAGE):
            path.write_bytes(content)
            with open(path, "r+b") as file, pytest.raises(OSError, match="cannot attach") as caught:
                Segment.attach(file.fileno())
            assert caught.value.errno == EINVAL

    @pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
    def test_refuses_a_truncated_segment(self, tmp_path, segment, fraction):
        whole = os.pread(segment.fd, os.fstat(segment.fd).st_size, 0)
        path = tmp_path / "file"
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with open(path, "r+b") as file, pytest.raises(OSError, match="cannot attach"):
            Segment.attach(file.fileno())

    def test_accepts_a_copy_in_a_file(self, tmp_path, segment):
        path = tmp_path / "file"
        path.write_bytes(os.pread(segment.fd, os.fstat(segment.fd).st_size, 0))
        with open(path, "r+b") as file:
            assert Segment.attach(file.fileno()).counters() == segment.counters()

    def test_refuses_descriptors_that_cannot_be_mapped(self, tmp_path):
        reader, writer = os.pipe()
        directory = os.open(tmp_path, os.O_RDONLY)
        for fd in (reader, writer, directory):
            with pytest.raises(OSError):
                Segment.attach(fd)
            os.close(fd)
        with pytest.raises(OSError):
            Segment.attach(reader)

    @given(at=st.integers(0, LAYOUT_BYTES + 7), mask=st.integers(1, 255))
    @example(at=0, mask=1)
    @example(at=56, mask=1)
    def test_refuses_any_change_of_the_layout(self, segment, at, mask):
        with altered(segment, at, mask), pytest.raises(OSError, match="cannot attach"):
            Segment.attach(segment.fd)
        Segment.attach(segment.fd).check()

    @few(60)
    @given(at=st.integers(LAYOUT_BYTES + 8, 8191), mask=st.integers(1, 255))
    def test_a_change_of_the_rest_is_refused_or_found_by_check(self, segment, at, mask):
        """What says where things are must be right; a flipped counter that nothing depends on may pass."""
        with altered(segment, at, mask):
            try:
                view = Segment.attach(segment.fd)
            except OSError:
                return
            try:
                view.check()
            except AssertionError:
                return
            assert view.nr_frames == segment.nr_frames
            assert view.counters()["nr_free_pages"] == segment.nr_frames

    def test_links_that_lead_out_of_an_array_are_refused(self, segment):
        header = os.pread(segment.fd, 4096, 0)
        free_heads = header.index(struct.pack("<I", 0), LAYOUT_BYTES + 8)
        nr_refused = 0
        for at in range(free_heads, 400, 4):
            (value,) = struct.unpack_from("<I", header, at)
            if value != 2**32 - 1:
                continue
            os.pwrite(segment.fd, struct.pack("<I", 2**31), at)
            try:
                with pytest.raises(OSError, match="cannot attach"):
                    Segment.attach(segment.fd)
            finally:
                os.pwrite(segment.fd, struct.pack("<I", value), at)
            nr_refused += 1
        assert nr_refused > 10


class TestSizes:
    @given(nr_frames=st.integers(1, 5000), nr_mappings=st.integers(2, 1000), data=st.booleans())
    @few(40)
    def test_arrays_follow_each_other_and_fill_the_region(self, nr_frames, nr_mappings, data):
        segment = shared_segment(nr_frames, nr_mappings, data)
        sizes = segment.sizes()
        assert sizes["folios"][0] == 64
        assert sizes["folios"][1] == sizes["frames"][1] == nr_frames
        assert sizes["frames"] == (PAGE, nr_frames, 0)
        assert sizes["mappings"][1] == nr_mappings
        assert sizes["mappings"][2] == sizes["nodes"][2] == 0
        offsets = struct.unpack_from("<5Q", os.pread(segment.fd, LAYOUT_BYTES, 0), 16)
        starts = (0, *offsets, os.fstat(segment.fd).st_size)
        names = ("header", "mappings", "directory", "nodes", "folios", "frames")
        for name, start, end in zip(names, starts, starts[1:], strict=False):
            record, count, _ = sizes[name]
            room = count * record if name != "frames" or data else 0
            assert start % PAGE == 0
            assert start + room <= end, name
        assert offsets[4] % (2 << 20) == 0

    def test_descriptors_and_index_cost_at_most_1_8_percent_of_the_cached_bytes(self):
        nr_frames = 8192
        store = pagecache.MemoryStore(bytes(2 * nr_frames * PAGE))
        with checked_cache(nr_frames) as cache, cache.open(store) as file:
            for pos in range(0, store.size(), 1 << 20):
                file.pread(1 << 20, pos)
            stats, sizes = cache.stats(), cache.segment.sizes()
            in_use = sum(sizes[name][2] for name in ("header", "mappings", "directory", "nodes", "folios"))
            assert stats.overhead_bytes == in_use
            assert stats.resident_bytes > 0.95 * cache.size
            assert in_use <= 0.018 * cache.size

    @pytest.mark.parametrize("nr_frames", [0, -1, 2**28 + 1])
    def test_numbers_of_frames_that_cannot_be_are_refused(self, nr_frames):
        with pytest.raises(ValueError, match="nr_frames"):
            Segment(nr_frames)

    @pytest.mark.parametrize("nr_mappings", [0, 1, 2**28 + 1])
    def test_numbers_of_mappings_that_cannot_be_are_refused(self, nr_mappings):
        with pytest.raises(ValueError, match="nr_mappings"):
            Segment(4, nr_mappings=nr_mappings)

    def test_mappings_run_out_with_an_error_and_come_back(self):
        segment = Segment(4, nr_mappings=4)
        mappings = [AddressSpace(segment) for _ in range(3)]
        with pytest.raises(OSError, match="mappings"):
            AddressSpace(segment)
        numbers = {mapping.number for mapping in mappings}
        del mappings
        assert {AddressSpace(segment).number for _ in range(6)} <= numbers
        segment.check()
