"""Maps that can be written, shared and private, against the real mmap.mmap on a copy of the file."""

import errno
import mmap
import random
from pathlib import Path

import pytest
from support import PAGE, Crew, assert_nothing_is_held, pages_of, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, flags_of

import pagecache
from pagecache import mm

NR_PAGES = 8
SIZE = NR_PAGES * PAGE - 100
DATA = pages_of(SIZE)
EIO = OSError(errno.EIO, "broken")
REAL_ACCESS = {
    mm.ACCESS_DEFAULT: mmap.ACCESS_DEFAULT, mm.ACCESS_READ: mmap.ACCESS_READ, mm.ACCESS_WRITE: mmap.ACCESS_WRITE,
    mm.ACCESS_COPY: mmap.ACCESS_COPY,
}  # fmt: skip

OPERATIONS = {
    "set byte": lambda m: m.__setitem__(5, 7),
    "set last": lambda m: m.__setitem__(-1, 7),
    "set behind": lambda m: m.__setitem__(SIZE, 7),
    "set 256": lambda m: m.__setitem__(0, 256),
    "set -1": lambda m: m.__setitem__(0, -1),
    "set bytes at one": lambda m: m.__setitem__(0, b"x"),
    "set at a string": lambda m: m.__setitem__("a", 1),
    "set slice": lambda m: m.__setitem__(slice(10, 13), b"abc"),
    "set over pages": lambda m: m.__setitem__(slice(PAGE - 10, 2 * PAGE + 10), b"z" * (PAGE + 20)),
    "set all": lambda m: m.__setitem__(slice(None), bytes(len(m))),
    "set none": lambda m: m.__setitem__(slice(5, 5), b""),
    "set wrong size": lambda m: m.__setitem__(slice(0, 4), b"abc"),
    "set str": lambda m: m.__setitem__(slice(0, 3), "abc"),
    "set int": lambda m: m.__setitem__(slice(0, 3), 5),
    "set steps": lambda m: m.__setitem__(slice(0, 3 * PAGE, 1000), b"q" * 13),
    "set backwards": lambda m: m.__setitem__(slice(10, 0, -2), bytearray(b"54321")),
    "set backwards wrong": lambda m: m.__setitem__(slice(10, 0, -2), b"1"),
    "set memoryview": lambda m: m.__setitem__(slice(0, 4), memoryview(b"abcd")),
    "delete": lambda m: m.__delitem__(0),
    "delete slice": lambda m: m.__delitem__(slice(0, 3)),
    "write": lambda m: (m.write(b"hello"), m.tell()),
    "write in the middle": lambda m: [m.seek(PAGE - 2), m.write(bytearray(b"hello")), m.tell()][1:],
    "write at the end": lambda m: [m.seek(-5, 2), m.write(b"hello"), m.tell()][1:],
    "write over the end": lambda m: (m.seek(-4, 2), m.write(b"hello")),
    "write nothing": lambda m: (m.write(b""), m.tell()),
    "write str": lambda m: m.write("hello"),
    "write_byte": lambda m: (m.write_byte(200), m.tell()),
    "write_byte 256": lambda m: m.write_byte(256),
    "write_byte at the end": lambda m: (m.seek(0, 2), m.write_byte(1)),
    "move up": lambda m: m.move(100, 50, 200),
    "move down over pages": lambda m: m.move(50, 100, 2 * PAGE),
    "move nothing": lambda m: m.move(0, SIZE, 0),
    "move outside": lambda m: m.move(0, SIZE - 10, 11),
    "move negative": lambda m: m.move(-1, 0, 1),
    "flush": lambda m: m.flush(),
    "flush range": lambda m: m.flush(PAGE, PAGE),
    "flush outside": lambda m: m.flush(0, SIZE + 1),
    "flush negative": lambda m: m.flush(-1, 5),
    "read after": lambda m: (m.__setitem__(slice(0, 3), b"abc"), m.read(5)),
    "find after": lambda m: (m.__setitem__(slice(5000, 5003), b"xyz"), m.find(b"xyz")),
    "seek": lambda m: [m.seek(10), m.tell(), m.seek(5, 1), m.tell(), m.seek(-10, 2), m.tell()][1::2],
    "len and size": lambda m: (len(m), m.size()),
    "resize up": lambda m: (m.resize(SIZE + 5000), len(m), m.size(), bytes(m[SIZE:])),
    "resize down": lambda m: (m.resize(PAGE + 1), len(m), m.size(), bytes(m[PAGE:])),
    "close and set": lambda m: (m.close(), m.__setitem__(0, 1)),
    "close and write": lambda m: (m.close(), m.write(b"x")),
    "close and flush": lambda m: (m.close(), m.flush()),
}  # fmt: skip


def outcome(call, mapped):
    """Return what a call returns, or the type of what it raises: an OSError's errno too."""
    try:
        result = call(mapped)
    except Exception as error:
        return type(error), getattr(error, "errno", None)
    return result


@pytest.fixture
def cache(make_cache):
    return make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%")


@pytest.fixture
def store():
    return WritableStore(DATA)


class TestAgainstTheRealOne:
    @pytest.fixture
    def pair(self, cache, data_file, tmp_path):
        """A function that maps equal files both ways: (ours, real, path of ours, path of the real one's)."""
        opened = []

        def make(access):
            ours, theirs = tmp_path / "ours", tmp_path / "theirs"
            ours.write_bytes(DATA)
            theirs.write_bytes(DATA)
            mode = "rb" if access == mm.ACCESS_READ else "r+b"
            file, real = cache.open(ours, mode), open(theirs, mode)  # noqa: SIM115
            opened.extend([file, real])
            opened.append(file.mmap(access=access))
            opened.append(mmap.mmap(real.fileno(), 0, access=REAL_ACCESS[access]))
            return opened[-2], opened[-1], file, theirs

        yield make
        for thing in reversed(opened):
            thing.close()

    @pytest.mark.parametrize("access", REAL_ACCESS, ids=["default", "read", "write", "copy"])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_does_the_same(self, pair, name, access):
        ours, real, file, path = pair(access)
        assert outcome(OPERATIONS[name], ours) == outcome(OPERATIONS[name], real)
        if not real.closed:
            assert ours[:] == real[:]
            assert (len(ours), ours.tell()) == (len(real), real.tell())
            real.flush()
        assert file.pread(2 * SIZE, 0) == path.read_bytes()

    @pytest.mark.parametrize("access", [mm.ACCESS_WRITE, mm.ACCESS_COPY], ids=["write", "copy"])
    def test_does_the_same_at_random(self, pair, access, rng):
        ours, real, file, path = pair(access)
        for _ in range(300):
            start, nbytes = rng.randrange(SIZE), rng.choice([1, 7, 100, PAGE, 3 * PAGE])
            stop = min(start + nbytes, SIZE)
            if rng.random() < 0.5:
                data = rng.randbytes(stop - start)
                ours[start:stop] = data
                real[start:stop] = data
            else:
                target = rng.randrange(SIZE - (stop - start) + 1)
                ours.move(target, start, stop - start)
                real.move(target, start, stop - start)
            position = rng.randrange(SIZE)
            assert ours[position : position + 200] == real[position : position + 200]
        assert ours[:] == real[:]
        real.flush()
        file.fsync()
        assert file.pread(SIZE, 0) == path.read_bytes()
        assert Path(file.name).read_bytes() == path.read_bytes()

    def test_a_map_for_writing_needs_a_file_for_writing(self, cache, tmp_path):
        (tmp_path / "data").write_bytes(DATA)
        with cache.open(tmp_path / "data") as file, open(tmp_path / "data", "rb") as real:
            for access in (mm.ACCESS_WRITE, mm.ACCESS_DEFAULT):
                with pytest.raises(PermissionError):
                    mmap.mmap(real.fileno(), 0, access=access or mmap.ACCESS_WRITE)
                with pytest.raises(PermissionError):
                    file.mmap(access=access)
            with file.mmap(access=mm.ACCESS_COPY) as mapped:
                mapped[0] = 1

    def test_says_what_it_is(self, cache, store):
        with cache.open(store, "r+b") as file:
            for access, name in ((1, "READ"), (2, "WRITE"), (3, "COPY"), (0, "WRITE")):
                with file.mmap(access=access) as mapped:
                    assert f"access=ACCESS_{name}" in repr(mapped)


class TestShared:
    def test_stores_are_seen_by_reads_at_once_and_writes_by_the_map(self, cache, store):
        with cache.open(store, "r+b") as file, cache.open(store) as reader, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            for index in range(0, SIZE, 1000):
                mapped[index] = 0xEE
                assert reader.pread(1, index) == b"\xee"
                file.pwrite(b"\xdd", index)
                assert mapped[index] == 0xDD
        assert set(store.data[:SIZE:1000]) == {0xDD}

    def test_only_what_was_stored_to_becomes_dirty(self, cache, store):
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            assert mapped[:] == DATA
            assert dirty_pages(file) == 0
            mapped[3 * PAGE] = 1
            with file.mapping.get_folio(3) as folio:
                assert dirty_pages(file) == folio.nr_pages
            mapped.flush()
            assert (dirty_pages(file), store.names()) == (0, ["writev", "sync"])

    def test_a_page_is_dirty_before_its_bytes_change(self, cache, store):
        """A store after write-back has cleaned the page makes it dirty again, though it is still mapped."""
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            for value in range(1, 20):
                mapped[100] = value
                assert flags_of(file) == "dirty,DIRTY"
                file.flush()
                assert (flags_of(file), store.data[100]) == ("", value)

    def test_stores_behind_the_end_in_the_last_page_are_lost(self, cache, store):
        memory = mm.MemoryMap()
        with cache.open(store, "r+b") as file:
            start = memory.mmap(file, NR_PAGES * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
            memory.write(start + SIZE - 2, b"abcdefgh")
            assert memory.read(start + SIZE - 2, 2) == b"ab"
            assert (file.pread(100, SIZE - 2), file.seek(0, 2)) == (b"ab", SIZE)
            file.truncate(SIZE + 50)
            assert file.pread(100, SIZE - 2) == b"ab" + bytes(50)
            memory.munmap(start, NR_PAGES * PAGE)
        assert store.data[SIZE - 2 :] == b"ab" + bytes(50)

    def test_it_outlives_its_file_and_is_still_written(self, cache, store):
        with cache.open(store, "r+b") as file:
            mapped = file.mmap(access=mm.ACCESS_WRITE)
        mapped[0] = 99
        assert store.nr_closed == 0
        mapped.flush()
        assert store.data[0] == 99
        mapped.close()
        wait_until(lambda: store.nr_closed == 1, "the store to be closed")

    def test_what_a_closed_map_left_dirty_is_written_in_the_background(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0)
        with cache.open(store, "r+b") as file:
            mapped = file.mmap(access=mm.ACCESS_WRITE)
        store.on_write = gate = Gate()
        mapped[0] = 99
        mapped.close()
        del mapped
        gate.go_on.set()
        wait_until(lambda: store.data[0] == 99 and store.nr_closed == 1, "the page to be written and the store closed")

    def test_a_store_waits_where_bytes_must_not_change_under_the_store(self, cache, store):
        store.stable_writes = True
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            mapped[0] = 1
            store.on_write = gate = Gate()
            writer = Crew(file.fsync)
            gate.wait_entered()
            crew = Crew(lambda: mapped.__setitem__(0, 2))
            crew.threads[0].join(0.05)
            assert crew.threads[0].is_alive()
            assert mapped[0] == 1
            assert cache.stats().pgfault < 50, "it faults again and again instead of waiting"
            gate.go_on.set()
            writer.join_well()
            crew.join_well()
            assert (store.data[0], mapped[0]) == (1, 2)

    def test_a_store_does_not_wait_elsewhere(self, cache, store):
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            mapped[0] = 1
            store.on_write = gate = Gate()
            writer = Crew(file.fsync)
            gate.wait_entered()
            mapped[0] = 2
            gate.go_on.set()
            writer.join_well()
            assert flags_of(file) == "dirty,DIRTY"
        assert store.data[0] == 2

    def test_at_the_limit_a_store_writes_back_first(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=2 * PAGE, dirty_background=PAGE)
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            for page in range(NR_PAGES):
                mapped[page * PAGE] = 1
                assert cache.segment.nr_dirty_charged <= max(2, 1 << file.mapping.get_folio(page).order)
            mapped[: 5 * PAGE] = b"y" * (5 * PAGE)
        assert store.data[: 5 * PAGE] == b"y" * (5 * PAGE)

    def test_at_the_limit_a_store_that_cannot_be_had_is_a_bus_error(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=PAGE, dirty_background=PAGE)
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            file.fadvise(pagecache.FADV_RANDOM)
            store.on_write = fault = Fault(EIO)
            mapped[0] = 1
            with pytest.raises(mm.BusError):
                mapped[5 * PAGE] = 1
            fault.mend()
            mapped[5 * PAGE] = 1
            with pytest.raises(OSError, match="background"):
                file.fsync()

    def test_eight_threads_store_to_their_own_bytes_of_the_same_pages(self, make_cache, store, seed):
        cache = make_cache(64 * PAGE, dirty_limit=4 * PAGE, dirty_background=2 * PAGE)
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:

            def work(number):
                rng, mine = random.Random(seed + number), {}
                for _ in range(150):
                    position = rng.randrange(SIZE // 8) * 8 + number
                    if position < SIZE:
                        mapped[position] = mine[position] = rng.randrange(256)
                return mine

            written = Crew(*[lambda number=number: work(number) for number in range(8)]).join_well()
            expected = bytearray(DATA)
            for mine in written:
                for position, value in mine.items():
                    expected[position] = value
            assert mapped[:] == expected
        assert store.data == expected

    def test_resize_keeps_what_was_stored_and_is_seen_by_all(self, cache, store):
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            mapped[0] = 42
            mapped.resize(3 * SIZE)
            mapped[-1] = 43
            assert (file.seek(0, 2), file.pread(1, 0), file.pread(1, 3 * SIZE - 1)) == (3 * SIZE, b"*", b"+")
            mapped.resize(10)
            assert (mapped[:], file.seek(0, 2)) == (b"*" + DATA[1:10], 10)
        assert store.data == b"*" + DATA[1:10]

    def test_a_resize_that_fails_changes_nothing(self, cache, store):
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_WRITE) as mapped:
            store.on_truncate = Fault(EIO, 2)
            for size in (10, 2 * SIZE):
                with pytest.raises(OSError, match="broken"):
                    mapped.resize(size)
                assert (len(mapped), mapped[:]) == (SIZE, DATA)


class TestPrivate:
    def test_stores_stay_in_the_map(self, cache, store):
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_COPY) as mapped:
            mapped[100:200] = bytes(100)
            assert file.pread(SIZE, 0) == DATA
            file.pwrite(b"new", 0)
            assert mapped[:3] == DATA[:3], "the copied page is the map's own"
            file.pwrite(b"new", PAGE)
            assert mapped[PAGE : PAGE + 3] == b"new", "a page that was not copied shows the object"
            mapped.flush()
            assert (dirty_pages(file) > 0, store.calls) == (True, [])

    def test_two_maps_have_their_own_copies(self, cache, store):
        with cache.open(store) as file, file.mmap(access=mm.ACCESS_COPY) as one, file.mmap(access=mm.ACCESS_COPY) as two:
            one[0], two[0] = 1, 2
            assert (one[0], two[0], file.pread(1, 0)) == (1, 2, DATA[:1])

    def test_copies_survive_a_hole_but_not_a_truncation(self, cache, store):
        with cache.open(store, "r+b") as file, file.mmap(access=mm.ACCESS_COPY) as mapped:
            mapped[0], mapped[4 * PAGE] = 1, 2
            file.punch_hole(0, SIZE)
            assert (mapped[0], mapped[4 * PAGE], mapped[2 * PAGE]) == (1, 2, 0)
            file.truncate(4 * PAGE)
            assert mapped[0] == 1
            with pytest.raises(mm.BusError):
                mapped[4 * PAGE]

    def test_dontneed_gives_copies_up(self, cache, store):
        with cache.open(store) as file, file.mmap(access=mm.ACCESS_COPY) as mapped:
            mapped[0], mapped[PAGE] = 1, 2
            mapped.madvise(mmap.MADV_DONTNEED, 0, PAGE)
            assert (mapped[0], mapped[PAGE]) == (DATA[0], 2)

    def test_copies_count_against_the_budget_and_are_given_back(self, cache, store):
        with cache.open(store) as file:
            free = cache.stats().nr_free_pages
            mapped = file.mmap(access=mm.ACCESS_COPY)
            for page in range(5):
                mapped[page * PAGE] = 1
            stats = cache.stats()
            assert stats.nr_pinned == 5
            assert stats.nr_free_pages + stats.nr_file_pages + 5 == free
            mapped.close()
            assert cache.stats().nr_pinned == 0
        assert_nothing_is_held(cache)

    def test_unmapping_a_part_gives_its_copies_back(self, cache, store):
        memory = mm.MemoryMap()
        with cache.open(store) as file:
            start = memory.mmap(file, 4 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE)
            memory.write(start, b"x" * (4 * PAGE))
            assert cache.stats().nr_pinned == 4
            memory.munmap(start + PAGE, 2 * PAGE)
            assert cache.stats().nr_pinned == 2
            assert memory.read(start, 1) + memory.read(start + 3 * PAGE, 1) == b"xx"
            memory.munmap(start, 4 * PAGE)
            assert cache.stats().nr_pinned == 0

    def test_no_frame_for_a_copy_is_a_clear_error(self, make_cache, store, monkeypatch):
        monkeypatch.setattr(pagecache.requests.fill, "ALLOCATION_TIMEOUT_S", 0.1)
        cache = make_cache(4 * PAGE)
        with cache.open(store) as file, file.mmap(access=mm.ACCESS_COPY) as mapped:
            with pytest.raises(pagecache.CacheFullError, match="pinned"):
                for page in range(NR_PAGES):
                    mapped[page * PAGE] = 1
            copied = cache.stats().nr_pinned
            assert 1 <= copied < 4
            assert set(mapped[: copied * PAGE : PAGE]) == {1}
