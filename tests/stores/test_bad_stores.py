"""Stores that misbehave and objects that change under the cache: a clear error naming object, offset and reason, then
right bytes again; nothing lost, nothing leaked."""

import errno
import os

import numpy
import pytest
from support import PAGE, Crew, FaultyStore, Store, assert_nothing_is_held, pages_of

import pagecache

DATA = pages_of(20 * PAGE + 100)
OFFSET = 7 * PAGE


class Misbehaved(Store):
    """Does `answer_badly(offset, buffers, answer well)` as long as it is bad."""

    def __init__(self, answer_badly):
        super().__init__(DATA, key="the object")
        self.is_bad = True
        self.answer_badly = answer_badly

    def answer(self, offset, buffers):
        if not self.is_bad:
            return super().answer(offset, buffers)
        return self.answer_badly(offset, buffers, super().answer)


def after(value):
    """Answer well, but say something else."""

    def answer(offset, buffers, well):
        got = well(offset, buffers)
        return value(got) if callable(value) else value

    return answer


def raising(error):
    def answer(offset, buffers, well):
        buffers[0][:10] = b"half done!"
        raise error

    return answer


def releasing_its_buffers(offset, buffers, well):
    got = well(offset, buffers)
    for buffer in buffers:
        buffer.release()
    return got


WRONG_ANSWERS = {
    "too much": (after(lambda got: got + 1), errno.EIO, r"returned \d+ bytes where \d+ were asked for"),
    "far too much": (after(2**70), errno.EIO, r"returned \d+ bytes where \d+ were asked for"),
    "negative": (after(-1), errno.EIO, r"returned -1 bytes"),
    "nothing": (after(0), errno.EIO, r"no more bytes, though the object has 82020"),
    "None": (after(None), errno.EIO, r"readv returned NoneType, not a number of bytes"),
    "text": (after("12"), errno.EIO, r"readv returned str, not a number of bytes"),
    "bytes": (after(b"data"), errno.EIO, r"readv returned bytes, not a number of bytes"),
    "float": (after(float), errno.EIO, r"readv returned float, not a number of bytes"),
    "bool": (after(True), errno.EIO, r"readv returned bool, not a number of bytes"),
    "EIO": (raising(OSError(errno.EIO, "bad sector")), errno.EIO, "bad sector"),
    "EACCES": (raising(PermissionError(errno.EACCES, "token expired")), errno.EACCES, "token expired"),
    "no errno": (raising(OSError("it broke")), errno.EIO, "it broke"),
    "odd errno": (raising(OSError("E17", "it broke")), errno.EIO, "it broke"),
    "timeout": (raising(TimeoutError("too slow")), errno.ETIMEDOUT, "too slow"),
    "reset": (raising(ConnectionResetError(errno.ECONNRESET, "gone")), errno.ECONNRESET, "gone"),
    "ValueError": (raising(ValueError("bad header")), errno.EIO, "bad header"),
    "empty": (raising(KeyError()), errno.EIO, "KeyError"),
    "StopIteration": (raising(StopIteration()), errno.EIO, "StopIteration"),
    "MemoryError": (raising(MemoryError()), errno.EIO, "MemoryError"),
    "RecursionError": (raising(RecursionError("too deep")), errno.EIO, "too deep"),
}
NOT_OURS = [KeyboardInterrupt(), SystemExit(3), GeneratorExit()]


class TestWrongAnswers:
    def fails(self, file, number, reason, page=OFFSET // PAGE):
        """Check that a page cannot be read in any way, and that each error says why."""
        calls = [
            lambda: file.pread(10, page * PAGE + 1),
            lambda: file.preadinto(bytearray(10), page * PAGE),
            lambda: file.view(10, page * PAGE),
            lambda: list(file.iter_views(10, page * PAGE)),
        ]
        for call in calls:
            with pytest.raises(OSError, match=reason) as caught:
                call()
            assert caught.value.errno == number
            assert f"cannot read the object at offset {page * PAGE}" in str(caught.value)
            assert file.mincore()[page] == 0

    @pytest.mark.parametrize("name", WRONG_ANSWERS)
    def test_is_a_clear_error_and_over_when_the_store_is_well(self, make_cache, frames, name):
        answer, number, reason = WRONG_ANSWERS[name]
        store = Misbehaved(answer)
        cache = make_cache(frames * PAGE)
        with cache.open(store) as file:
            self.fails(file, number, reason)
            cache.check()
            store.is_bad = False
            assert file.pread(len(DATA), 0) == DATA
            assert_nothing_is_held(cache)

    @pytest.mark.parametrize("name", ["too much", "nothing", "EIO", "ValueError"])
    def test_of_every_page_in_turn_fills_the_cache_with_nothing(self, make_cache, frames, name):
        answer, number, _ = WRONG_ANSWERS[name]
        store = Misbehaved(answer)
        cache = make_cache(frames * PAGE)
        with cache.open(store) as file:
            for page in [*range(20), *range(20)]:
                with pytest.raises(OSError) as caught:
                    file.pread(PAGE, page * PAGE)
                assert caught.value.errno == number
            cache.check()
            assert cache.stats().nr_file_pages == 0
            store.is_bad = False
            assert file.pread(len(DATA), 0) == DATA
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("error", NOT_OURS, ids=repr)
    def test_exceptions_that_are_no_errors_come_through_as_they_are(self, make_cache, frames, error):
        store = Misbehaved(raising(error))
        cache = make_cache(frames * PAGE)
        with cache.open(store) as file:
            with pytest.raises(type(error)) as caught:
                file.pread(10, OFFSET)
            assert caught.value is error
            cache.check()
            store.is_bad = False
            assert file.pread(len(DATA), 0) == DATA
            assert_nothing_is_held(cache)

    @pytest.mark.stress
    def test_to_many_threads_concerns_only_those_who_asked(self, make_cache):
        store = FaultyStore(DATA, lambda number, first, last: OSError(errno.EIO, "odd") if first % 2 else None)
        store.preferred_request = PAGE
        cache = make_cache(8 * PAGE)
        with cache.open(store) as file:
            file.fadvise(pagecache.FADV_RANDOM)

            def reader(page):
                for _ in range(30):
                    if page % 2:
                        with pytest.raises(OSError, match=f"offset {page * PAGE}: odd"):
                            file.pread(10, page * PAGE)
                    else:
                        assert file.pread(10, page * PAGE) == DATA[page * PAGE :][:10]

            Crew(*(lambda page=page: reader(page) for page in range(12))).join_well()
        assert_nothing_is_held(cache)


class TestKeptBuffers:
    """A store that holds on to memory of the cache could write into other objects' pages later."""

    KEEPS = {
        "buffers": lambda buffers: list(buffers),
        "slice": lambda buffers: buffers[0][:100],
        "view": lambda buffers: memoryview(buffers[0]),
        "array": lambda buffers: numpy.frombuffer(buffers[0], numpy.uint8),
        "cast": lambda buffers: buffers[0].cast("b"),
    }

    @pytest.mark.parametrize("how", [name for name in KEEPS if name != "buffers"])
    def test_are_found_out(self, make_cache, frames, how):
        kept = []

        def keep(offset, buffers, well):
            kept.append(self.KEEPS[how](buffers))
            return well(offset, buffers)

        store = Misbehaved(keep)
        cache = make_cache(frames * PAGE)
        with cache.open(store) as file:
            with pytest.raises(OSError, match=f"the object at offset {OFFSET}: the store kept a buffer") as caught:
                file.pread(10, OFFSET)
            assert caught.value.errno == errno.EIO
            cache.check()
            assert cache.stats().nr_pinned > 0
            kept.clear()
            assert cache.stats().nr_pinned == 0
            store.is_bad = False
            assert file.pread(len(DATA), 0) == DATA
            assert_nothing_is_held(cache)

    def test_are_useless_after_the_call(self, make_cache):
        kept = []

        def keep(offset, buffers, well):
            kept.extend(buffers)
            return well(offset, buffers)

        with make_cache("1MiB").open(Misbehaved(keep)) as file:
            assert file.pread(len(DATA), 0) == DATA
            for buffer in kept:
                with pytest.raises(ValueError, match="released"):
                    buffer[0] = 1

    def test_never_show_or_change_what_comes_into_the_cache_later(self, make_cache):
        kept = []

        def keep(offset, buffers, well):
            kept.append(buffers[0][:])
            return well(offset, buffers)

        def write_to_all_that_was_kept():
            assert all(b"\xee" * 8 not in bytes(buffer) for buffer in kept)
            for buffer in kept:
                buffer[:] = b"\x11" * len(buffer)

        cache = make_cache(8 * PAGE)
        with cache.open(Misbehaved(keep)) as bad, cache.open(Store(b"\xee" * (40 * PAGE), key="secret")) as file:
            with pytest.raises(OSError, match="kept a buffer"):
                bad.pread(10, OFFSET)
            for _ in range(5):
                assert file.pread(40 * PAGE, 0) == b"\xee" * (40 * PAGE)
                write_to_all_that_was_kept()
            kept.clear()
        assert_nothing_is_held(cache)

    def test_of_a_failed_call_do_not_live_as_long_as_its_error(self, make_cache):
        def fail_holding_a_slice(offset, buffers, well):
            held = buffers[0][5:]
            assert len(held)
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise ValueError("outer") from error

        store = Misbehaved(fail_holding_a_slice)
        cache = make_cache(PAGE)
        with cache.open(store) as file:
            with pytest.raises(OSError, match="outer") as caught:
                file.pread(10, OFFSET)
            assert isinstance(caught.value.__cause__.__cause__, KeyError)
            assert cache.stats().nr_pinned == 0
            store.is_bad = False
            assert file.pread(len(DATA), 0) == DATA

    def test_may_be_released_by_the_store(self, make_cache):
        with make_cache("1MiB").open(Misbehaved(releasing_its_buffers)) as file:
            assert file.pread(len(DATA), 0) == DATA

    def test_outlive_the_cache_without_harm(self):
        kept = []

        def keep(offset, buffers, well):
            kept.append(buffers[0][:])
            return well(offset, buffers)

        cache = pagecache.PageCache("64KiB")
        with pytest.raises(OSError):
            cache.open(Misbehaved(keep)).pread(10, OFFSET)
        cache.close()
        del cache
        kept[0][:5] = b"still"
        assert bytes(kept[0][:5]) == b"still"


class TestChangedObjects:
    """Old and new bytes never meet: cached ones may still be had, all else is ESTALE until the object is taken anew."""

    def is_stale(self, file, name, *calls):
        for call in calls:
            with pytest.raises(OSError, match="changed while it was cached") as caught:
                call()
            assert caught.value.errno == errno.ESTALE
            assert str(name) in str(caught.value)
            assert "offset" in str(caught.value)

    @pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
    @pytest.mark.parametrize(
        "new_size", [0, 100, 3 * PAGE, 10 * PAGE + 5, 20 * PAGE + 99, 20 * PAGE + 100, 21 * PAGE, 99 * PAGE]
    )
    def test_file_that_shrinks_or_grows_or_is_overwritten(self, make_cache, data_file, direct, new_size):
        path, old = data_file(len(DATA))
        new = pages_of(new_size)
        cache = make_cache(64 * PAGE)
        with cache.open(path, direct=direct) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert file.pread(PAGE, 2 * PAGE) == old[2 * PAGE : 3 * PAGE]
            path.write_bytes(new)
            assert file.pread(PAGE, 2 * PAGE) == old[2 * PAGE : 3 * PAGE]
            self.is_stale(
                file,
                path,
                lambda: file.pread(1, 12 * PAGE),
                lambda: file.pread(3 * PAGE, PAGE),
                lambda: file.preadinto(bytearray(10), 20 * PAGE + 95),
                lambda: file.view(10, 12 * PAGE),
                lambda: list(file.iter_views(10 * PAGE, 0)),
                lambda: file.pread(1, len(old)),
                lambda: file.view(1, len(old)),
                lambda: list(file.iter_views(1, len(old))),
                lambda: file.readall(),
            )
            cache.check()
            file.invalidate()
            assert file.pread(len(DATA) + 200 * PAGE, 0) == new
            with cache.open(path) as again:
                assert again.readall() == new
            assert_nothing_is_held(cache)

    def test_file_that_is_being_appended_to_can_be_followed(self, make_cache, data_file):
        path, data = data_file(100)
        with make_cache("64KiB").open(path) as file, open(path, "ab") as plain:
            for number in range(50):
                assert file.pread(100_000, 0) == data
                plain.write(b"line %d\n" % number * 100)
                plain.flush()
                data = path.read_bytes()
                file.invalidate()

    @pytest.mark.parametrize("size_too", [False, True])
    def test_store_that_has_no_version_but_another_size(self, make_cache, size_too):
        store = Store(DATA, key="the object")
        store.version = None
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            assert file.pread(PAGE, 0) == DATA[:PAGE]
            store.data = DATA[: 10 * PAGE]
            if size_too:
                self.is_stale(file, "the object", lambda: file.pread(10, 15 * PAGE))
            else:
                store.size = lambda: len(DATA)
                with pytest.raises(OSError, match=f"the object at offset {15 * PAGE}: the store brought no more bytes"):
                    file.pread(10, 15 * PAGE)
        assert_nothing_is_held(cache)

    def test_store_whose_version_changes_during_the_read(self, make_cache, frames):
        class Flips(Store):
            def answer(self, offset, buffers):
                self.version = str(int(self.version) + 1)
                return super().answer(offset, buffers)

        cache = make_cache(frames * PAGE)
        with cache.open(Flips(DATA, key="the object")) as file:
            self.is_stale(file, "the object", lambda: file.pread(10, OFFSET), lambda: file.view(10, OFFSET))
            assert_nothing_is_held(cache)

    def test_store_that_cannot_say_its_version_any_more(self, make_cache):
        store = Store(DATA, key="the object")
        cache = make_cache("1MiB")
        with cache.open(store) as file:

            def fail():
                raise ConnectionError("no head request today")

            store.validator = fail
            with pytest.raises(OSError, match=f"the object at offset {OFFSET}: no head request today"):
                file.pread(10, OFFSET)
            del store.validator
            assert file.pread(len(DATA), 0) == DATA
        assert_nothing_is_held(cache)

    def test_deleted_file_is_read_on(self, make_cache, data_file):
        path, data = data_file(50 * PAGE)
        with make_cache("64KiB").open(path) as file:
            assert file.pread(10, 0) == data[:10]
            os.unlink(path)
            assert file.pread(len(data), 0) == data
