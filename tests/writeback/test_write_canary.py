"""Frames that are reused for writes show nothing of what they held: neither to readers nor to the store below."""

import errno
import random
import threading

import pytest
from support import PAGE, WAYS, Store, assert_nothing_is_held, read

import pagecache
from pagecache.requests import fill

CANARY = 0xCA  # no other byte of these tests has this value
NR_PAGES = 40
NR_STEPS = 150


class Guarded(pagecache.MemoryStore):
    """Remembers whether a canary was ever written to it; reads may bring less than they say, or fail.

    way: "well", "short" (few bytes at a time), "fails" (every third read), "fails halfway", "ends early".
    """

    parallel_requests = 2
    max_request = 8 * PAGE

    def __init__(self, data, way="well"):
        super().__init__(data)
        self.way = way
        self.nr_reads = 0
        self.was_given_canary = False
        self._counts = threading.Lock()

    def readv(self, offset, buffers):
        with self._counts:
            self.nr_reads += 1
            is_poor = self.nr_reads % 3 == 0
        if self.way == "short":
            return super().readv(offset, [buffers[0][:700]])
        if self.way.startswith("fails") and is_poor:
            if self.way == "fails halfway":
                super().readv(offset, [buffers[0][:100]])
            raise OSError(errno.EIO, "no")
        if self.way == "ends early" and is_poor:
            return 0
        return super().readv(offset, buffers)

    def writev(self, offset, buffers):
        if any(CANARY in bytes(buffer) for buffer in buffers):
            self.was_given_canary = True
        return super().writev(offset, buffers)


@pytest.fixture
def haunt(make_cache, frames, monkeypatch):
    """A cache, and a function that fills all its frames with the canary and frees them again."""
    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", 0.05)
    cache = make_cache(frames * PAGE)
    canary = cache.open(Store(bytes([CANARY]) * (PAGE * max(frames, NR_PAGES)), key="canary"))

    def again():
        for offset in range(0, canary.mapping.size, 16 * PAGE):
            canary.pread(16 * PAGE, offset)
        cache.drop_caches()

    cache.haunt = again
    again()
    yield cache
    canary.close()


def assert_clean(data, where):
    """Check that bytes hold no canary."""
    at = bytes(data).find(CANARY)
    assert at < 0, f"a byte of another object at {at} of {len(data)} bytes {where}"


def assert_all_clean(file, store):
    """Check everything that can be seen of an object, in whatever way, and what its store was given."""
    for offset in range(0, NR_PAGES * PAGE, 5 * PAGE // 2):
        for way in WAYS:
            try:
                assert_clean(read(file, way, 5 * PAGE, offset), f"from {offset} by {way}")
            except OSError as error:
                assert error.errno in (errno.EIO, errno.ENOMEM)
    file.flush()
    assert not store.was_given_canary, "another object's bytes went to the store"
    assert_clean(store.tobytes(), "in the store")


@pytest.mark.parametrize("offset", [0, 1, 100, PAGE - 1, PAGE, 3 * PAGE + 50, 9 * PAGE])
@pytest.mark.parametrize("nbytes", [1, PAGE - 1, PAGE, PAGE + 1, 8 * PAGE + 9])
def test_new_object_written_in_part(haunt, offset, nbytes):
    store = Guarded(b"")
    with haunt.open(store, "r+b") as file:
        file.pwrite(b"\x01" * nbytes, offset)
        assert file.pread(NR_PAGES * PAGE, 0) == bytes(offset) + b"\x01" * nbytes
        haunt.haunt()
        file.truncate(NR_PAGES * PAGE)
        assert_all_clean(file, store)
        assert store.tobytes() == (bytes(offset) + b"\x01" * nbytes).ljust(NR_PAGES * PAGE, b"\0")


@pytest.mark.parametrize("way", ["short", "fails", "fails halfway", "ends early"])
def test_page_written_in_part_over_a_store_that_reads_badly(haunt, way):
    store = Guarded(b"\x02" * (NR_PAGES * PAGE - 77), way)
    with haunt.open(store, "r+b") as file:
        nr_written = 0
        for offset in range(50, NR_PAGES * PAGE, 3 * PAGE):
            try:
                nr_written += file.pwrite(b"\x03" * 100, offset) > 0
            except OSError as error:
                assert error.errno == errno.EIO
        assert nr_written > 0
        assert_all_clean(file, store)
    assert set(store.tobytes()) == {2, 3}


def test_end_of_the_last_page_in_the_map_and_in_the_frame(haunt):
    store = Guarded(b"\x02" * (2 * PAGE + 10))
    with haunt.open(store, "r+b") as file:
        with file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
            mapped[2 * PAGE : 2 * PAGE + 10] = b"\x04" * 10
            file.pwrite(b"\x05", 2 * PAGE + 20)
            folio = file.mapping.get_folio(2)
            assert set(folio.tobytes()[10:]) == {0, 5}
            folio.put()
            assert_clean(mapped[:], "in a map")
        assert_all_clean(file, store)
    assert store.tobytes() == b"\x02" * (2 * PAGE) + b"\x04" * 10 + bytes(10) + b"\x05"


@pytest.mark.parametrize("frames", [3, 64, 4096], indirect=True)  # in fewer a copy, the page below it and nothing else fit
def test_private_copy_of_the_last_page(haunt):
    store = Guarded(b"\x02" * (PAGE + 10))
    with haunt.open(store, "r+b") as file, file.mmap(access=pagecache.ACCESS_COPY) as mapped:
        mapped[PAGE] = 6
        haunt.haunt()
        assert mapped[:] == b"\x02" * PAGE + b"\x06" + b"\x02" * 9
        assert set(mapped._area.private_pages) == {1}
        shown = mapped._area.mm.read(mapped._area.start + PAGE, PAGE)
        assert shown == b"\x06" + b"\x02" * 9 + bytes(PAGE - 10)
        assert_all_clean(file, store)


class Soup:
    """Random changes of one object, each result looked at."""

    def __init__(self, cache, file, rng):
        self.cache, self.file, self.rng = cache, file, rng

    def step(self):
        rng, file = self.rng, self.file
        offset, nbytes = rng.randrange(NR_PAGES * PAGE), rng.choice((1, 100, PAGE, 3 * PAGE + 7, 16 * PAGE))
        if rng.random() < 0.4:
            offset = offset // PAGE * PAGE
        nbytes = min(nbytes, NR_PAGES * PAGE - offset)
        what = rng.choice(("write", "write", "append", "truncate", "punch", "map", "read", "flush", "haunt"))
        if what == "write":
            file.pwrite(bytes([rng.randrange(1, 100)]) * nbytes, offset)
        elif what == "append" and file.mapping.size + nbytes <= NR_PAGES * PAGE:
            file.pwrite(b"\x07" * nbytes, file.mapping.size)
        elif what == "truncate":
            file.truncate(offset)
        elif what == "punch":
            file.punch_hole(offset, nbytes)
        elif what == "map" and offset + nbytes <= file.mapping.size:
            with file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
                assert_clean(mapped[offset : offset + nbytes], "in a map")
                mapped[offset : offset + nbytes] = b"\x08" * nbytes
        elif what == "read":
            assert_clean(read(file, rng.choice(WAYS), nbytes, offset), "read")
        elif what == "flush":
            file.flush()
        elif what == "haunt":
            self.cache.haunt()


@pytest.mark.parametrize("way", ["well", "short", "fails halfway", "ends early"])
def test_random_changes(haunt, seed, way):
    store = Guarded(b"\x02" * (NR_PAGES * PAGE // 2 + 5), way)
    with haunt.open(store, "r+b") as file:
        soup = Soup(haunt, file, random.Random(seed))
        for _ in range(NR_STEPS):
            try:
                soup.step()
            except OSError as error:
                failed = error.__cause__ if isinstance(error, pagecache.mm.BusError) else error
                assert way != "well", "nothing failed"
                assert (failed or error).errno == errno.EIO
        assert_all_clean(file, store)
    assert_nothing_is_held(haunt)
