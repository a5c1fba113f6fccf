"""The map object beside the standard library's mmap.mmap on the same file: same answers, same refusals."""

import errno
import mmap
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Crew, FaultyStore, Store, assert_nothing_is_held, checked_cache, pages_of
from support.fault_steps import Mapped, SizedStore

import pagecache
from pagecache import mm
from pagecache.mm import mmap_object

SIZE = 5 * PAGE + 777


def text_of(size):
    """Return bytes with lines of many lengths, and words that occur often, rarely, once and never."""
    lines, number = [], 0
    while sum(map(len, lines)) < size:
        lines.append(b"line %d %s\n" % (number, b"ab" * (number * number % 3000)))
        number += 1
    return b"".join(lines)[: size - 4] + b"END!"


@pytest.fixture
def cache():
    with checked_cache(64) as cache:
        yield cache


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmap") / "file"
    path.write_bytes(text_of(SIZE))
    return path


def real_map(path, length=0, offset=0):
    """Return the standard library's map of a file."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=offset)


@pytest.fixture
def both(cache, path):
    """The map of a file, and the real one."""
    with cache.open(path) as file, file.mmap() as ours, real_map(path) as real:
        yield ours, real


def outcome(function):
    """Return what a call returns, or the type of what it raises."""
    try:
        return function()
    except Exception as error:
        return type(error)


# -- the same answers --------------------------------------------------------------------------------------------------

POSITIONS = st.one_of(
    st.integers(-SIZE - 10, SIZE + 10),
    st.sampled_from([0, 1, -1, PAGE, PAGE - 1, PAGE + 1, SIZE - 1, SIZE, SIZE + 1, -SIZE, 1 << 70, -(1 << 70)]),
)
MAYBE = st.none() | POSITIONS
STEP = st.none() | st.integers(-9000, 9000).filter(bool) | st.sampled_from([1, -1, 2, 4096, -4097])
WORDS = st.sampled_from([b"END!", b"\n", b"line 7", b"ab", b"ba", b"", b"zz", b"abab" * 600, b"a\n", b"x" * SIZE])
SEARCH = st.sampled_from(["find", "rfind"])
ENDS = st.integers(-SIZE - 3, SIZE + 3)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.none() | st.integers(-2, SIZE + 10)),
        st.tuples(st.just("readline")),
        st.tuples(st.just("read_byte")),
        st.tuples(st.just("tell")),
        st.tuples(st.just("size")),
        st.tuples(st.just("seek"), ENDS, st.integers(-1, 3)),
        st.tuples(SEARCH, WORDS),
        st.tuples(SEARCH, WORDS, ENDS),
        st.tuples(SEARCH, WORDS, ENDS, ENDS),
        st.tuples(st.just("flush")),
        st.tuples(st.just("flush"), st.integers(-1, SIZE + 1), st.integers(-1, SIZE + 1)),
    ),
    max_size=25,
)


@given(start=MAYBE, stop=MAYBE, step=STEP, index=POSITIONS)
def test_slices_and_items(frames, path, start, stop, step, index):
    data = path.read_bytes()
    with checked_cache(frames) as cache, cache.open(path) as file, file.mmap() as ours:
        assert ours[start:stop:step] == data[start:stop:step]
        assert ours[start:stop] == data[start:stop]
        assert outcome(lambda: ours[index]) == outcome(lambda: data[index])


@given(calls=CALLS, offset=st.sampled_from([0, PAGE]), length=st.sampled_from([0, 1, 1000, PAGE, 3 * PAGE + 1]))
def test_sequences_of_calls(frames, path, calls, offset, length):
    with (
        checked_cache(frames) as cache,
        cache.open(path) as file,
        file.mmap(length, offset) as ours,
        real_map(path, length, offset) as real,
    ):
        assert len(ours) == len(real)
        for name, *arguments in calls:
            got = outcome(lambda: getattr(ours, name)(*arguments))  # noqa: B023
            expected = outcome(lambda: getattr(real, name)(*arguments))  # noqa: B023
            if name == "seek" and expected is None:
                expected = real.tell()
            assert got == expected, (name, arguments)
            assert ours.tell() == real.tell()


@given(before=st.integers(0, 60), after=st.integers(0, 60), word=st.binary(max_size=12), chunk=st.integers(1, 9))
def test_searches_piece_by_piece(before, after, word, chunk):
    data = b"a" * before + word + b"a" * after + b"."
    whole, mmap_object._SEARCH_CHUNK = mmap_object._SEARCH_CHUNK, chunk
    try:
        with checked_cache(1) as cache, cache.open(Store(data)) as file, file.mmap() as ours:
            for start in (0, before // 2, before + 1):
                assert ours.find(word, start) == data.find(word, start)
                assert ours.rfind(word, start) == data.rfind(word, start)
    finally:
        mmap_object._SEARCH_CHUNK = whole


def test_iteration_yields_single_bytes_as_mmap_does(cache, tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"some bytes")
    with cache.open(path) as file, file.mmap() as ours, real_map(path) as real:
        assert list(ours) == list(real)
        assert list(reversed(ours)) == list(reversed(real))
        assert (b"b" in ours, b"x" in ours, 98 in ours) == (b"b" in real, b"x" in real, 98 in real)


def test_large_steps_and_long_searches(cache, tmp_path):
    data = bytes(3 << 20) + b"needle" + bytes(100_000)
    path = tmp_path / "large"
    path.write_bytes(data)
    with cache.open(path) as file, file.mmap() as ours:
        assert ours.find(b"needle") == 3 << 20 == ours.rfind(b"needle")
        assert ours.find(bytes(300_000) + b"needle") == (3 << 20) - 300_000
        assert ours.rfind(b"needle" + bytes(100_000)) == 3 << 20
        assert (ours.find(b"nowhere"), ours.rfind(b"nowhere")) == (-1, -1)
        assert ours[::-50_001] == data[::-50_001]
        assert ours.readline() == data


def test_the_rest_of_the_interface(both):
    ours, real = both
    assert ours.seekable() and not ours.closed
    assert set(dir(real)) - set(dir(ours)) <= {"__buffer__", "__release_buffer__", "set_name"}
    assert ours.seek(-4, os.SEEK_END) == SIZE - 4
    assert ours.read() == b"END!"
    assert "length=21257, pos=21257, offset=0" in repr(ours)
    assert ours.find(bytearray(b"END!"), 0) == ours.find(memoryview(b"END!"), 0) == SIZE - 4


@pytest.mark.parametrize("key", ["0", None, 1.0, (1, 2), slice(1.0, 2)])
def test_wrong_indices(both, key):
    for each in both:
        with pytest.raises(TypeError):
            each[key]


@pytest.mark.parametrize(
    "name, arguments",
    [("read", ("1",)), ("read", (1.5,)), ("find", (1,)), ("find", ("text",)), ("find", (b"a", "0")), ("seek", ("0",))],
)
def test_wrong_arguments(both, name, arguments):
    for each in both:
        with pytest.raises(TypeError):
            getattr(each, name)(*arguments)


@pytest.mark.parametrize(
    "change",
    [
        lambda each: each.write(b"x"),
        lambda each: each.write_byte(1),
        lambda each: each.move(0, 1, 1),
        lambda each: each.resize(10),
        lambda each: each.__setitem__(0, 1),
        lambda each: each.__setitem__(slice(0, 1), b"x"),
        lambda each: each.__delitem__(0),
    ],
)
def test_it_cannot_be_changed(both, change):
    for each in both:
        assert outcome(lambda: change(each)) in (TypeError, AttributeError)  # noqa: B023


@pytest.mark.parametrize(
    "use",
    [
        len,
        list,
        lambda each: each[0],
        lambda each: each[0:1],
        lambda each: each[0:0],
        lambda each: each.read(),
        lambda each: each.read_byte(),
        lambda each: each.readline(),
        lambda each: each.find(b"a"),
        lambda each: each.rfind(b"a"),
        lambda each: each.seek(0),
        lambda each: each.tell(),
        lambda each: each.size(),
        lambda each: each.flush(),
        lambda each: each.madvise(mmap.MADV_NORMAL),
        lambda each: each.write(b""),
        lambda each: each.resize(1),
        lambda each: each.__enter__(),
    ],
)
def test_closed_map_cannot_be_used(both, use):
    for each in both:
        each.close()
        each.close()
        assert each.closed
        with pytest.raises(ValueError):
            use(each)
    assert "closed=True" in repr(both[0])


def test_advice(both):
    for each in both:
        each.madvise(mmap.MADV_SEQUENTIAL)
        each.madvise(mmap.MADV_RANDOM, PAGE)
        each.madvise(mmap.MADV_NORMAL, 0, 1 << 40)
        each.madvise(mmap.MADV_WILLNEED, PAGE, 10)
        each.madvise(mmap.MADV_DONTNEED, 0, 0)
        for arguments in ((mmap.MADV_NORMAL, SIZE), (mmap.MADV_NORMAL, -1), (mmap.MADV_NORMAL, 0, -1)):
            with pytest.raises(ValueError):
                each.madvise(*arguments)
        with pytest.raises(OSError) as caught:
            each.madvise(mmap.MADV_NORMAL, 1)
        assert caught.value.errno == errno.EINVAL
    assert both[0][:] == both[1][:]


# -- making one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, offset",
    [(SIZE + 1, 0), (0, 6 * PAGE), (PAGE, 5 * PAGE), (1 << 62, 0), (-1, 0), (0, -PAGE), (0, 1), (1, 100)],
)
def test_impossible_ranges(cache, path, length, offset):
    with cache.open(path) as file, pytest.raises(ValueError, match=r"cannot map|must") as caught:
        file.mmap(length, offset)
    if length > 0 and offset % PAGE == 0:
        assert str(path) in str(caught.value) and str(offset) in str(caught.value)


@pytest.mark.parametrize("length, offset", [("1", 0), (None, 0), (0, 1.0)])
def test_ranges_are_integers(cache, path, length, offset):
    with cache.open(path) as file, pytest.raises(TypeError):
        file.mmap(length, offset)


def test_empty_file_and_closed_file(cache, tmp_path):
    (tmp_path / "empty").touch()
    with cache.open(tmp_path / "empty") as file, pytest.raises(ValueError, match="empty"):
        file.mmap()
    with pytest.raises(ValueError, match="closed"):
        file.mmap()
    with pytest.raises(ValueError, match="closed"):
        mm.map_file(file)


@pytest.mark.parametrize("access", [pagecache.ACCESS_WRITE, pagecache.ACCESS_DEFAULT])
def test_file_for_reading_is_not_mapped_for_writing(cache, path, access):
    with cache.open(path) as file, pytest.raises(PermissionError, match="cannot be written"):
        file.mmap(access=access)


def test_unknown_access_is_refused(cache, path):
    with cache.open(path) as file, pytest.raises(ValueError, match="access"):
        file.mmap(access=7)


def test_file_that_changed_below_is_refused(cache):
    store = Store(pages_of(PAGE))
    with cache.open(store) as file:
        store.version = "2"
        with pytest.raises(OSError, match="changed while it was cached") as caught:
            file.mmap()
        assert caught.value.errno == errno.ESTALE


# -- life --------------------------------------------------------------------------------------------------------------


def test_it_works_when_the_file_is_closed(cache):
    store = Store(pages_of(SIZE))
    file = cache.open(store)
    ours = file.mmap()
    file.close()
    cache.drop_caches()
    assert ours[:] == store.data and store.nr_closed == 0
    ours.close()
    assert store.nr_closed == 1
    assert_nothing_is_held(cache)


def test_it_is_closed_with_the_cache(path):
    cache = pagecache.PageCache(64 * PAGE)
    file = cache.open(path)
    ours, other = file.mmap(), file.mmap()
    file.close()
    other.close()
    assert ours[:4] == b"line"
    cache.check()
    cache.close()
    assert ours.closed
    with pytest.raises(ValueError, match="closed"):
        ours[0]


def test_forgotten_map_is_no_leak(cache):
    store = Store(pages_of(SIZE))
    file = cache.open(store)
    ours = file.mmap()
    ours[:]
    file.close()
    del ours
    assert store.nr_closed == 1
    assert_nothing_is_held(cache)


def test_it_pins_nothing(cache, path):
    with cache.open(path) as file, file.mmap() as ours:
        assert ours[:] == path.read_bytes()
        assert cache.stats().nr_pinned == 0
        assert_nothing_is_held(cache)


def test_closing_while_others_read(rng):
    data = pages_of(SIZE)
    with checked_cache(3) as cache, cache.open(Store(data)) as file:
        ours = file.mmap()
        started = threading.Barrier(4)
        seeds = [rng.randrange(2**32) for _ in range(3)]

        def read(seed):
            local = type(rng)(seed)
            started.wait()
            while True:
                at = local.randrange(SIZE)
                try:
                    assert ours[at : at + 5000] == data[at : at + 5000]
                except ValueError as error:
                    assert "closed" in str(error)
                    return

        def close():
            started.wait()
            for _ in range(20):
                assert ours[:] == data
            ours.close()

        Crew(close, *[lambda seed=seed: read(seed) for seed in seeds]).join_well()


def test_after_fork_the_child_cannot_use_it(cache, path):
    with cache.open(path) as file, file.mmap() as ours:
        assert ours[0] == ord("l")
        child = os.fork()
        if child == 0:
            try:
                ours[0]
            except RuntimeError:
                os._exit(3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


# -- errors ------------------------------------------------------------------------------------------------------------


def test_reading_what_was_truncated_is_a_bus_error(cache):
    store = SizedStore(pages_of(SIZE))
    with cache.open(store, "r+b") as file, file.mmap() as ours:
        assert len(ours[:]) == SIZE
        file.truncate(PAGE + 10)
        assert ours.size() == PAGE + 10 and len(ours) == SIZE
        assert ours[PAGE : 2 * PAGE] == store.data[PAGE:] + bytes(PAGE - 10)
        with pytest.raises(mm.BusError, match=f"sized at offset {2 * PAGE}: .*beyond the end") as caught:
            ours[PAGE : 2 * PAGE + 1]
        assert caught.value.errno == errno.EFAULT
        ours.seek(2 * PAGE)
        with pytest.raises(mm.BusError):
            ours.read(1)
        assert ours.tell() == 2 * PAGE
        file.truncate(SIZE)
        assert ours[:] == store.data


def test_failed_read_is_a_bus_error_with_the_stores_errno(cache):
    failure = OSError(errno.ENETDOWN, "the network is down")
    store = FaultyStore(pages_of(SIZE), lambda number, first, last: failure if first <= 2 <= last else None)
    with cache.open(store) as file, file.mmap() as ours:
        with pytest.raises(mm.BusError, match=f"faulty at offset {2 * PAGE}: the network is down") as caught:
            ours[2 * PAGE]
        assert caught.value.errno == errno.ENETDOWN
        assert caught.value.__cause__.__cause__ is failure
        assert ours[: 2 * PAGE] == store.data[: 2 * PAGE]
        assert ours[3 * PAGE :] == store.data[3 * PAGE :]
        store.fault = lambda number, first, last: None
        assert ours[:] == store.data


def test_the_only_frame_is_pinned():
    with checked_cache(1) as cache, cache.open(Store(pages_of(SIZE))) as file, file.mmap() as ours:
        view = file.view(10, 0)
        with pytest.raises(pagecache.CacheFullError, match="1 are pinned"):
            ours[PAGE]
        assert ours[:10] == view.tobytes()
        view.release()
        assert ours[:] == pages_of(SIZE)


def test_changes_through_the_file_are_seen(cache):
    area = Mapped(cache, 3)
    with area.file.mmap() as ours:
        assert ours[:] == area.data
        folio = area.mapping.get_folio(1)
        folio.lock()
        folio.zero(100, 50)
        folio.unlock()
        folio.put()
        assert ours[PAGE : PAGE + 200] == area.page(1)[:100] + bytes(50) + area.page(1)[150:200]


@pytest.mark.parametrize("nr_frames", [1, 2, 3, 64])
def test_threads_read_one_map(nr_frames, rng):
    data = pages_of(40 * PAGE)
    with checked_cache(nr_frames) as cache, cache.open(Store(data)) as file, file.mmap() as ours:
        seeds = [rng.randrange(2**32) for _ in range(4)]

        def read(seed):
            local = type(rng)(seed)
            for _ in range(60):
                at, nbytes = local.randrange(len(data)), local.randrange(20_000)
                assert ours[at : at + nbytes] == data[at : at + nbytes]

        Crew(*[lambda seed=seed: read(seed) for seed in seeds]).join_well()


def test_threads_share_the_position():
    data = pages_of(64 * PAGE)
    with checked_cache(16) as cache, cache.open(Store(data)) as file, file.mmap() as ours:

        def read():
            pieces = []
            while piece := ours.read(1000):
                pieces.append(piece)
            return pieces

        pieces = [piece for part in Crew(*[read] * 4).join_well() for piece in part]
        assert sorted(pieces, key=data.find) == [data[at : at + 1000] for at in range(0, len(data), 1000)]


def test_lines_are_those_of_the_file(cache, path):
    with cache.open(path) as file, file.mmap() as ours, open(path, "rb") as real_file:
        assert list(iter(ours.readline, b"")) == real_file.readlines()
