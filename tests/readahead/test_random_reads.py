"""Misses of a file that is advised to be read at random, which the engine serves by itself: one page, one request, the
same errors and counts as everywhere."""

import errno
import os
import random

import pytest
from support import PAGE, Crew, assert_nothing_is_held, checked_cache, nr_descriptors

import pagecache

NR_THREADS = 8


def open_at_random(cache, path, **how):
    file = cache.open(path, **how)
    file.fadvise(pagecache.FADV_RANDOM)
    return file


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_right_bytes_at_every_size_of_the_cache(frames, direct, data_file, rng):
    for size in (1, PAGE - 1, PAGE, 77 * PAGE + 5):
        path, data = data_file(size)
        with checked_cache(frames) as cache, open_at_random(cache, path, direct=direct) as file:
            for _ in range(150):
                offset = rng.randrange(size)
                nbytes = rng.choice([1, 64, PAGE - offset % PAGE, PAGE, PAGE + 1])
                assert file.pread(nbytes, offset) == data[offset : offset + nbytes]
                buffer = bytearray(nbytes)
                assert file.preadinto(buffer, offset) == len(data[offset : offset + nbytes])
                assert buffer[: size - offset] == data[offset : offset + nbytes]


def test_a_miss_is_one_page_one_request_and_one_count(make_cache, data_file):
    path, data = data_file(100 * PAGE)
    cache = make_cache(64 * PAGE)
    with open_at_random(cache, path) as file:
        before = cache.stats()
        for page in (50, 3, 51, 99):
            assert file.pread(100, page * PAGE + 7) == data[page * PAGE + 7 :][:100]
        after = cache.stats()
        assert after.misses - before.misses == 4 and after.hits == before.hits
        assert after.store_reads - before.store_reads == 4
        assert after.store_read_bytes - before.store_read_bytes == 4 * PAGE
        assert file.mapping.nrpages == 4 and file.ra.prev_pos == 99 * PAGE + 107
        assert file.mapping.counters()["missed_bytes"] == 400
        file.pread(100, 50 * PAGE)
        assert cache.stats().hits - after.hits == 1


def test_threads_that_want_one_cold_page_read_it_once(make_cache, data_file):
    path, data = data_file(64 * PAGE)
    cache = make_cache(128 * PAGE)
    with open_at_random(cache, path) as file:
        for page in range(64):
            offset = page * PAGE
            got = Crew(*[lambda offset=offset: file.pread(PAGE, offset)] * NR_THREADS).join_well()
            assert got == [data[offset : offset + PAGE]] * NR_THREADS
        assert cache.stats().store_reads == 64


def test_a_file_that_changed_is_never_mixed_with_what_is_cached(make_cache, data_file):
    path, data = data_file(40 * PAGE)
    cache = make_cache(64 * PAGE)
    with open_at_random(cache, path) as file:
        assert file.pread(10, 0) == data[:10]
        os.utime(path, ns=(1, 1))
        with pytest.raises(OSError, match="changed while it was cached") as raised:
            file.pread(10, 20 * PAGE)
        assert raised.value.errno == errno.ESTALE
        assert file.mapping.nrpages == 1
        assert_nothing_is_held(cache)


def test_a_file_that_became_shorter_fails_and_leaves_nothing(make_cache, data_file):
    path, data = data_file(40 * PAGE)
    cache = make_cache(64 * PAGE)
    with open_at_random(cache, path) as file:
        assert file.pread(10, 0) == data[:10]
        os.truncate(path, 10 * PAGE)
        with pytest.raises(OSError, match="20"):
            file.pread(10, 20 * PAGE)
        assert file.mapping.nrpages == 1
        assert_nothing_is_held(cache)


def test_a_full_cache_says_so(make_cache, data_file):
    path, _ = data_file(40 * PAGE)
    cache = make_cache(16 * PAGE)
    with open_at_random(cache, path) as file:
        views = [file.view(PAGE, page * PAGE) for page in range(16)]
        with pytest.raises(pagecache.CacheFullError):
            file.pread(10, 30 * PAGE)
        for view in views:
            view.release()
        file.pread(10, 30 * PAGE)


def test_a_file_may_be_closed_and_truncated_while_it_is_read(make_cache, data_file, rng):
    """Right bytes, fewer at the end, or ValueError when it is closed; and no descriptor is left."""
    path, data = data_file(300 * PAGE)
    cache = make_cache(64 * PAGE)
    before = nr_descriptors()
    for _ in range(10):
        file = cache.open(path, "r+b")
        file.fadvise(pagecache.FADV_RANDOM)
        seeds = [rng.randrange(1 << 30) for _ in range(3)]

        def read_until_closed(seed, file=file):
            mine = random.Random(seed)
            while True:
                offset = mine.randrange(len(data))
                try:
                    got = file.pread(100, offset)
                except ValueError:
                    return
                assert got == data[offset : offset + len(got)]

        def cut_and_close(file=file):
            for page in range(290, 200, -7):
                file.truncate(page * PAGE)
            file.close()

        Crew(*(lambda seed=seed: read_until_closed(seed) for seed in seeds), cut_and_close).join_well()
        path.write_bytes(data)
    cache.sync()  # the last file of an object that was written stays open until then
    assert nr_descriptors() <= before
