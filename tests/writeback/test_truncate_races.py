"""The races of truncation with everything else, each made to happen: a store that waits, and steps.

The rules: docs/kernel.md, races of truncation.
"""

import errno
import threading
import time

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew, assert_nothing_is_held, frame_of, pages_of, read, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, fill_dirty, flags_of, folio_of

import pagecache
from pagecache import filemap, mm, truncate

NR_PAGES = 16
DATA = pages_of(NR_PAGES * PAGE)
EIO = OSError(errno.EIO, "broken")


class HeldReads(WritableStore):
    """A store whose reads of what is not at the beginning wait until they may go on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.on_read = Gate()

    def answer(self, offset, buffers):
        if offset:
            self.on_read()
        return super().answer(offset, buffers)


@pytest.fixture
def store():
    return WritableStore(DATA)


@pytest.fixture
def cache(make_cache):
    return make_cache(256 * PAGE, dirty_limit="80%", dirty_background="70%")


@pytest.fixture
def file(cache, store):
    with cache.open(store, "r+b") as opened:
        yield opened
        opened.fsync()
        assert store.data == opened.pread(len(store.data) + 1, 0)
    assert_nothing_is_held(cache)


def wait_until_in(crew, *names):
    """Wait until a thread of a crew runs a function of one of these names."""
    ident = crew.threads[0].ident

    def is_there():
        frame = frame_of(ident)
        while frame is not None and frame.f_code.co_name not in names:
            frame = frame.f_back
        return frame is not None

    wait_until(is_there, f"a thread to be in {' or '.join(names)}")


def write_large(file, nr_pages=NR_PAGES):
    """Make one large, dirty folio of zeros and ones at the beginning of an empty file; returns its bytes."""
    data = pages_of(nr_pages * PAGE, start=PAGE)
    file.truncate(0)
    file.pwrite(data, 0)
    with folio_of(file) as folio:
        assert folio.nr_pages == nr_pages, "the write made no large folio"
    return data


class TestAgainstWriteBack:
    @pytest.mark.parametrize("size", [0, 100, PAGE, 2 * PAGE + 17])
    def test_truncation_waits_for_it_and_the_store_is_truncated_afterwards(self, file, store, size):
        fill_dirty(file, 4)
        expected = file.pread(size, 0)
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        cutter = Crew(lambda: file.truncate(size))
        wait_until_in(cutter, "_cut_store")
        assert "truncate" not in store.names()
        gate.go_on.set()
        writer.join_well()
        assert cutter.join_well() == [size]
        assert store.names()[0] == "writev"
        assert (len(store.data), store.data[:size]) == (size, expected)
        assert (file.seek(0, 2), file.pread(10 * PAGE, 0)) == (size, expected)

    def test_write_back_skips_what_was_truncated_before_its_turn(self, file, store):
        store.max_request = PAGE
        file.inode._use(store)
        fill_dirty(file, 4)
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        cutter = Crew(lambda: file.truncate(PAGE))
        wait_until(lambda: file.mapping.size == PAGE, "the size to change")
        gate.go_on.set()
        writer.join_well()
        cutter.join_well()
        assert {offset for offset, _ in store.writes()} == {0}
        assert store.data == (0).to_bytes(8, "little") * 512

    def test_a_failing_write_back_of_what_is_being_truncated_leaves_nothing_dirty(self, file, store):
        fill_dirty(file, 4)
        store.on_write = gate = Gate(EIO)
        writer = Crew(file.fsync)
        gate.wait_entered()
        cutter = Crew(lambda: file.truncate(0))
        wait_until_in(cutter, "_cut_store")
        gate.go_on.set()
        assert isinstance(writer.join()[0], OSError)
        cutter.join_well()
        store.on_write = lambda *call: None
        assert (dirty_pages(file), file.cachestat().nr_cache, store.data) == (0, 0, b"")

    def test_a_hole_waits_for_it_and_then_reads_as_zeros(self, file, store):
        fill_dirty(file, 4)
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        puncher = Crew(lambda: file.punch_hole(PAGE + 10, PAGE))
        wait_until_in(puncher, "filemap_write_and_wait_range")
        assert "punch_hole" not in store.names()
        gate.go_on.set()
        writer.join_well()
        puncher.join_well()
        assert file.pread(PAGE, PAGE + 10) == bytes(PAGE) == store.data[PAGE + 10 : 2 * PAGE + 10]

    def test_extension_during_write_back_of_the_tail_reads_zeros(self, file, store):
        file.truncate(PAGE + 10)
        file.pwrite(b"tail", PAGE + 6)
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        extender = Crew(lambda: file.pwrite(b"far", 3 * PAGE))
        extender.join_well()
        gate.go_on.set()
        writer.join_well()
        assert file.pread(4 * PAGE, PAGE + 6) == b"tail" + bytes(2 * PAGE - 10) + b"far"


class TestAgainstMaps:
    def test_a_store_to_a_page_that_was_truncated_meanwhile_is_refused(self, cache, store, file):
        """page_mkwrite finds the folio gone, and the fault that follows the new size."""
        with file.mmap(access=mm.ACCESS_WRITE) as mapped:
            store.on_write = gate = Gate()
            mapped[5 * PAGE] = 1
            writer = Crew(file.fsync)
            gate.wait_entered()
            cutter = Crew(lambda: file.truncate(PAGE))
            wait_until(lambda: file.mapping.size == PAGE, "the new size")
            with pytest.raises(mm.BusError):
                mapped[5 * PAGE] = 2
            gate.go_on.set()
            writer.join_well()
            cutter.join_well()
            with pytest.raises(mm.BusError):
                mapped[5 * PAGE] = 3
            assert mapped[0] == DATA[0]
            assert len(store.data) == PAGE

    def test_what_a_map_made_dirty_and_was_truncated_is_not_written(self, store, file):
        with file.mmap(access=mm.ACCESS_WRITE) as mapped:
            mapped[5 * PAGE : 7 * PAGE] = bytes(2 * PAGE)
            assert dirty_pages(file) == 2
            file.truncate(6 * PAGE)
            assert dirty_pages(file) == 1
            file.fsync()
        assert store.writes() == [(5 * PAGE, PAGE)]

    def test_a_fault_waits_for_the_truncation_and_sees_the_new_size(self, store, file):
        with file.mmap() as mapped:
            store.on_truncate = gate = Gate()
            cutter = Crew(lambda: file.truncate(PAGE))
            gate.wait_entered()
            reader = Crew(lambda: mapped[2 * PAGE])
            assert isinstance(reader.join()[0], mm.BusError)
            gate.go_on.set()
            cutter.join_well()
            assert mapped[0] == DATA[0]

    def test_private_copies_behind_the_end_go_and_others_stay(self, file):
        with file.mmap(access=mm.ACCESS_COPY) as mapped:
            mapped[0], mapped[5 * PAGE] = 77, 78
            file.punch_hole(0, 6 * PAGE)
            assert (mapped[0], mapped[5 * PAGE], mapped[1 * PAGE]) == (77, 78, 0)
            file.truncate(PAGE)
            file.truncate(8 * PAGE)
            assert (mapped[0], mapped[5 * PAGE]) == (77, 0)


class TestAgainstReadsAndWrites:
    def test_a_reader_of_the_old_end_sees_zeros_or_the_new_bytes(self, file, store):
        """What lies behind the old end in its page is zero before i_size grows."""
        file.truncate(PAGE + 100)
        stop = threading.Event()
        seen = set()

        def look():
            while not stop.is_set():
                data = file.pread(PAGE, PAGE + 100)
                seen.add((len(data), data.strip(b"\0")[:1]))

        crew = Crew(look)
        for _ in range(200):
            file.pwrite(b"E", 2 * PAGE)
            file.truncate(PAGE + 100)
        stop.set()
        crew.join_well()
        assert {first for _, first in seen} <= {b"", b"E"}
        assert seen <= {(0, b""), (PAGE, b""), (PAGE - 99, b"E"), (PAGE - 99, b""), (PAGE - 100, b"")}

    def test_a_writer_waits_for_the_truncation(self, file, store):
        store.on_truncate = gate = Gate()
        cutter = Crew(lambda: file.truncate(0))
        gate.wait_entered()
        writer = Crew(lambda: file.pwrite(b"after", 0))
        wait_until(lambda: file.mapping.nr_waiting_to_write == 1, "the writer to wait for the inode lock")
        gate.go_on.set()
        cutter.join_well()
        writer.join_well()
        assert file.pread(100, 0) == b"after"

    def test_a_truncation_waits_for_the_writer(self, file, store):
        gate, answer = Gate(), store.answer
        store.answer = lambda offset, buffers: (gate(), answer(offset, buffers))[1]
        writer = Crew(lambda: file.pwrite(b"before", 4 * PAGE + 10))
        gate.wait_entered()
        cutter = Crew(lambda: file.truncate(PAGE))
        wait_until(lambda: file.mapping.nr_waiting_to_write == 1, "the cutter to wait for the inode lock")
        gate.go_on.set()
        writer.join_well()
        cutter.join_well()
        assert file.pread(NR_PAGES * PAGE, 0) == DATA[:PAGE]

    def test_a_missing_page_of_a_hole_is_not_read_before_the_store_has_it(self, file, store):
        store.on_punch = gate = Gate()
        puncher = Crew(lambda: file.punch_hole(2 * PAGE, PAGE))
        gate.wait_entered()
        reader = Crew(lambda: file.pread(PAGE, 2 * PAGE))
        wait_until(lambda: file.mapping.nr_waiting[0] == 1, "the reader to wait for invalidate_lock")
        gate.go_on.set()
        puncher.join_well()
        assert reader.join_well() == [bytes(PAGE)]

    def test_a_read_in_flight_ends_before_the_page_is_truncated(self, file, store):
        gate, answer = Gate(), store.answer
        store.answer = lambda offset, buffers: (gate(), answer(offset, buffers))[1]
        file.fadvise(pagecache.FADV_RANDOM)
        reader = Crew(lambda: file.pread(PAGE, 4 * PAGE))
        gate.wait_entered()
        cutter = Crew(lambda: file.truncate(0))
        wait_until(lambda: file.mapping.nr_waiting[1] == 1, "the cutter to wait for invalidate_lock")
        gate.go_on.set()
        assert reader.join_well()[0] in (b"", DATA[4 * PAGE : 5 * PAGE])
        cutter.join_well()
        assert file.cachestat().nr_cache == 0


class TestAgainstInvalidation:
    def test_a_dirty_page_is_refused_and_kept(self, file):
        file.pread(NR_PAGES * PAGE, 0)
        file.pwrite(b"new", 3 * PAGE)
        with pytest.raises(OSError, match="fsync first") as caught:
            file.invalidate()
        assert caught.value.errno == errno.EBUSY
        assert file.pread(3, 3 * PAGE) == b"new"
        assert file.cachestat().nr_cache < NR_PAGES

    def test_one_that_is_dirtied_while_it_waits_for_write_back_is_refused(self, file, store):
        fill_dirty(file, 1)
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        file.pwrite(b"again", 0)
        assert flags_of(file) == "dirty,writeback,DIRTY,WRITEBACK"
        with file.mapping.exclusive():
            crew = Crew(lambda: truncate.invalidate_inode_pages2_range(file.mapping, 0, 0))
            wait_until_in(crew, "_invalidate_folio2")
            gate.go_on.set()
            assert crew.join()[0].errno == errno.EBUSY
        writer.join_well()
        assert file.pread(5, 0) == b"again"

    def test_a_writer_cannot_extend_what_is_being_taken_anew(self, file, store):
        file.pwrite(b"x", 0)
        file.fsync()
        gate, size = Gate(), store.size
        store.size = lambda: (gate(), size())[1]
        invalidator = Crew(file.invalidate)
        gate.wait_entered()
        writer = Crew(lambda: file.pwrite(b"end", NR_PAGES * PAGE))
        wait_until(lambda: file.mapping.nr_waiting_to_write == 1, "the writer to wait for the inode lock")
        gate.go_on.set()
        invalidator.join_well()
        writer.join_well()
        assert file.pread(10, NR_PAGES * PAGE) == b"end"
        store.size = size

    def test_reclaim_never_takes_a_page_that_a_lookup_holds(self, cache, file):
        file.pread(NR_PAGES * PAGE, 0)
        with file.view(PAGE, 5 * PAGE) as view:
            cache.segment.reclaim(256)
            assert file.mincore()[5] == 1
            assert view == DATA[5 * PAGE : 6 * PAGE]
        cache.segment.reclaim(256)
        assert file.mincore()[5] == 0

    def test_reclaim_never_takes_a_dirty_page(self, cache, file):
        fill_dirty(file, 4)
        cache.segment.reclaim(256)
        cache.drop_caches()
        assert file.mincore()[:4] == bytes([1] * 4)
        assert dirty_pages(file) == 4


class TestPartialPages:
    @pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 7, 8 * PAGE])
    @pytest.mark.parametrize("state", ["dirty", "clean", "viewed"])
    def test_a_large_folio_is_truncated(self, file, store, size, state):
        data = write_large(file)
        if state != "dirty":
            file.fsync()
        view = file.view(NR_PAGES * PAGE, 0) if state == "viewed" else memoryview(data)
        file.truncate(size)
        assert file.pread(NR_PAGES * PAGE, 0) == data[:size]
        assert view == data, "a live view changed"
        view.release()
        file.truncate(NR_PAGES * PAGE)
        assert file.pread(NR_PAGES * PAGE, 0) == data[:size] + bytes(NR_PAGES * PAGE - size)
        if state == "dirty":
            assert dirty_pages(file) == -(-size // PAGE), "what was split stays dirty, and no more"

    @pytest.mark.parametrize(("offset", "nbytes"), [(0, PAGE), (10, 20), (PAGE + 5, 6 * PAGE), (5 * PAGE, 1 << 20), (9, 0)])
    @pytest.mark.parametrize("state", ["dirty", "clean", "viewed", "viewed dirty"])
    def test_a_hole_is_punched_into_a_large_folio(self, file, store, offset, nbytes, state):
        data = write_large(file)
        if "dirty" not in state:
            file.fsync()
        view = file.view(NR_PAGES * PAGE, 0) if "viewed" in state else memoryview(data)
        file.punch_hole(offset, nbytes)
        end = min(offset + nbytes, len(data))
        expected = data[:offset] + bytes(max(0, end - offset)) + data[max(offset, end) :]
        assert file.pread(NR_PAGES * PAGE + 1, 0) == expected
        assert view == data, "a live view changed"
        view.release()
        file.fsync()
        assert store.data == expected

    def test_a_dirty_large_folio_that_is_viewed_is_truncated_in_a_copy(self, file, store):
        data = write_large(file)
        with file.view(NR_PAGES * PAGE, 0) as view:
            file.truncate(3 * PAGE + 5)
            assert view == data
            assert file.pread(NR_PAGES * PAGE, 0) == data[: 3 * PAGE + 5]
            file.fsync()
            assert store.data == data[: 3 * PAGE + 5]


class TestCutAndWrittenAgain:
    """A file that is truncated and written to its former size again while it is read: its bytes were old, none, and new."""

    OLD, NEW = b"\x01" * (2 * PAGE), b"\x02" * (2 * PAGE)

    @pytest.mark.parametrize("way", ["pread", "preadinto", "view", "iter_views"])
    def test_no_read_shows_what_it_was_truncated_to(self, monkeypatch, cache, way):
        """The page is looked up while its second part is truncated; when that is copied another page is there."""
        look_up = filemap.filemap_get_pages
        with cache.open(WritableStore(self.OLD, key="cut"), "r+b") as file:

            def look_up_between(*args):
                monkeypatch.undo()
                file.pread(2 * PAGE, 0)
                file.truncate(PAGE + 100)
                found = look_up(*args)
                file.truncate(0)
                file.pwrite(self.NEW, 0)
                return found

            for module in (filemap, filemap.read):
                monkeypatch.setattr(module, "filemap_get_pages", look_up_between)
            assert read(file, way, 1000, PAGE + 200) == self.NEW[:1000]


class TestFailingStores:
    @pytest.mark.parametrize("size", [0, 100, PAGE, 5 * PAGE + 7])
    @pytest.mark.parametrize("state", ["cached", "cold", "dirty"])
    def test_a_truncation_that_fails_leaves_what_the_store_has(self, file, store, size, state):
        expected = bytearray(DATA)
        if state != "cold":
            file.pread(NR_PAGES * PAGE, 0)
        if state == "dirty" and size % PAGE:
            file.pwrite(b"new", size - 3)
            expected[size - 3 : size] = b"new"
        store.on_truncate = Fault(EIO, 1)
        with pytest.raises(OSError, match="broken"):
            file.truncate(size)
        assert file.pread(NR_PAGES * PAGE + 1, 0) == expected
        file.fsync()
        assert store.data == expected

    @pytest.mark.parametrize("size", [0, 100, PAGE, 2 * PAGE, 5 * PAGE + 7, NR_PAGES * PAGE + 5])
    @pytest.mark.parametrize("large", [False, True])
    def test_a_truncation_that_fails_loses_nothing_that_was_written(self, file, store, size, large):
        expected = DATA + pages_of(8 * PAGE, start=7)
        if large:
            expected = write_large(file, 16)
        else:
            fill_dirty(file, NR_PAGES)
            expected = file.pread(NR_PAGES * PAGE, 0) + expected[NR_PAGES * PAGE :]
            file.pwrite(expected[NR_PAGES * PAGE :], NR_PAGES * PAGE)
        nr_dirty = dirty_pages(file)
        store.on_truncate = Fault(EIO, 1)
        with pytest.raises(OSError, match="broken"):
            file.truncate(min(size, len(expected) - 1))
        assert dirty_pages(file) == nr_dirty > 0
        assert (file.seek(0, 2), file.pread(len(expected) + 1, 0)) == (len(expected), expected)
        file.fsync()
        assert store.data == expected

    @pytest.mark.parametrize("left", [3 * PAGE, 100])
    def test_a_truncation_that_fails_half_way_leaves_what_the_store_has(self, file, store, left):
        """The store has lost bytes: what is cached of them is no longer shown."""
        file.pread(NR_PAGES * PAGE, 0)
        file.pwrite(b"new", 6 * PAGE)

        def cut_more(size):
            del store.data[left:]
            raise EIO

        store.on_truncate = cut_more
        with pytest.raises(OSError, match="broken"):
            file.truncate(100)
        assert file.pread(NR_PAGES * PAGE, 0) == DATA[:left]

    def test_a_read_that_waits_while_a_truncation_fails_brings_what_the_store_has(self, cache):
        """The size that the truncation tried is not the object's: what lies behind it is not zeros."""
        store = HeldReads(DATA, key="held")
        store.max_request = PAGE
        with cache.open(store, "r+b") as file:
            assert file.pread(PAGE, 0) == DATA[:PAGE]  # the window is read by others, one request after another
            assert store.on_read.entered.wait(PATIENCE_S)
            store.on_truncate = Fault(EIO, 1)
            cutter = Crew(lambda: file.truncate(0))
            wait_until(lambda: file.size == 0, "the truncation to begin")
            store.on_read.go_on.set()
            with pytest.raises(OSError, match="broken"):
                cutter.join_well()
            assert file.pread(NR_PAGES * PAGE + 1, 0) == DATA

    def test_write_back_does_not_take_half_of_a_folio_that_is_being_truncated(self, file, store):
        """What lies behind the end would count as written with the rest of the page."""
        file.pwrite(b"behind the cut", 2 * PAGE + 500)
        expected = file.pread(NR_PAGES * PAGE, 0)
        crews = []

        def write_back_and_fail(size):
            crews.append(Crew(lambda: file.sync_range(0)))
            thread, looks, place = crews[0].threads[0], 0, None
            while thread.is_alive() and looks < 20:
                frame = frame_of(thread.ident)
                here = (frame, frame and frame.f_lasti)
                looks, place = (looks + 1 if here == place else 0), here
                time.sleep(0.002)
            raise EIO

        store.on_truncate = write_back_and_fail
        with pytest.raises(OSError, match="broken"):
            file.truncate(2 * PAGE + 100)
        crews[0].join_well()
        file.fsync()
        assert store.data == expected

    @pytest.mark.stress
    def test_truncations_that_fail_while_others_write_back(self, file, store, rng):
        """Write-back of any part, at any moment of a truncation that fails, neither loses bytes nor writes behind it."""
        expected = bytearray(DATA)
        done = threading.Event()

        def write_back():
            while not done.is_set():
                file.sync_range(0, 0)

        def cut():
            try:
                for _ in range(500 if STRESS else 60):
                    offset, data = rng.randrange(NR_PAGES * PAGE - 50), rng.randbytes(50)
                    file.pwrite(data, offset)
                    expected[offset : offset + 50] = data
                    store.on_truncate = Fault(EIO, 1)
                    with pytest.raises(OSError, match="broken"):
                        file.truncate(rng.randrange(NR_PAGES * PAGE))
                    assert file.pread(NR_PAGES * PAGE + 1, 0) == expected
            finally:
                done.set()

        Crew(cut, write_back, write_back).join_well()
        file.fsync()
        assert store.data == expected

    def test_an_extension_that_fails_leaves_the_old_size(self, file, store):
        store.on_truncate = Fault(EIO, 1)
        with pytest.raises(OSError, match="broken"):
            file.truncate(100 * PAGE)
        assert file.seek(0, 2) == NR_PAGES * PAGE
        assert file.pread(NR_PAGES * PAGE + 1, 0) == DATA

    @pytest.mark.parametrize(("offset", "nbytes"), [(0, PAGE), (10, 20), (PAGE + 5, 6 * PAGE)])
    @pytest.mark.parametrize("cached", [False, True])
    def test_a_hole_that_fails_leaves_the_bytes(self, file, store, offset, nbytes, cached):
        expected = bytearray(DATA)
        if cached:
            file.pread(NR_PAGES * PAGE, 0)
            file.pwrite(b"new", offset)
            expected[offset : offset + 3] = b"new"
        store.on_punch = Fault(EIO, 1)
        with pytest.raises(OSError, match="broken"):
            file.punch_hole(offset, nbytes)
        assert file.pread(NR_PAGES * PAGE + 1, 0) == expected

    @pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, None])
    def test_zeros_are_written_where_the_store_knows_no_holes(self, file, store, number):
        if number is None:
            store.punch_hole = None
        store.on_punch = Fault(OSError(number, "no holes here"))
        file.pread(NR_PAGES * PAGE, 0)
        file.punch_hole(PAGE + 5, 6 * PAGE)
        expected = DATA[: PAGE + 5] + bytes(6 * PAGE) + DATA[7 * PAGE + 5 :]
        assert file.pread(NR_PAGES * PAGE, 0) == expected
        file.fsync()
        assert store.data == expected

    def test_a_hole_in_dirty_bytes_that_cannot_be_written_leaves_them(self, file, store):
        file.pwrite(b"new", PAGE)
        store.on_write = fault = Fault(EIO)
        with pytest.raises(OSError, match="broken"):
            file.punch_hole(0, 4 * PAGE)
        assert file.pread(3, PAGE) == b"new"
        assert "punch_hole" not in store.names()
        fault.mend()
        with pytest.raises(OSError, match="in the background"):
            file.fsync()
