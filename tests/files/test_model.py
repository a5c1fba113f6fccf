"""Everything that reads, removes and resizes, in any order, against a model that is nothing but bytes."""

import contextlib
import os
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import PAGE, PATIENCE_S, STRESS, assert_nothing_is_held, is_too_long_to_copy

import pagecache
from pagecache._core import CacheFullError
from pagecache.requests import fill

MAX_PAGES = 40
ADVICE = [
    pagecache.FADV_NORMAL, pagecache.FADV_RANDOM, pagecache.FADV_SEQUENTIAL, pagecache.FADV_WILLNEED,
    pagecache.FADV_DONTNEED, pagecache.FADV_NOREUSE,
]  # fmt: skip

positions = st.one_of(st.integers(0, MAX_PAGES * PAGE + 100), st.integers(0, MAX_PAGES).map(lambda page: page * PAGE))
lengths = st.one_of(st.sampled_from([0, 1, PAGE, 8192, 8193, 70_000]), st.integers(0, 12 * PAGE))
sizes = st.one_of(st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1]), positions)
picks = st.integers(0, 1000)


def random_bytes(size, salt):
    """Return bytes that differ from place to place and from salt to salt."""
    return b"".join((salt * 1_000_003 + word).to_bytes(8, "little") for word in range(size // 8 + 1))[:size]


class Object:
    """One object: what serves it, and the bytes it must have."""

    def __init__(self, source, data):
        self.source = source
        self.data = data

    def replace(self, data):
        """Put other bytes in place of the present ones, as another writer would."""
        self.data = data
        if isinstance(self.source, pagecache.MemoryStore):
            self.source.replace(data)
            return
        with open(self.source, "r+b") as file:
            file.truncate(0)
            file.write(data)


class Model(RuleBasedStateMachine):
    """A cache, a few objects with any number of files open on them, and views that are kept."""

    def __init__(self):
        super().__init__()
        self.cache = None
        self.files = []  # (File, Object)
        self.views = []  # (memoryview, bytes)
        self.directory = tempfile.TemporaryDirectory()
        self.nr_versions = 0

    def new_bytes(self, size):
        self.nr_versions += 1
        return random_bytes(size, self.nr_versions)

    @initialize(nr_frames=st.sampled_from([1, 2, 3, 64, 512]), nbytes=st.lists(sizes, min_size=3, max_size=3))
    def start(self, nr_frames, nbytes):
        self.cache = pagecache.PageCache(nr_frames * PAGE)
        contents = [self.new_bytes(size) for size in nbytes]
        path = os.path.join(self.directory.name, "file")
        with open(path, "wb") as file:
            file.write(contents[2])
        sources = [pagecache.MemoryStore(contents[0]), pagecache.MemoryStore(contents[1]), path]
        self.objects = [Object(source, data) for source, data in zip(sources, contents, strict=True)]

    # -- help ----------------------------------------------------------------------------------------------------------

    def file(self, pick):
        """Return an open file and its object."""
        if not self.files:
            self.open(pick, "r+b")
        return self.files[pick % len(self.files)]

    @contextlib.contextmanager
    def may_be_full(self):
        """Whatever needs a frame may fail while views hold some, and only then."""
        try:
            yield
        except CacheFullError as error:
            assert self.views, "nothing was held"
            assert error.nr_pinned > 0

    # -- rules ---------------------------------------------------------------------------------------------------------

    @rule(pick=picks, mode=st.sampled_from(["rb", "r+b"]))
    def open(self, pick, mode):
        if len(self.files) < 6:
            thing = self.objects[pick % len(self.objects)]
            self.files.append((self.cache.open(thing.source, mode), thing))

    @precondition(lambda self: self.files)
    @rule(pick=picks)
    def close(self, pick):
        file, _ = self.files.pop(pick % len(self.files))
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.pread(1, 0)

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def pread(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        with self.may_be_full():
            assert file.pread(nbytes, pos) == thing.data[pos : pos + nbytes]

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def preadinto(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        buffer = bytearray(b"?" * nbytes)
        with self.may_be_full():
            done = file.preadinto(buffer, pos)
            assert buffer[:done] == thing.data[pos : pos + nbytes]
            assert buffer[done:] == b"?" * (nbytes - done)

    @rule(pick=picks, pos=positions, nbytes=lengths, times=st.integers(1, 5))
    def read_in_order(self, pick, pos, nbytes, times):
        file, thing = self.file(pick)
        file.seek(pos)
        for _ in range(times):
            with self.may_be_full():
                at = file.tell()
                assert file.read(nbytes) == thing.data[at : at + nbytes]
                assert file.tell() == at + len(thing.data[at : at + nbytes])

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def view_and_keep(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        if len(self.views) < 4:
            try:
                view = file.view(nbytes, pos)
            except CacheFullError:
                assert self.views or is_too_long_to_copy(file, nbytes, pos)
                return
            assert view == thing.data[pos : pos + nbytes]
            self.views.append((view, bytes(view)))

    @precondition(lambda self: self.views)
    @rule(pick=picks)
    def release(self, pick):
        view, expected = self.views.pop(pick % len(self.views))
        assert view == expected
        view.release()

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def iter_views(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        with self.may_be_full():
            parts = []
            for view in file.iter_views(nbytes, pos):
                parts.append(bytes(view))
                view.release()
            assert b"".join(parts) == thing.data[pos : pos + nbytes]

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def read_a_map(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        if thing.data:
            with self.may_be_full(), file.mmap() as area:
                try:
                    assert area[pos : pos + nbytes] == thing.data[pos : pos + nbytes]
                except pagecache.mm.BusError as error:
                    raise error.__cause__ or error from None

    @rule(pick=picks, size=sizes)
    def truncate(self, pick, size):
        file, thing = self.file(pick)
        if file.writable():
            file.truncate(size)
            thing.data = thing.data[:size].ljust(size, b"\0")
            assert self.size_of(thing) == size

    def size_of(self, thing):
        return os.path.getsize(thing.source) if isinstance(thing.source, str) else thing.source.size()

    @rule(pick=picks, size=sizes)
    def change_and_invalidate(self, pick, size):
        file, thing = self.file(pick)
        thing.replace(self.new_bytes(size))
        file.invalidate()

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def invalidate_range(self, pick, pos, nbytes):
        file, _ = self.file(pick)
        file.invalidate(pos, nbytes or 1)

    @rule(pick=picks, advice=st.sampled_from(ADVICE), pos=positions, nbytes=lengths)
    def fadvise(self, pick, advice, pos, nbytes):
        file, _ = self.file(pick)
        file.fadvise(advice, pos, nbytes)

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def prefetch(self, pick, pos, nbytes):
        file, _ = self.file(pick)
        with self.may_be_full():
            assert file.prefetch(pos, nbytes).wait(PATIENCE_S)

    @rule()
    def drop_caches(self):
        self.cache.drop_caches()

    @rule(nr_pages=st.integers(1, 100))
    def reclaim(self, nr_pages):
        self.cache.segment.reclaim(nr_pages)

    @rule(pick=picks)
    def residency(self, pick):
        file, thing = self.file(pick)
        self.settle()
        stat = file.cachestat()
        assert file.mincore().count(1) == stat.nr_cache <= -(-len(thing.data) // PAGE)
        assert stat.nr_dirty == stat.nr_writeback == 0
        assert stat.nr_recently_evicted <= stat.nr_evicted

    # -- what always holds -----------------------------------------------------------------------------------------------

    def settle(self):
        """Wait for the reads in the background."""
        for file, _ in self.files:
            assert file.inode.wait_idle(PATIENCE_S)

    @invariant()
    def all_is_well(self):
        if self.cache is None:
            return
        self.settle()
        self.cache.check()
        stats = self.cache.stats()
        assert stats.nr_file_pages + stats.nr_free_pages <= stats.nr_frames
        for view, expected in self.views:
            assert view == expected
        for file, thing in self.files:
            assert file.mapping.size == len(thing.data)

    def teardown(self):
        if self.cache is not None:
            for view, _ in self.views:
                view.release()
            self.views.clear()
            self.settle()
            for file, thing in self.files:
                assert file.pread(len(thing.data) + 1, 0) == thing.data
                assert file.inode.wait_idle(PATIENCE_S)
                file.close()
            assert_nothing_is_held(self.cache)
            self.cache.close()
        self.directory.cleanup()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Do not wait for views that will not be released."""
    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", 0.001)


@pytest.mark.usefixtures("short_patience")
class TestModel(Model.TestCase):
    """The model as a test."""

    settings = settings() if STRESS else settings(max_examples=150, stateful_step_count=40)
