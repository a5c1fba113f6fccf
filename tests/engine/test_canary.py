"""A frame that is reused never shows what it held: bytes of one object do not come up in another's results."""

import errno

import pytest
from support import PAGE, WAYS, Crew, Store, assert_nothing_is_held, pages_of, read

import pagecache

CANARY = b"\xca\x17"
NR_PAGES = 40


class Poor(Store):
    """Has less to give than it says, or nothing; the rest of a buffer stays as it was found."""

    def __init__(self, data, way):
        super().__init__(data, key=f"poor ({way})")
        self.way = way
        self.is_poor = True

    def answer(self, offset, buffers):
        if not self.is_poor:
            return super().answer(offset, buffers)
        if self.way == "fails":
            raise OSError(errno.EIO, "no")
        if self.way == "fails halfway":
            buffers[0][:100] = b"x" * 100
            raise OSError(errno.EIO, "no more")
        if self.way == "ends early":
            return 0 if offset else super().answer(offset, [buffers[0][:1000]])
        if self.way == "lies":
            return sum(map(len, buffers)) + 1
        return super().answer(offset, [buffers[0][:17]])


@pytest.fixture
def haunted(make_cache, frames):
    """A cache all of whose frames have held the canary, and hold nothing now."""
    cache = make_cache(frames * PAGE)
    with cache.open(Store(CANARY * (PAGE // 2 * max(frames, NR_PAGES)), key="canary")) as file:
        for offset in range(0, file.mapping.size, 16 * PAGE):
            file.pread(16 * PAGE, offset)
        with file.view(2, 0) as view:
            assert view == CANARY
    assert cache.drop_caches() > 0
    return cache


def everything_readable(file):
    """Return all bytes that can be had of a file, in whatever way; failures are none."""
    seen = []
    for offset in range(0, NR_PAGES * PAGE, 3 * PAGE // 2):
        for way in WAYS:
            try:
                seen.append(read(file, way, 3 * PAGE, offset))
            except OSError as error:
                assert error.errno in (errno.EIO, errno.ESTALE)
    return b"".join(seen)


@pytest.mark.parametrize("way", ["fails", "fails halfway", "ends early", "lies"])
def test_store_that_brings_less_than_it_says_shows_nothing_of_the_frame(haunted, way):
    store = Poor(b"\x01" * (NR_PAGES * PAGE), way)
    with haunted.open(store) as file:
        assert CANARY not in everything_readable(file)
        store.is_poor = False
        assert file.pread(NR_PAGES * PAGE, 0) == store.data
    assert_nothing_is_held(haunted)


def test_store_that_answers_in_drops_is_complete(haunted):
    store = Poor(b"\x01" * (6 * PAGE + 50), "drops")
    with haunted.open(store) as file:
        assert file.readall() == store.data


@pytest.mark.parametrize("size", [1, 100, PAGE - 1, PAGE + 1, 5 * PAGE + 2000])
@pytest.mark.parametrize("kind", ["store", "file", "direct"])
def test_tail_of_the_last_page_is_zero(haunted, tmp_path, size, kind):
    """Looked at where no method reaches: in the frames themselves."""
    data = pages_of(size)
    (tmp_path / "data").write_bytes(data)
    source = Store(data) if kind == "store" else tmp_path / "data"
    with haunted.open(source, direct=kind == "direct") as file:
        assert file.pread(size + PAGE, 0) == data
        assert bytes(file.view(2 * PAGE, size // PAGE * PAGE)) == data[size // PAGE * PAGE :]
        file.pread(1, size - 1)
        folio = file.mapping.get_folio((size - 1) // PAGE)
        start = folio.index * PAGE
        assert folio.tobytes() == data[start:].ljust(folio.nr_pages * PAGE, b"\0")
        folio.put()


def test_object_that_is_extended_shows_zeros(haunted):
    data = b"\x01" * (3 * PAGE + 100)
    with haunted.open(pagecache.MemoryStore(data), "r+b") as file:
        assert file.pread(len(data), 0) == data
        for size in (3 * PAGE + 200, 10 * PAGE, NR_PAGES * PAGE):
            file.truncate(size)
            assert file.pread(NR_PAGES * PAGE, 0) == data.ljust(size, b"\0")


def test_object_that_is_truncated_and_extended_shows_zeros(haunted):
    data = b"\x01" * (NR_PAGES * PAGE)
    with haunted.open(pagecache.MemoryStore(data), "r+b") as file:
        for size in (NR_PAGES * PAGE - 1, 20 * PAGE + 5, 20 * PAGE, PAGE - 1, 1, 0):
            file.pread(NR_PAGES * PAGE, 0)
            file.truncate(size)
            file.truncate(NR_PAGES * PAGE)
            assert file.pread(NR_PAGES * PAGE, 0) == data[:size].ljust(NR_PAGES * PAGE, b"\0")


def test_file_that_shrank_shows_nothing_of_the_frame(haunted, data_file):
    path, _ = data_file(NR_PAGES * PAGE)
    with haunted.open(path) as file:
        path.write_bytes(b"\x01" * 5000)
        assert CANARY not in everything_readable(file)


def test_result_of_a_failed_read_is_not_touched(haunted):
    buffer = bytearray(b"mine" * PAGE)
    with haunted.open(Poor(b"\x01" * (NR_PAGES * PAGE), "fails")) as file, pytest.raises(OSError):
        file.preadinto(buffer, 0)
    assert buffer == b"mine" * PAGE


@pytest.mark.stress
def test_threads_that_evict_each_other_never_see_each_other(make_cache, frames):
    cache = make_cache(frames * PAGE)
    colours = [bytes([number]) * (NR_PAGES * PAGE) for number in range(1, 6)]

    def reader(colour):
        store = Store(colour, key=str(colour[0]))
        store.parallel_requests = 2
        with cache.open(store) as file:
            for start in range(0, 60 * PAGE, 7 * PAGE // 2):
                offset = start % (NR_PAGES * PAGE)
                assert set(file.pread(PAGE * 3, offset)) == {colour[0]}
                with file.view(100, offset) as view:
                    assert set(view) == {colour[0]}

    if frames >= 8:
        Crew(*(lambda colour=colour: reader(colour) for colour in colours)).join_well()
    else:
        for colour in colours:
            reader(colour)
    assert_nothing_is_held(cache)
