"""Everything that writes, in any order, against a model that is nothing but bytes: what is read, and what is stored."""

import errno
import os
import random
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import PAGE, PATIENCE_S, STRESS, Crew, assert_nothing_is_held, assert_same
from test_model import ADVICE, lengths, picks, positions, random_bytes, sizes

import pagecache
from pagecache.requests import fill

PRIVATE_FRAMES_MIN = 16  # with fewer frames private copies, which are pinned, could be all there is
PRIVATE_PAGES_MAX = 4
MODES = ["r+b", "a+b", "r+b dsync", "r+b write-through", "w+b"]


class PlainStore(pagecache.MemoryStore):
    """The least that can be written: it knows no holes, takes little at a time, and wants bytes that stay as they are."""

    punch_hole = None
    parallel_requests = 1
    max_request = 3 * PAGE
    stable_writes = True

    def writev(self, offset, buffers):
        return super().writev(offset, [buffers[0][:5000]])


class Thing:
    """One object: what serves it, the bytes that it must have, and the name of its kind."""

    def __init__(self, kind, source, data):
        self.kind, self.source = kind, source
        self.data = bytearray(data)

    def stored(self):
        """Return the store's bytes."""
        if isinstance(self.source, str):
            with open(self.source, "rb") as file:
                return file.read()
        return self.source.tobytes()

    def put(self, pos, data):
        """Write into the model."""
        self.data.extend(bytes(max(0, pos - len(self.data))))
        self.data[pos : pos + len(data)] = data


class PrivateMap:
    """A private map and what it must show: the object's bytes, but for pages that were stored to."""

    def __init__(self, thing, mapped):
        self.thing, self.mapped = thing, mapped
        self.length = len(mapped)
        self.pages = {}

    def store(self, pos, data):
        """Store bytes that lie inside the map and the object."""
        self.mapped[pos : pos + len(data)] = data
        for page in range(pos // PAGE, (pos + len(data) - 1) // PAGE + 1):
            first = page * PAGE
            content = self.pages.setdefault(page, bytearray(self.thing.data[first : first + PAGE].ljust(PAGE, b"\0")))
            begin, end = max(pos, first), min(pos + len(data), first + PAGE)
            content[begin - first : end - first] = data[begin - pos : end - pos]

    def was_cut(self, size):
        """Forget private copies behind the end."""
        self.pages = {page: content for page, content in self.pages.items() if page * PAGE < size}

    def expected(self, begin, end):
        """Return what bytes [begin, end) must be."""
        out = bytearray(self.thing.data[begin:end])
        for page, content in self.pages.items():
            first, last = max(begin, page * PAGE), min(end, (page + 1) * PAGE)
            if first < last:
                out[first - begin : last - begin] = content[first - page * PAGE : last - page * PAGE]
        return out


class WriteModel(RuleBasedStateMachine):
    """A cache, four objects over stores of four kinds, files open on them, one private map of each at most."""

    def __init__(self):
        super().__init__()
        self.cache = None
        self.files = []  # (File, Thing)
        self.private = {}  # kind -> PrivateMap
        self.directory = tempfile.TemporaryDirectory()
        self.nr_versions = 0

    def new_bytes(self, size):
        self.nr_versions += 1
        return random_bytes(size, self.nr_versions)

    @initialize(nr_frames=st.sampled_from([1, 2, 3, 64, 512]), nbytes=st.lists(sizes, min_size=4, max_size=4))
    def start(self, nr_frames, nbytes):
        self.nr_frames = nr_frames
        self.cache = pagecache.PageCache(nr_frames * PAGE, dirty_limit="40%", dirty_background="10%")
        contents = [self.new_bytes(size) for size in nbytes]
        paths = [os.path.join(self.directory.name, name) for name in ("file", "direct")]
        for path, content in zip(paths, contents[2:], strict=True):
            with open(path, "wb") as file:
                file.write(content)
        sources = [pagecache.MemoryStore(contents[0]), PlainStore(contents[1]), *paths]
        kinds = ("memory", "plain", "file", "direct")
        self.things = [Thing(*parts) for parts in zip(kinds, sources, contents, strict=True)]
        self.other = self.cache.open(pagecache.MemoryStore(b"\xee" * (128 * PAGE)))

    # -- help ----------------------------------------------------------------------------------------------------------

    def file(self, pick):
        """Return an open file and its object."""
        if not self.files:
            self.open(pick, "r+b")
        return self.files[pick % len(self.files)]

    def was_resized(self, thing):
        """Check an object's size, and note what a truncation takes from its private map."""
        if thing.kind in self.private:
            self.private[thing.kind].was_cut(len(thing.data))
        for file, other in self.files:
            if other is thing:
                assert file.seek(0, 2) == len(thing.data)

    # -- files ---------------------------------------------------------------------------------------------------------

    @rule(pick=picks, mode=st.sampled_from(MODES))
    def open(self, pick, mode):
        if len(self.files) < 6:
            thing = self.things[pick % len(self.things)]
            mode, durability = [*mode.split(), "write-back"][:2]
            file = self.cache.open(thing.source, mode, direct=thing.kind == "direct", durability=durability)
            self.files.append((file, thing))
            if mode == "w+b":
                thing.data.clear()
                self.was_resized(thing)

    @precondition(lambda self: self.files)
    @rule(pick=picks)
    def close(self, pick):
        file, thing = self.files.pop(pick % len(self.files))
        file.close()
        assert thing.stored() == thing.data

    # -- reading -------------------------------------------------------------------------------------------------------

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def pread(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        assert file.pread(nbytes, pos) == thing.data[pos : pos + nbytes]

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def preadinto(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        buffer = bytearray(b"?" * nbytes)
        done = file.preadinto(buffer, pos)
        assert buffer == bytes(thing.data[pos : pos + nbytes]) + b"?" * (nbytes - done)

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def view(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        try:
            with file.view(min(nbytes, PAGE), pos) as view:
                data = bytes(view)
        except pagecache.CacheFullError:  # two folios hold parts of it, and a copy has no room
            data = file.pread(min(nbytes, PAGE), pos)
        assert data == thing.data[pos : pos + min(nbytes, PAGE)]

    @rule(pick=picks)
    def read_everything(self, pick):
        """By large reads, which bring large folios in."""
        file, thing = self.file(pick)
        file.seek(0)
        assert file.read() == thing.data

    # -- writing -------------------------------------------------------------------------------------------------------

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def pwrite(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        data = self.new_bytes(nbytes)
        assert file.pwrite(data, pos) == nbytes
        if data:
            thing.put(pos, data)
        self.was_resized(thing)

    @rule(pick=picks, pos=positions, parts=st.lists(lengths, min_size=1, max_size=4))
    def write(self, pick, pos, parts):
        file, thing = self.file(pick)
        file.seek(pos)
        for nbytes in parts:
            data = self.new_bytes(nbytes)
            at = len(thing.data) if file.mode == "a+b" else file.tell()
            assert file.write(data) == nbytes
            assert file.tell() == at + nbytes
            if data:
                thing.put(at, data)
        self.was_resized(thing)

    @rule(pick=picks, size=sizes)
    def truncate(self, pick, size):
        file, thing = self.file(pick)
        file.truncate(size)
        thing.data = thing.data[:size].ljust(size, b"\0")
        self.was_resized(thing)

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def punch_hole(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        file.punch_hole(pos, nbytes)
        end = min(pos + nbytes, len(thing.data))
        thing.data[pos:end] = bytes(max(0, end - pos))
        self.was_resized(thing)

    # -- maps ----------------------------------------------------------------------------------------------------------

    @rule(pick=picks, pos=positions, nbytes=lengths, stores=st.booleans())
    def shared_map(self, pick, pos, nbytes, stores):
        file, thing = self.file(pick)
        if not thing.data:
            return
        with file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
            end = min(pos + nbytes, len(thing.data))
            if stores and end > pos:
                data = self.new_bytes(end - pos)
                mapped[pos:end] = data
                thing.put(pos, data)
            assert mapped[:] == thing.data
            if nbytes % 3 == 0:
                mapped.flush()
                assert thing.stored()[: len(thing.data)] == thing.data

    @precondition(lambda self: self.cache and self.nr_frames >= PRIVATE_FRAMES_MIN)
    @rule(pick=picks, pos=positions, nbytes=st.integers(1, 2 * PAGE))
    def store_privately(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        private = self.private.get(thing.kind)
        if private is not None and len(private.pages) > PRIVATE_PAGES_MAX:
            self.private.pop(thing.kind).mapped.close()
            private = None
        if private is None and thing.data:
            private = self.private[thing.kind] = PrivateMap(thing, file.mmap(access=pagecache.ACCESS_COPY))
        if private is not None:
            end = min(pos + nbytes, private.length, len(thing.data))
            if end > pos:
                private.store(pos, self.new_bytes(end - pos))

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def read_privately(self, pick, pos, nbytes):
        for private in self.private.values():
            end = min(pos + nbytes, private.length, len(private.thing.data))
            if end > pos:
                assert private.mapped[pos:end] == private.expected(pos, end)

    # -- durability ----------------------------------------------------------------------------------------------------

    @rule(pick=picks, way=st.sampled_from(["fsync", "fdatasync", "flush"]))
    def sync(self, pick, way):
        file, thing = self.file(pick)
        getattr(file, way)()
        assert thing.stored() == thing.data

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def sync_range(self, pick, pos, nbytes):
        file, thing = self.file(pick)
        file.sync_range(pos, nbytes or 1)
        expected = thing.data[pos : pos + (nbytes or 1)]
        assert thing.stored()[pos : pos + len(expected)].ljust(len(expected), b"\0") == expected

    @rule()
    def sync_all(self):
        self.cache.sync()
        for thing in self.things:
            assert thing.stored() == thing.data

    # -- what takes pages away -----------------------------------------------------------------------------------------

    @rule(pick=picks, pos=positions, nbytes=lengths)
    def invalidate(self, pick, pos, nbytes):
        file, _ = self.file(pick)
        stat = file.cachestat()
        try:
            file.invalidate(*((pos, nbytes) if nbytes else (0, 0)))
        except OSError as error:
            assert error.errno == errno.EBUSY
            assert stat.nr_dirty + stat.nr_writeback > 0

    @rule(pick=picks, advice=st.sampled_from(ADVICE), pos=positions, nbytes=lengths)
    def fadvise(self, pick, advice, pos, nbytes):
        file, _ = self.file(pick)
        file.fadvise(advice, pos, nbytes)

    @rule()
    def drop_caches(self):
        self.cache.drop_caches()

    @rule(pos=st.integers(0, 100), nr_pages=st.integers(1, 28))
    def pressure(self, pos, nr_pages):
        assert self.other.pread(nr_pages * PAGE, pos * PAGE) == b"\xee" * (nr_pages * PAGE)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self):
        if self.cache is not None:
            for file, thing in self.files:
                assert file.inode.wait_idle(PATIENCE_S)
                assert file.mapping.size == len(thing.data)
            self.cache.check()
            assert self.cache.stats().nr_pinned == sum(len(private.pages) for private in self.private.values())

    def teardown(self):
        if self.cache is not None:
            for private in self.private.values():
                private.mapped.close()
            for file, thing in self.files:
                assert file.pread(len(thing.data) + 1, 0) == thing.data
                file.close()
                assert thing.stored() == thing.data
            self.other.close()
            assert_nothing_is_held(self.cache)
            self.cache.close()
        self.directory.cleanup()


class TestWriteModel(WriteModel.TestCase):
    """The model as a test."""

    settings = settings() if STRESS else settings(max_examples=80, stateful_step_count=40)


# -- threads -----------------------------------------------------------------------------------------------------------

REGION = 10 * PAGE + 100  # of one thread
NR_STEPS = 2000 if STRESS else 150


class Owner:
    """A thread that owns bytes [first, first + REGION) of an object: no other changes them, and it checks them."""

    def __init__(self, file, number, rng):
        self.file, self.number, self.rng = file, number, rng
        self.first = number * REGION
        self.data = bytearray(REGION)

    def piece(self):
        """Return a random range of the region: begin, end."""
        begin = self.rng.randrange(REGION)
        return begin, min(REGION, begin + self.rng.choice((1, 50, PAGE, 3 * PAGE + 5)))

    def run(self):
        steps = (self.write, self.write, self.store, self.store, self.read, self.read, self.read_map, self.punch, self.sync)
        for step in range(NR_STEPS):
            self.rng.choice(steps)(*self.piece(), step)
        self.read(0, REGION, 0)

    def new(self, begin, end, step):
        self.data[begin:end] = random_bytes(end - begin, step * 16 + self.number)
        return bytes(self.data[begin:end])

    def write(self, begin, end, step):
        self.file.pwrite(self.new(begin, end, step), self.first + begin)

    def store(self, begin, end, step):
        with self.file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
            mapped[self.first + begin : self.first + end] = self.new(begin, end, step)

    def read(self, begin, end, _step):
        assert_same(self.file.pread(end - begin, self.first + begin), self.data[begin:end], self.first + begin)

    def read_map(self, begin, end, _step):
        with self.file.mmap() as mapped:
            assert_same(mapped[self.first + begin : self.first + end], self.data[begin:end], self.first + begin)

    def punch(self, begin, end, _step):
        self.file.punch_hole(self.first + begin, end - begin)
        self.data[begin:end] = bytes(end - begin)

    def sync(self, begin, end, step):
        if step % 2:
            self.file.fsync()
        else:
            self.file.sync_range(self.first + begin, end - begin)


class OwnerOfTheEnd(Owner):
    """The thread that truncates and extends the object behind all regions, and drops what is cached."""

    def __init__(self, file, number, rng, cache):
        super().__init__(file, number, rng)
        self.cache = cache

    def run(self):
        for step in range(NR_STEPS):
            self.rng.choice((self.cut, self.extend, self.append, self.check, self.drop))(step)
        self.check(0)

    def cut(self, _step):
        del self.data[self.rng.randrange(len(self.data) + 1) :]
        self.file.truncate(self.first + len(self.data))

    def extend(self, _step):
        self.data.extend(bytes(self.rng.randrange(REGION)))
        if len(self.data) > 3 * REGION:
            del self.data[REGION:]
        self.file.truncate(self.first + len(self.data))

    def append(self, step):
        if len(self.data) < 3 * REGION:
            data = random_bytes(self.rng.randrange(1, REGION), step)
            gap = self.rng.randrange(2 * PAGE)
            self.file.pwrite(data, self.first + len(self.data) + gap)
            self.data += bytes(gap) + data

    def check(self, _step):
        assert_same(self.file.pread(len(self.data) + PAGE, self.first), self.data, self.first)
        assert self.file.mapping.size == self.first + len(self.data)

    def drop(self, step):
        if step % 2:
            self.cache.drop_caches()
        else:
            self.cache.segment.reclaim(8)


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["memory", "plain", "file", "direct"])
@pytest.mark.parametrize("nr_threads", [1, 4])
def test_threads_that_own_their_bytes(make_cache, tmp_path, frames, kind, nr_threads, seed):
    cache = make_cache(frames * PAGE)
    rng = random.Random(seed)
    size = nr_threads * REGION
    source = {"memory": pagecache.MemoryStore, "plain": PlainStore}.get(kind, lambda data: tmp_path / "data")(b"")
    with cache.open(source, "r+b" if kind in ("memory", "plain") else "w+b", direct=kind == "direct") as file:
        file.truncate(size + REGION)
        owners = [Owner(file, number, random.Random(rng.random())) for number in range(nr_threads)]
        owners.append(OwnerOfTheEnd(file, nr_threads, random.Random(rng.random()), cache))
        Crew(*(owner.run for owner in owners)).join_well()
        expected = b"".join(owner.data for owner in owners)
        assert_same(file.pread(2 * len(expected), 0), expected)
        file.fsync()
        assert_same(source.tobytes() if kind in ("memory", "plain") else source.read_bytes(), expected)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Do not wait for what will not come."""
    monkeypatch.setattr(fill, "PINNED_TIMEOUT_S", 0.05)
