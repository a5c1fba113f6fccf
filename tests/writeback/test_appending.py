"""Files opened to append: what is written goes to the end that the store has, whatever else appends."""

import collections
import errno
import functools
import os
import subprocess
import sys

import pytest
from support import PAGE, STRESS, Crew, pages_of, wait_until
from support.shared_objects import CHANGES, DATA, KINDS, SIZE, appended, is_stale, made, overwritten
from support.write_steps import WritableStore

import pagecache


@pytest.fixture(params=KINDS)
def shared(request, tmp_path):
    return made(request.param, tmp_path)


@pytest.fixture
def cache(make_cache):
    return make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%", dirty_expire_s=3600)


class TestAppending:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("mode", ["ab", "a+b"])
    def test_goes_to_the_end_that_the_store_has(self, cache, shared, change, mode):
        with shared.open(cache, mode) as file:
            for number in range(3):
                file.write(b"ours %d" % number)
                file.fsync()
                mine = shared.data
                shared.data = theirs = change(mine)
                file.write(b"more")
                assert file.tell() == len(theirs) + 4
                file.fsync()
                assert shared.data == theirs + b"more"

    def test_behind_what_waits_to_be_written(self, cache, shared):
        with shared.open(cache, "ab") as file:
            for number in range(5):
                file.write(b"%d" % number)
            assert shared.data == DATA
            file.fsync()
            assert shared.data == DATA + b"01234"

    def test_with_something_waiting_is_refused_at_the_latest_when_that_is_written(self, cache, shared):
        with shared.open(cache, "ab") as file:
            file.write(b"ours")
            shared.data = theirs = appended(DATA)
            file.write(b"more")
            is_stale(file.fsync)
            assert shared.data == theirs
            file.invalidate(discard=True)
            file.write(b"again")
            file.fsync()
            assert shared.data == theirs + b"again"

    @pytest.mark.parametrize("durability", ["write-through", "dsync"])
    def test_in_turns(self, cache, shared, durability):
        expected = DATA
        with shared.open(cache, "ab", durability=durability) as file:
            for number in range(10):
                file.write(b"ours %d;" % number)
                expected += b"ours %d;" % number
                assert shared.data == expected
                shared.data = expected = expected + b"theirs %d;" % number
        assert shared.data == expected

    @pytest.mark.parametrize("durability", ["write-through", "dsync", "sync"])
    @pytest.mark.parametrize("nbytes", [1, 100, PAGE, 3 * PAGE + 7])
    def test_that_has_to_be_there_at_once(self, cache, tmp_path, durability, nbytes):
        path, data = tmp_path / "data", pages_of(nbytes, 8)
        path.write_bytes(DATA)
        with (
            cache.open(path, "a+b", durability=durability) as file,
            cache.open(path, "r+b") as other,
            other.mmap(access=pagecache.ACCESS_WRITE) as mapped,
        ):
            expected = bytearray(DATA)
            for number in range(4):
                other.pwrite(b"%d" % number, SIZE - 3)
                mapped[SIZE - 1 : SIZE] = b"m"
                expected[SIZE - 3 : SIZE] = b"%d%cm" % (number, expected[SIZE - 2])
                view = file.view(10, SIZE - 10)
                assert file.write(memoryview(data)) == nbytes
                expected += data
                assert path.read_bytes() == expected, "what was dirty before is in the file, too"
                assert (file.tell(), file.size) == (len(expected), len(expected))
                assert file.pread(2 * len(expected), 0) == expected
                assert view == expected[SIZE - 10 : SIZE]
                view.release()

    def test_that_cannot_be_done_in_one_step(self, cache, tmp_path, monkeypatch):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        for number in (errno.EOPNOTSUPP, errno.ENOSPC):
            with monkeypatch.context() as patch, cache.open(path, "ab", durability="write-through") as file:

                def refuse(*args, number=number):
                    raise OSError(number, os.strerror(number))

                patch.setattr(os, "pwritev", refuse)
                if number == errno.EOPNOTSUPP:
                    file.write(b"ours")
                    assert path.read_bytes() == DATA + b"ours"
                else:
                    with pytest.raises(OSError) as caught:
                        file.write(b"ours")
                    assert caught.value.errno == number
                    patch.undo()
                    file.write(b"more")
                    assert path.read_bytes() == DATA + b"oursmore"

    def test_a_part_of_which_was_written(self, cache, tmp_path, monkeypatch):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        pwritev, calls = os.pwritev, []

        def half(fd, buffers, *args):
            calls.append(len(buffers[0]))
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "full")
            return pwritev(fd, [buffers[0][:5]], *args)

        with cache.open(path, "a+b", durability="write-through") as file:
            assert file.pread(SIZE, 0) == DATA
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwritev", half)
                with pytest.raises(OSError, match="full"):
                    file.write(b"0123456789")
            assert file.pread(2 * SIZE, 0) == path.read_bytes() == DATA + b"01234"
            file.write(b"5")
            assert path.read_bytes() == DATA + b"012345"

    def test_by_programs_that_know_nothing_of_each_other(self, make_cache, tmp_path):
        """Without any lock; each line is there, once and whole."""
        path, nr_lines = tmp_path / "log", 3000 if STRESS else 400
        program = "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
        program += f"for number in range({20 * nr_lines}): os.write(fd, b'theirs %d %s;' % (number, b'x' * (number % 50)))"
        path.write_bytes(b"")
        caches = [make_cache(64 * PAGE), make_cache(3 * PAGE)]
        files = [cache.open(path, "ab", durability="write-through") for cache in (*caches, caches[0])]
        others = [subprocess.Popen([sys.executable, "-c", program, path]) for _ in range(2)]

        def append(name):
            for number in range(nr_lines):
                files[name].write(b"%d %d %s;" % (name, number, b"x" * (number % 50)))

        wait_until(lambda: path.stat().st_size > 0, "the others have begun")
        Crew(*(functools.partial(append, name) for name in range(3))).join_well()
        assert [other.wait() for other in others] == [0, 0]
        for file in files:
            file.close()
        found = collections.Counter(path.read_bytes().split(b";")[:-1])
        lines = [b"%d %s" % (number, b"x" * (number % 50)) for number in range(20 * nr_lines)]
        expected = {b"theirs " + line: 2 for line in lines}
        expected |= {b"%d %s" % (name, line): 1 for name in range(3) for line in lines[:nr_lines]}
        assert found == expected

    def test_reads_on_beside_it_see_what_is_there_now(self, cache, shared):
        with shared.open(cache, "a+b") as file, shared.open(cache, "rb") as reader:
            assert reader.pread(SIZE, 0) == DATA
            shared.data = theirs = overwritten(DATA) + b"!"
            file.write(b"ours")
            assert reader.pread(2 * SIZE, 0) == theirs + b"ours"
            file.fsync()
            assert shared.data == theirs + b"ours"

    def test_to_a_store_that_tells_no_versions_apart(self, cache):
        store = WritableStore(DATA)
        store.validator = lambda: None
        with cache.open(store, "ab") as file:
            store.data += b"theirs"
            file.write(b"ours")
            file.fsync()
        assert bytes(store.data) == DATA + b"theirsours"
