"""Buffered writes: bytes, sizes, positions and modes as of io.FileIO; what happens at the edges and between threads."""

import array
import errno
import io
import itertools
import random

import pytest
from support import HAS_GIL, PAGE, Crew, assert_nothing_is_held, pages_of, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, fill_dirty, folio_of

import pagecache
from pagecache.stores import FileStore, MemoryStore

DATA = pages_of(8 * PAGE + 123)
EIO = OSError(errno.EIO, "broken")
MODES = ("r+b", "w+b", "x+b", "ab", "a+b")

SCRIPTS = {
    "begin": lambda f: [f.tell()],
    "write": lambda f: [f.write(b"hello"), f.tell()],
    "write nothing": lambda f: [f.write(b""), f.tell()],
    "write and read": lambda f: [f.write(b"hello"), f.read(10), f.tell()],
    "write pages": lambda f: [f.write(bytes(range(256)) * 100), f.tell(), f.seek(5), f.tell()],
    "seek behind the end and write": lambda f: [f.seek(20000, 2), f.write(b"far"), f.tell()],
    "seek and write": lambda f: [f.seek(4090), f.write(b"over two pages"), f.tell(), f.seek(0), f.read(3)],
    "writelines": lambda f: [f.writelines([b"one", bytearray(b"two"), memoryview(b"three")]), f.tell()],
    "writelines of str": lambda f: [f.writelines(["one"])],
    "write str": lambda f: [f.write("hello")],
    "write int": lambda f: [f.write(5)],
    "write None": lambda f: [f.write(None)],
    "write array": lambda f: [f.write(array.array("i", [1, 2, 3])), f.tell()],
    "write cast": lambda f: [f.write(memoryview(bytes(24)).cast("d")), f.tell()],
    "truncate": lambda f: [f.seek(100), f.truncate(), f.tell(), f.seek(0, 2)],
    "truncate to": lambda f: [f.truncate(5000), f.tell(), f.write(b"x"), f.seek(0, 2)],
    "truncate up": lambda f: [f.truncate(100000), f.seek(0, 2), f.write(b"x"), f.tell()],
    "truncate str": lambda f: [f.truncate("1")],
    "write twice": lambda f: [f.write(b"one"), f.seek(0), f.write(b"two"), f.tell()],
    "can": lambda f: [f.readable(), f.writable(), f.seekable(), f.closed],
    "read": lambda f: [f.read(5), f.tell()],
    "readall": lambda f: [f.seek(3), f.read(), f.tell()],
    "readinto": lambda f: [f.seek(0), f.readinto(bytearray(7)), f.tell()],
    "flush": lambda f: [f.write(b"x"), f.flush(), f.tell()],
    "close and write": lambda f: [f.close(), f.write(b"x")],
    "close and truncate": lambda f: [f.close(), f.truncate(0)],
    "close and flush": lambda f: [f.close(), f.flush()],
    "close twice": lambda f: [f.close(), f.close(), f.closed],
    "use in with": lambda f: [f.__enter__() is f, f.write(b"x"), f.__exit__(None, None, None), f.closed],
}


@pytest.fixture
def cache(make_cache):
    return make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%")


@pytest.fixture
def store():
    return WritableStore(DATA)


def outcome(call, *arguments):
    """Return what a call returns, or what it raises: the type, and an OSError's errno."""
    try:
        return call(*arguments)
    except (OSError, ValueError, TypeError) as error:
        kind = next(kind for kind in (io.UnsupportedOperation, OSError, ValueError, TypeError) if isinstance(error, kind))
        return kind, None if kind is io.UnsupportedOperation else getattr(error, "errno", None)


class TestAgainstFileIO:
    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_does_the_same(self, cache, tmp_path, mode, script, exists):
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        if exists:
            ours.write_bytes(DATA)
            theirs.write_bytes(DATA)
        opened = outcome(io.FileIO, theirs, mode.replace("b", ""))
        cached = outcome(cache.open, ours, mode)
        if not isinstance(opened, io.FileIO):
            assert cached == opened
            return
        with opened, cached:
            assert outcome(SCRIPTS[script], cached) == outcome(SCRIPTS[script], opened)
            assert cached.closed == opened.closed
        assert ours.read_bytes() == theirs.read_bytes()

    def test_buffered_and_text_layers_work_above(self, cache, tmp_path):
        path = tmp_path / "data"
        with io.BufferedRandom(cache.open(path, "w+b")) as file:
            for number in range(5000):
                file.write(b"%d\n" % number)
            file.seek(100)
            file.write(b"#")
            file.seek(0)
            data = file.read()
        assert data == path.read_bytes()
        assert data[100:101] == b"#"
        with io.TextIOWrapper(io.BufferedWriter(cache.open(path, "ab"))) as text:
            text.write("the end\n")
        assert path.read_bytes() == data + b"the end\n"

    def test_non_contiguous_buffers_are_refused(self, cache, store):
        with cache.open(store, "r+b") as file:
            for call in (file.write, lambda data: file.pwrite(data, 0)):
                with pytest.raises(TypeError, match="contiguous"):
                    call(memoryview(b"abcdef")[::2])
            assert dirty_pages(file) == 0


class TestPositional:
    def test_leaves_the_position(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.seek(77)
            assert file.pwrite(b"abc", 5) == 3
            assert (file.tell(), file.pread(5, 4)) == (77, DATA[4:5] + b"abc" + DATA[8:9])

    @pytest.mark.parametrize("offset", [-1, 1 << 63, 1.5, "1", None])
    def test_refuses_odd_offsets(self, cache, store, offset):
        with cache.open(store, "r+b") as file:
            with pytest.raises((ValueError, TypeError, OverflowError)):
                file.pwrite(b"x", offset)
            with pytest.raises(ValueError, match="negative"):
                file.truncate(-1)
            assert (file.pread(len(DATA) + 1, 0), dirty_pages(file)) == (DATA, 0)

    @pytest.mark.parametrize(("offset", "nbytes"), [((1 << 63) - 1, 1), ((1 << 63) - 5, 6)])
    def test_beyond_the_largest_offset_is_efbig(self, cache, store, offset, nbytes):
        with cache.open(store, "r+b") as file:
            with pytest.raises(OSError, match="largest offset") as caught:
                file.pwrite(bytes(nbytes), offset)
            assert caught.value.errno == errno.EFBIG
            assert file.seek(0, 2) == len(DATA)

    def test_of_a_file_for_reading_is_refused(self, cache, store):
        with cache.open(store) as file:
            for call in (lambda: file.pwrite(b"x", 0), lambda: file.write(b"x"), lambda: file.writelines([b"x"])):
                with pytest.raises(io.UnsupportedOperation):
                    call()
            for call in (lambda: file.truncate(0), lambda: file.punch_hole(0, 1)):
                with pytest.raises(io.UnsupportedOperation):
                    call()
            file.fsync()
            file.flush()

    @pytest.mark.parametrize("mode", MODES)
    def test_stores_that_cannot_be_written_are_refused_at_once(self, cache, tmp_path, mode):
        (tmp_path / "data").write_bytes(DATA)
        reading = FileStore(tmp_path / "data")
        plain = pagecache.MemoryStore(DATA)
        plain.writable = False
        for store in (reading, plain):
            with pytest.raises(OSError, match="cannot be written") as caught:
                cache.open(store, mode)
            assert caught.value.errno == errno.EROFS


class TestPagesWrittenInPart:
    @pytest.mark.parametrize("large", [False, True])
    def test_at_random_against_bytes(self, make_cache, rng, large):
        """All kinds of ranges: inside pages, over pages, behind the end, over the end; partly cached."""
        cache, store, expected = make_cache(24 * PAGE), WritableStore(DATA), bytearray(DATA)
        with cache.open(store, "r+b") as file:
            for _ in range(600):
                offset = rng.choice([rng.randrange(len(expected) + 3 * PAGE), rng.randrange(20) * PAGE])
                data = rng.randbytes(rng.choice([1, 10, PAGE - 1, PAGE, 3 * PAGE + 5, 16 * PAGE if large else 2]))
                if rng.random() < 0.8:
                    file.pwrite(data, offset)
                    expected[len(expected) :] = bytes(max(0, offset - len(expected)))
                    expected[offset : offset + len(data)] = data
                elif rng.random() < 0.3:
                    size = rng.randrange(20 * PAGE)
                    file.truncate(size)
                    expected[:] = expected[:size] + bytes(max(0, size - len(expected)))
                elif rng.random() < 0.5:
                    cache.drop_caches()
                else:
                    file.flush()
                at = rng.randrange(len(expected) + 1)
                assert file.pread(5000, at) == expected[at : at + 5000]
            assert file.pread(len(expected) + 1, 0) == expected
            file.fsync()
        assert store.data == expected
        assert_nothing_is_held(cache)

    def test_reads_a_page_first_only_where_it_must(self, cache, store):
        cases = [  # (data, offset, pages read)
            (bytes(PAGE), 0, 0), (bytes(2 * PAGE), 2 * PAGE, 0), (b"x", 4 * PAGE, 1), (b"x", 5 * PAGE + 1, 1),
            (bytes(124), 8 * PAGE, 0), (bytes(PAGE), 20 * PAGE + 10, 0),
        ]  # fmt: skip
        with cache.open(store, "r+b") as file:
            for data, offset, nr_reads in cases:
                del store.requests[:]
                file.pwrite(data, offset)
                assert len(store.requests) == nr_reads, (len(data), offset)

    def test_a_page_that_cannot_be_read_is_an_error_and_changes_nothing(self, cache, store):
        answer = store.answer
        store.answer = fault = Fault(EIO)
        with cache.open(store, "r+b") as file:
            for call in (lambda: file.pwrite(b"new", 10), lambda: file.write(b"new")):
                with pytest.raises(OSError, match="cannot read written at offset 0"):
                    call()
            assert (file.tell(), dirty_pages(file), fault.nr_raised) == (0, 0, 2)
            assert file.pwrite(bytes(PAGE), PAGE) == PAGE, "a whole page needs no read"
            with pytest.raises(OSError, match="cannot read"):
                file.pwrite(b"over the end", len(DATA) - 1)
            assert file.seek(0, 2) == len(DATA)
            store.answer = answer
            assert file.pread(len(DATA) + 1, 0) == DATA[:PAGE] + bytes(PAGE) + DATA[2 * PAGE :]
            assert dirty_pages(file) == 1
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 100])
    def test_a_hole_reads_as_zeros(self, cache, size):
        store = WritableStore(DATA[:size])
        with cache.open(store, "r+b") as file:
            file.pwrite(b"far", 5 * PAGE + 10)
            expected = DATA[:size] + bytes(5 * PAGE + 10 - size) + b"far"
            assert file.pread(9 * PAGE, 0) == expected
            file.flush()
            assert file.pread(9 * PAGE, 0) == store.data == expected
            cache.drop_caches()
            assert file.pread(9 * PAGE, 0) == expected

    @pytest.mark.parametrize(("offset", "nbytes"), [(0, 1), (5 * PAGE + 3, 9), (3 * PAGE, 4 * PAGE), (15 * PAGE, 2 * PAGE)])
    def test_a_large_folio_is_written_in_part(self, cache, offset, nbytes):
        store = WritableStore(b"")
        data = bytearray(pages_of(16 * PAGE))
        with cache.open(store, "r+b") as file:
            file.pwrite(data, 0)
            with folio_of(file) as folio:
                assert folio.nr_pages > 1
            file.fsync()
            file.pwrite(b"!" * nbytes, offset)
            data[offset : offset + nbytes] = b"!" * nbytes
            assert file.pread(20 * PAGE, 0) == data
        assert store.data == data


class TestSources:
    @pytest.mark.parametrize(("source", "target"), [(0, 100), (100, 0), (0, 0), (PAGE, 3), (5 * PAGE, PAGE), (7, 7 * PAGE)])
    @pytest.mark.parametrize("nbytes", [50, PAGE, 3 * PAGE + 11])
    @pytest.mark.parametrize("large", [False, True])
    def test_views_of_the_same_file_are_copied_as_they_were(self, cache, source, target, nbytes, large):
        data = bytearray(pages_of(16 * PAGE))
        store = WritableStore(b"" if large else data)
        with cache.open(store, "r+b") as file:
            if large:
                file.pwrite(data, 0)
            else:
                for page in range(16):
                    file.pread(1, page * PAGE)
            with file.view(nbytes, source) as view:
                expected = bytes(view)
                file.pwrite(view, target)
            data[target : target + nbytes] = expected
            assert file.pread(16 * PAGE, 0) == data

    def test_a_source_cannot_be_resized_meanwhile(self, cache, store):
        source = bytearray(b"x" * (3 * PAGE))
        answer = store.answer

        def resize_and_answer(offset, buffers):
            with pytest.raises(BufferError):
                source.clear()
            return answer(offset, buffers)

        store.answer = resize_and_answer
        with cache.open(store, "r+b") as file:
            file.pwrite(source, 10)
            assert file.pread(3 * PAGE, 10) == source


class TestThreads:
    def test_appends_are_whole_and_none_is_lost(self, make_cache, tmp_path):
        cache = make_cache(32 * PAGE, dirty_limit=8 * PAGE, dirty_background=4 * PAGE)
        path = tmp_path / "log"
        files = [cache.open(path, "ab") for _ in range(4)]
        sizes = [7, 100, PAGE, 2 * PAGE + 1]

        def append(number):
            for count in range(60):
                body = bytes([number]) * sizes[(number + count) % 4]
                files[number % 4].write(len(body).to_bytes(4, "little") + bytes([number, count]) + body)

        Crew(*[lambda number=number: append(number) for number in range(8)]).join_well()
        for file in files:
            file.close()
        data, at, seen = path.read_bytes(), 0, set()
        while at < len(data):
            nbytes, number, count = int.from_bytes(data[at : at + 4], "little"), data[at + 4], data[at + 5]
            assert data[at + 6 : at + 6 + nbytes] == bytes([number]) * nbytes
            seen.add((number, count))
            at += 6 + nbytes
        assert seen == set(itertools.product(range(8), range(60)))

    def test_one_position_serves_all_and_no_write_lands_on_another(self, cache, tmp_path):
        with cache.open(tmp_path / "data", "w+b") as file:
            writers = [lambda number=number: [file.write(bytes([number]) * 10) for _ in range(200)] for number in range(8)]
            Crew(*writers).join_well()
            data = file.pread(100000, 0)
        records = [data[at : at + 10] for at in range(0, len(data), 10)]
        assert sorted(records) == sorted(bytes([number]) * 10 for number in range(8) for _ in range(200))

    def test_writes_over_many_pages_are_whole_between_writers(self, make_cache, store):
        cache = make_cache(32 * PAGE, dirty_limit=8 * PAGE, dirty_background=4 * PAGE)
        with cache.open(store, "r+b") as file:

            def write(number):
                for _ in range(60):
                    file.pwrite(bytes([number]) * (5 * PAGE), 100)

            Crew(*[lambda number=number: write(number) for number in range(1, 5)]).join_well()
            assert len(set(file.pread(5 * PAGE, 100))) == 1
        assert len(set(store.data[100 : 100 + 5 * PAGE])) == 1

    def test_readers_see_each_page_old_or_new(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(bytes(4 * PAGE), 0)
            stop, begun, ended = [], [0], [0]

            def look():
                while not stop:
                    for page in range(4):
                        oldest = ended[-1]
                        values = set(file.pread(PAGE, page * PAGE))
                        assert oldest <= min(values) <= max(values) <= begun[-1]
                        assert len(values) == 1 or not HAS_GIL, "a torn page"  # else some of each, as read(2)

            crew = Crew(look, look)
            for value in range(1, 250):
                begun.append(value)
                file.pwrite(bytes([value]) * (4 * PAGE), 0)
                ended.append(value)
            stop.append(True)
            crew.join_well()


class TestOpening:
    def test_emptying_is_seen_by_other_files(self, cache, tmp_path):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        with cache.open(path) as reader, cache.open(path, "r+b") as writer:
            assert reader.pread(10, 0) == DATA[:10]
            writer.pwrite(b"dirty", 0)
            with cache.open(path, "w+b") as file:
                assert (reader.seek(0, 2), reader.pread(10, 0), writer.pread(10, 0)) == (0, b"", b"")
                file.write(b"new")
                assert reader.pread(10, 0) == b"new"
        assert path.read_bytes() == b"new"

    def test_new_files_must_be_new(self, cache, tmp_path):
        with cache.open(tmp_path / "data", "x+b") as file:
            file.write(b"one")
        with pytest.raises(FileExistsError):
            cache.open(tmp_path / "data", "x+b")
        with pytest.raises(FileNotFoundError):
            cache.open(tmp_path / "none", "r+b")
        assert (tmp_path / "data").read_bytes() == b"one"

    def test_the_same_version_is_found_after_own_writes(self, cache, tmp_path):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        for number in range(20):
            with cache.open(path, "r+b") as file:
                assert file.pread(len(DATA), 0)[number:] == DATA[number:]
                file.pwrite(b"x", number)
                if number % 2:
                    file.fsync()
        reads = cache.stats().store_reads
        with cache.open(path) as file:
            assert file.pread(len(DATA), 0) == b"x" * 20 + DATA[20:]
        assert cache.stats().store_reads == reads, "what was cached is not read again"

    @pytest.mark.parametrize("kind", ["file", "memory", "store", "parallel"])
    def test_own_writes_never_look_like_those_of_others(self, make_cache, tmp_path, kind, seed):
        cache = make_cache(6 * PAGE, dirty_limit=3 * PAGE, dirty_background=PAGE)
        (tmp_path / "data").write_bytes(DATA)
        store = {"file": str(tmp_path / "data"), "memory": MemoryStore(DATA)}.get(kind) or WritableStore(DATA)
        if kind == "parallel":
            store.parallel_requests = 4
        with cache.open(store, "r+b") as file, cache.open(store) as reader:

            def write(number):
                rng = random.Random(seed + number)
                for _ in range(100):
                    file.pwrite(rng.randbytes(100), rng.randrange(len(DATA)))
                    if rng.random() < 0.2:
                        file.flush()

            def look(number):
                rng = random.Random(seed + number)
                for _ in range(300):
                    reader.pread(PAGE, rng.randrange(len(DATA)))

            crew = Crew(lambda: write(1), lambda: write(2), lambda: look(3), lambda: look(4))
            crew.join_well()
            file.fsync()
            cache.drop_caches()
            assert len(reader.pread(len(DATA), 0)) == len(DATA)
            with cache.open(store) as again:
                assert again.inode is file.inode

    @pytest.mark.parametrize("dirty", [False, True])
    @pytest.mark.parametrize("kind", ["file", "memory", "store"])
    def test_changes_by_others_are_still_found(self, cache, tmp_path, kind, dirty):
        """Own writes that follow do not hide them."""
        path = tmp_path / "data"
        path.write_bytes(DATA)
        store = {"file": str(path), "memory": MemoryStore(DATA)}.get(kind) or WritableStore(DATA)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"mine", 0)
            file.fsync()
            if dirty:
                file.pwrite(b"mine too", 0)
            if kind == "file":
                path.write_bytes(bytes(len(DATA) + 1))
            elif kind == "memory":
                store.replace(bytes(len(DATA) + 1))
            else:
                store.data[:] = bytes(len(DATA) + 1)
                store.nr_changes += 1
            if dirty:
                with pytest.raises(OSError, match="others have changed it") as caught:
                    file.fsync()
                assert caught.value.errno == errno.ESTALE
            else:
                file.fsync()
            with pytest.raises(OSError, match="changed while it was cached") as caught:
                file.pread(len(DATA), 5)
            assert caught.value.errno == errno.ESTALE
            if dirty:
                file.invalidate(discard=True)


class TestDirtyLimit:
    @pytest.mark.parametrize("frames", [1, 2, 3, 8])
    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_tiny_caches_write_everything(self, make_cache, store, frames, limit):
        cache = make_cache(frames * PAGE, dirty_limit=limit * PAGE, dirty_background=0)
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 6)
            file.pwrite(b"end", 20 * PAGE + 7)
            file.pwrite(DATA[: 5 * PAGE], 3)
            expected = file.pread(30 * PAGE, 0)
        assert store.data == expected
        assert expected[3 : 5 * PAGE + 3] == DATA[: 5 * PAGE]
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("way", ["pwrite", "map"])
    @pytest.mark.parametrize("pinned", [False, True])
    def test_a_folio_larger_than_the_limit(self, make_cache, store, way, pinned):
        """It is split, or, if it is held otherwise, alone in being dirty."""
        store.data = bytearray(pages_of(64 * PAGE))
        cache = make_cache(128 * PAGE, dirty_limit=2 * PAGE, dirty_background=PAGE)
        with cache.open(store, "r+b") as file:
            for _ in range(2):
                while file.read(PAGE):
                    pass
            large = next(page for page in range(64) if folio_of(file, page).nr_pages > 4)
            view = file.view(10, large * PAGE) if pinned else None
            other = cache.open(WritableStore(DATA, key="other"), "r+b")
            other.pwrite(b"x", 0)
            with file.mmap(access=pagecache.mm.ACCESS_WRITE) as mapped:
                for page in (large + 1, large, large + 3):
                    if way == "map":
                        mapped[page * PAGE : page * PAGE + 3] = b"new"
                    else:
                        file.pwrite(b"new", page * PAGE)
                    assert file.pread(3, page * PAGE) == b"new"
            if view is not None:
                view.release()
            other.close()
        expected = bytearray(pages_of(64 * PAGE))
        for page in (large, large + 1, large + 3):
            expected[page * PAGE : page * PAGE + 3] = b"new"
        assert store.data == expected


def test_a_write_that_waits_for_a_page_being_read_gets_it(cache, store):
    gate, answer = Gate(), store.answer
    store.answer = lambda offset, buffers: (gate(), answer(offset, buffers))[1]
    with cache.open(store, "r+b") as file:
        reader = Crew(lambda: file.pread(10, 0))
        gate.wait_entered()
        writer = Crew(lambda: file.pwrite(b"new", 3))
        wait_until(lambda: file.mapping.get_folio(0).waiters, "the writer to wait for the page")
        gate.go_on.set()
        assert reader.join_well()[0] in (DATA[:10], DATA[:3] + b"new" + DATA[6:10])
        writer.join_well()
        assert file.pread(10, 0) == DATA[:3] + b"new" + DATA[6:10]

