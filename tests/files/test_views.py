"""Views that have to be copied live inside the budget, or are refused."""

import contextlib
import errno
import os
import random
import subprocess
import sys

import pytest
from support import PAGE, Crew, Store, assert_nothing_is_held, is_too_long_to_copy, pages_of

import pagecache
from pagecache import CacheFullError


@pytest.fixture
def small_folios(make_cache):
    """A file of which every page lies in a folio of its own, in a full cache of 256 frames; its bytes."""
    data = pages_of(400 * PAGE)
    with make_cache(256 * PAGE).open(Store(data)) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        order = list(range(400))
        random.Random(3).shuffle(order)
        for page in order:
            file.pread(1, page * PAGE)
        assert {order for _, order, _ in file.mapping.folios()} == {0}
        yield file, data


def pinned(file):
    return file.cache.stats().nr_pinned


class TestCopies:
    @pytest.mark.parametrize(("nr_pages", "nr_pinned"), [(2, 2), (3, 4), (64, 64), (100, 128), (128, 128)])
    def test_are_pinned_frames_as_long_as_they_are_held(self, small_folios, nr_pages, nr_pinned):
        file, data = small_folios
        view = file.view(nr_pages * PAGE - 10, 7 * PAGE + 5)
        part = view[PAGE : PAGE + 100]
        assert pinned(file) == nr_pinned
        assert view.readonly and len(view) == nr_pages * PAGE - 10
        file.cache.drop_caches()
        for page in range(0, 400, 3):
            file.pread(1, page * PAGE)
        assert view == data[7 * PAGE + 5 :][: nr_pages * PAGE - 10]
        view.release()
        assert pinned(file) == nr_pinned
        assert part == data[8 * PAGE + 5 :][:100]
        part.release()
        assert_nothing_is_held(file.cache)

    def test_take_what_may_leave_wherever_it_lies(self, small_folios):
        """Of each 16 frames, the lower 8 are pinned: elsewhere every page may leave, in whatever order it came."""
        file, data = small_folios
        cached = [page for page in range(400) if file.mincore(page * PAGE, PAGE) == b"\1"]
        with contextlib.ExitStack() as stack:
            for page in cached:
                with file.mapping.get_folio(page) as folio:
                    is_kept = folio.frame % 16 < 8
                if is_kept:
                    stack.enter_context(file.view(1, page * PAGE))
            with file.view(8 * PAGE, 3) as view:
                assert view == data[3 : 8 * PAGE + 3]
            with pytest.raises(CacheFullError, match=r"no 16 page frames.*iter_views"):
                file.view(16 * PAGE, 3)
        file.view(16 * PAGE, 3).release()

    def test_what_is_used_stays_if_something_else_can_leave(self, make_cache):
        data = pages_of(600 * PAGE)
        with make_cache(256 * PAGE, policy="kernel").open(Store(data)) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(3):
                for page in range(64):
                    file.pread(1, page * PAGE)
            for page in range(100, 400):
                file.pread(1, page * PAGE)
            file.view(32 * PAGE, 100).release()
            assert file.mincore(0, 64 * PAGE) == b"\1" * 64

    def test_end_where_the_file_ends(self, small_folios):
        file, data = small_folios
        assert file.view(10 * PAGE, 398 * PAGE + 1) == data[398 * PAGE + 1 :]
        assert file.view(10**15, 398 * PAGE + 1) == data[398 * PAGE + 1 :]

    def test_are_missing_pages_too(self, make_cache, frames):
        data = pages_of(64 * PAGE)
        cache = make_cache(frames * PAGE)
        with cache.open(Store(data)) as file:
            for nbytes in (PAGE + 1, 2 * PAGE, 3 * PAGE, 16 * PAGE):
                cache.drop_caches()
                if is_too_long_to_copy(file, nbytes, PAGE // 2):
                    with contextlib.suppress(CacheFullError), file.view(nbytes, PAGE // 2) as view:
                        assert view == data[PAGE // 2 :][:nbytes]
                else:
                    assert file.view(nbytes, PAGE // 2) == data[PAGE // 2 :][:nbytes]

    def test_that_cannot_be_read_hold_nothing(self, make_cache):
        class Half(Store):
            def answer(self, offset, buffers):
                if offset >= 4 * PAGE:
                    raise OSError(errno.EIO, "broken")
                return super().answer(offset, buffers)

        cache = make_cache(64 * PAGE)
        with cache.open(Half(pages_of(8 * PAGE))) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(1, 3 * PAGE)
            with pytest.raises(OSError, match="broken"):
                file.view(2 * PAGE, 3 * PAGE)
        assert_nothing_is_held(cache)

    def test_may_be_written_from(self, make_cache):
        """The source lies in page frames: the write copies it first, as that of any view."""
        data = pages_of(16 * PAGE)
        with make_cache(64 * PAGE).open(pagecache.MemoryStore(data), "r+b") as file:
            file.fadvise(pagecache.FADV_RANDOM)
            with file.view(3 * PAGE, PAGE // 2) as view:
                file.pwrite(view, 2 * PAGE)
            expected = bytearray(data)
            expected[2 * PAGE : 5 * PAGE] = data[PAGE // 2 :][: 3 * PAGE]
            assert file.pread(16 * PAGE, 0) == expected


class TestRefusal:
    @pytest.mark.parametrize("nbytes", [(2 << 20) + 1, 100_000_000, 1 << 62])
    def test_names_what_does_it_without_a_copy(self, make_cache, nbytes):
        size = 1 << 33
        cache = make_cache("8MiB")
        with cache.open(Zeros(size)) as file:
            with pytest.raises(CacheFullError, match=r"seen as one.*iter_views.*pread") as raised:
                file.view(nbytes, 100)
            assert raised.value.errno == errno.ENOMEM and raised.value.nr_frames == 2048
            assert pinned(file) == 0

    def test_comes_before_anything_is_read_but_the_first_page(self, make_cache):
        with make_cache("8MiB").open(Zeros(1 << 30)) as file:
            with pytest.raises(CacheFullError):
                file.view(100_000_000, 0)
            assert file.cache.stats().store_read_bytes <= 2 << 20

    def test_also_of_files_that_look_for_changes(self, make_cache):
        file = make_cache("8MiB").open(Zeros(1 << 30), recheck=True, on_change="reload")
        with file, pytest.raises(CacheFullError, match="iter_views"):
            file.view(100_000_000, 0)

    def test_is_no_matter_for_read_buffer(self, make_cache):
        """It returns bytes, which are the caller's, where one folio does not hold all."""
        data = pages_of(1 << 20)
        with make_cache("4MiB").open(Store(data)) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for page in range(256):
                file.pread(1, page * PAGE)
            before = file.cache.stats()
            assert type(file.read_buffer(1 << 20)) is bytes
            assert pinned(file) == 0
            after = file.cache.stats()
            assert (after.hits - before.hits, after.bytes_asked - before.bytes_asked) == (1, 1 << 20)
            file.seek(0)
            assert file.read_buffer() == data


class Zeros(Store):
    """An object of zeros that takes no memory."""

    def __init__(self, nbytes):
        super().__init__(b"")
        self.nbytes = nbytes

    def size(self):
        return self.nbytes

    def answer(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))
        return sum(map(len, buffers))


GROWTH = """
import sys
sys.path[:0] = %r
from test_views import Zeros
import pagecache

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

cache = pagecache.PageCache("8MiB")
file = cache.open(Zeros(1 << 30))
for offset in range(0, 64 << 20, 1 << 20):
    file.pread(1 << 20, offset)
before, held, nr_refused = resident(), [], 0
for number in range(4000):
    try:
        held.append(file.view((4097, 20_000, 300_000, 100_000_000)[number %% 4], number * 8191))
    except pagecache.CacheFullError:
        nr_refused += 1
        if nr_refused > 20:
            break
print(resident() - before, len(held), sum(map(len, held)))
cache.check()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer's shadow memory counts as resident")
def test_views_of_all_kinds_together_grow_the_process_by_nothing():
    program = GROWTH % [path for path in sys.path if path]
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    growth, nr_held, nr_bytes = map(int, ran.stdout.split())
    assert nr_held >= 10 and nr_bytes >= 1 << 20, ran.stdout
    assert growth <= 2 << 20, ran.stdout


@pytest.mark.stress
def test_threads_that_copy_take_no_page_that_another_holds(make_cache, seed):
    data = pages_of(300 * PAGE)
    cache = make_cache(64 * PAGE)
    store = pagecache.MemoryStore(data)

    def look(number):
        rng = random.Random(seed + number)
        with cache.open(store) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(200):
                nbytes, offset = rng.randrange(1, 8 * PAGE), rng.randrange(len(data))
                with contextlib.suppress(CacheFullError), file.view(nbytes, offset) as view:
                    other = rng.randrange(len(data))
                    assert file.pread(PAGE, other) == data[other : other + PAGE]
                    assert view == data[offset : offset + nbytes]

    Crew(*(lambda number=number: look(number) for number in range(4))).join_well()
    assert_nothing_is_held(cache)
