"""The C interface: the examples of docs/c-api.md are built against an installed package and run; each function keeps its
word; threads of C read while pages are evicted and truncated; a table of another version is refused."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
from support import PAGE, PATIENCE_S, ROOT, STRESS, Crew, Store, assert_nothing_is_held, pages_of, wait_until

import pagecache
from pagecache import _core
from pagecache._core import AddressSpace, Segment

CAPSULE = b"pagecache._core._C_API"
END, ABSENT, DEAD = -1, -2, -3
FRAMES, FREE, CACHED, DIRTY, WRITEBACK, PINNED, HITS, MISSES, STORE_READS = range(9)
NR_COUNTERS = 12
NR_PAGES = 64


def run(*command, cwd, **environment):
    """Run a command to its end; its output is the message if it fails."""
    ran = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def compiler():
    """The C compiler that this Python was built with, or one that stands in for it."""
    named = (sysconfig.get_config_var("CC") or "cc").split()[0]
    found = shutil.which(named) or shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        pytest.skip("needs Python.h")
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the package as an installation lays it out: no links, only the files that are package data."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs a checkout")
    pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "setup.py", "-q", "build_py", "--build-lib", target, "--force", cwd=ROOT)
    shutil.copy(_core.__file__, target / "pagecache")
    assert not (target / "pagecache" / "parts").exists()
    return target


@pytest.fixture(scope="module")
def examples(installed, compiler, tmp_path_factory):
    """The modules that docs/c-api.md shows, built as it says."""
    directory = tmp_path_factory.mktemp("examples")
    text = (ROOT / "docs" / "c-api.md").read_text()
    blocks = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL))
    assert set(blocks) == {"letters.c", "checksum.pyx", "setup.py"}
    for name, block in blocks.items():
        (directory / name).write_text(block)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=directory, PYTHONPATH=str(installed))
    return directory


def load(name, directory):
    """Import an extension module from a directory, anew."""
    [path] = directory.glob(f"{name}*{sysconfig.get_config_var('EXT_SUFFIX')}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built_probe(compiler, tmp_path_factory):
    """The directory of the compiled tests/support/c_api_probe.c."""
    directory = tmp_path_factory.mktemp("probe")
    target = directory / f"c_api_probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-pthread"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    include = [f"-I{sysconfig.get_path('include')}", f"-I{pagecache.get_include()}"]
    run(compiler, *flags, *include, ROOT / "tests" / "support" / "c_api_probe.c", "-o", target, cwd=directory)
    return directory


@pytest.fixture
def probe(built_probe):
    return load("c_api_probe", built_probe)


@pytest.fixture
def held(probe):
    """A factory of handles that are released when the test ends."""
    made = []

    def acquire(file):
        made.append(probe.acquire(file))
        return made[-1]

    yield acquire
    for handle in made:
        probe.release(handle)


def read_all(file):
    """Bring the whole file in, and past its readahead markers."""
    for _ in range(2):
        for offset in range(0, file.mapping.size, PAGE):
            file.pread(PAGE, offset)


class TestExamples:
    def test_count_and_add_up_a_file_larger_than_the_cache(self, examples, installed, data_file):
        path, data = data_file(300 * PAGE + 77)
        script = f"""
import pagecache, letters, checksum
assert pagecache.__file__.startswith({str(installed)!r}), pagecache.__file__
with pagecache.PageCache(64 * 4096) as cache, cache.open({str(path)!r}) as file:
    for _ in range(2):
        print(letters.count(file, 65), checksum.checksum(file)[0])
    assert checksum.checksum(file)[1] > 0
    cache.check()
"""
        out = run(sys.executable, "-P", "-c", script, cwd=examples, PYTHONPATH=f"{installed}{os.pathsep}{examples}")
        assert out.split() == [str(data.count(b"A")), str(sum(data))] * 2

    def test_copy_what_is_cached_without_python(self, examples, make_cache):
        data = pages_of(NR_PAGES * PAGE)
        letters, checksum = load("letters", examples), load("checksum", examples)
        with make_cache(256 * PAGE).open(Store(data)) as file:
            read_all(file)
            nr_calls = []
            file_class = type(file)

            class Watched(file_class):
                def pread(self, nbytes, offset):
                    nr_calls.append(offset)
                    return super().pread(nbytes, offset)

            file.__class__ = Watched
            assert letters.count(file, 7) == data.count(b"\x07")
            assert checksum.checksum(file)[0] == sum(data)
            assert nr_calls == [len(data)] * 2  # only to learn that this is the end

    def test_compile_nothing_of_the_engine(self, examples):
        generated = (examples / "checksum.c").read_text()
        assert "pagecache.h" in generated
        assert "core/" not in generated

    def test_need_an_open_file(self, examples, make_cache):
        letters = load("letters", examples)
        file = make_cache(8 * PAGE).open(Store(b"abc"))
        file.close()
        with pytest.raises(ValueError, match="closed"):
            letters.count(file, 1)
        with pytest.raises(TypeError, match=r"pagecache\.File"):
            letters.count(object(), 1)


class TestReading:
    def test_absent_then_cached(self, probe, held, make_cache):
        data = pages_of(10 * PAGE + 10)
        with make_cache(64 * PAGE).open(Store(data)) as file:
            handle = held(file)
            assert probe.size(handle) == len(data)
            assert probe.read(handle, 100, 0) == b""
            assert probe.pin(handle, 0) == ABSENT
            assert not probe.is_cached(handle, 1, 0)
            read_all(file)
            assert probe.is_cached(handle, len(data), 0)
            assert probe.read(handle, 2 * len(data), 0) == data
            assert probe.read(handle, 100, 5 * PAGE - 50) == data[5 * PAGE - 50 : 5 * PAGE + 50]
            assert probe.read(handle, 100, len(data) - 1) == data[-1:]

    def test_end_of_the_object(self, probe, held, make_cache):
        with make_cache(64 * PAGE).open(Store(b"abc")) as file:
            handle = held(file)
            read_all(file)
            assert probe.pin(handle, 3) == END
            assert probe.pin(handle, 2**64 - 1) == END
            assert probe.read(handle, 2**20, 2**64 - 1) == b""
            assert probe.is_cached(handle, 2**64 - 1, 3)
            pin = probe.pin(handle, 1)
            assert probe.pinned(pin) == b"bc"
            probe.unpin(pin)

    def test_stops_at_the_first_hole(self, probe, held, make_cache):
        data = pages_of(8 * PAGE)
        with make_cache(64 * PAGE).open(Store(data)) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            handle = held(file)
            for page in (0, 1, 3):
                file.pread(PAGE, page * PAGE)
            assert probe.read(handle, 8 * PAGE, 100) == data[100 : 2 * PAGE]
            assert not probe.is_cached(handle, 4 * PAGE, 0)
            assert probe.is_cached(handle, PAGE, 3 * PAGE)

    def test_marks_pages_as_used_and_counts(self, probe, held, make_cache):
        cache = make_cache(64 * PAGE)
        with cache.open(Store(pages_of(4 * PAGE))) as file:
            read_all(file)
            handle = held(file)
            hits = cache.stats().hits
            probe.read(handle, PAGE, 0)
            probe.unpin(probe.pin(handle, 0))
            stats = cache.stats()
            assert stats.hits == hits + 2
            assert file.mapping.get_folio(0).referenced
            assert probe.counter(handle, HITS) == stats.hits
            assert probe.counter(handle, FRAMES) == stats.nr_frames
            assert probe.counter(handle, FREE) == stats.nr_free_pages
            assert probe.counter(handle, CACHED) == stats.nr_file_pages
            assert probe.counter(handle, MISSES) == stats.misses
            assert probe.counter(handle, STORE_READS) == stats.store_reads > 0
            assert probe.counter(handle, NR_COUNTERS) == probe.counter(handle, -1) == -1

    def test_counts_dirty_pages(self, probe, held, make_cache, data_file):
        path, _ = data_file(4 * PAGE)
        cache = make_cache(64 * PAGE)
        with cache.open(path, "r+b") as file:
            handle = held(file)
            file.pwrite(b"x" * PAGE, 0)
            assert probe.counter(handle, DIRTY) + probe.counter(handle, WRITEBACK) == 1
            assert probe.read(handle, 2, 0) == b"xx"


class TestPins:
    def test_last_through_eviction_truncation_and_close(self, probe, make_cache, data_file):
        path, data = data_file(8 * PAGE)
        cache = make_cache(64 * PAGE)
        file = cache.open(path, "r+b")
        read_all(file)
        handle = probe.acquire(file)
        pin = probe.pin(handle, PAGE + 10)
        expected = probe.pinned(pin)
        assert expected and expected == data[PAGE + 10 :][: len(expected)]
        assert probe.counter(handle, PINNED) > 0
        cache.drop_caches()
        assert probe.pinned(pin) == expected
        file.truncate(PAGE + 5)
        assert probe.pin(handle, PAGE + 10) == END
        file.truncate(8 * PAGE)
        assert probe.pinned(pin) == expected
        assert file.pread(20, PAGE + 5) == bytes(20)
        file.close()
        assert probe.pinned(pin) == expected
        with pytest.raises(RuntimeError, match=r"1 pins .* pagecache_unpin"):
            probe.release(handle)
        assert probe.pinned(pin) == expected
        probe.unpin(pin)
        probe.unpin(pin)  # again: nothing
        assert probe.counter(handle, PINNED) == 0
        probe.release(handle)
        assert_nothing_is_held(cache)

    def test_keep_their_frames_from_others(self, probe, held, make_cache):
        cache = make_cache(4 * PAGE)
        with cache.open(Store(pages_of(4 * PAGE), key="pinned")) as file, cache.open(Store(b"x" * 9 * PAGE)) as other:
            file.fadvise(pagecache.FADV_RANDOM)
            other.fadvise(pagecache.FADV_RANDOM)
            handle = held(file)
            pins = []
            for page in range(3):
                file.pread(1, page * PAGE)
                pins.append(probe.pin(handle, page * PAGE))
            read_all(other)
            assert [probe.pinned(pin) for pin in pins] == [pages_of(PAGE, page * PAGE) for page in range(3)]
            file.pread(1, 3 * PAGE)
            pins.append(probe.pin(handle, 3 * PAGE))
            with pytest.raises(pagecache.CacheFullError):
                other.pread(1, 0)
            for pin in pins:
                probe.unpin(pin)
            assert other.pread(1, 0) == b"x"

    def test_handle_outlives_file_and_cache(self, probe, make_cache):
        data = pages_of(4 * PAGE)
        cache = make_cache(16 * PAGE)
        file = cache.open(Store(data))
        read_all(file)
        handle = probe.acquire(file)
        pin = probe.pin(handle, 0)
        cache.close()
        del file, cache
        assert data.startswith(probe.pinned(pin))
        probe.unpin(pin)
        probe.release(handle)


class TestRefused:
    def test_what_is_no_readable_object(self, probe, make_cache, data_file):
        path, _ = data_file(PAGE)
        cache = make_cache(16 * PAGE)
        with pytest.raises(TypeError, match=r"an open pagecache\.File is needed, not PageCache"):
            probe.acquire(cache)
        with cache.open(path, "ab") as file, pytest.raises(OSError, match="not readable"):
            probe.acquire(file)
        with pytest.raises(ValueError, match="not opened"):
            probe.acquire(pagecache.File.__new__(pagecache.File))
        with pytest.raises(ValueError, match="descriptors only"):
            probe.acquire(AddressSpace(Segment(4, data=False)))

    @pytest.mark.parametrize(("version", "nbytes"), [(2, 4096), (0, 4096), (1, 16)])
    def test_a_table_of_another_version(self, built_probe, monkeypatch, version, nbytes):
        table = (ctypes.c_uint32 * 1024)(version, nbytes)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        monkeypatch.setattr(_core, "_C_API", new(ctypes.addressof(table), CAPSULE, None))
        with pytest.raises(ImportError, match=rf"version {version} .*\({nbytes} bytes\).* version 1 .*compile it again"):
            load("c_api_probe", built_probe)

    def test_longer_table_of_the_same_version_is_accepted(self, built_probe, monkeypatch):
        table = (ctypes.c_uint32 * 1024)(1, 4096)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        monkeypatch.setattr(_core, "_C_API", new(ctypes.addressof(table), CAPSULE, None))
        load("c_api_probe", built_probe)

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_in_the_child_of_a_fork(self, probe, held, make_cache):
        with make_cache(16 * PAGE).open(Store(pages_of(4 * PAGE))) as file:
            read_all(file)
            handle = held(file)
            pin = probe.pin(handle, 0)
            child = os.fork()
            if child == 0:
                good = probe.pin(handle, 0) == probe.read(handle, 1, 0) == DEAD and not probe.is_cached(handle, 1, 0)
                probe.unpin(pin)
                probe.release(handle)
                os._exit(0 if good else 1)
            assert os.waitpid(child, 0)[1] == 0
            probe.unpin(pin)


@pytest.mark.stress
class TestThreads:
    """Threads of C, which never take the GIL, while this one and others evict and truncate."""

    ROUNDS = 3000 if STRESS else 150

    def finish(self, probe):
        """Wait until each thread has pinned often enough; returns what they saw."""
        try:
            wait_until(lambda: probe.progress()["fewest"] > 0, "pins")
        finally:
            seen = probe.stop()
        assert seen["wrong"] == 0, seen
        assert seen["changed"] == 0, seen
        assert min(seen["pinned"], seen["read"], seen["absent"]) > 0, seen
        return seen

    def test_read_while_pages_come_and_go(self, probe, held, make_cache, rng):
        data = pages_of(NR_PAGES * PAGE)
        cache = make_cache(NR_PAGES * PAGE // 2)
        with cache.open(Store(data)) as file:
            handle = held(file)
            probe.start(handle, len(data), 4, rng.randrange(2**32))
            try:
                for _ in range(self.ROUNDS):
                    offset = rng.randrange(len(data))
                    try:
                        assert file.pread(3 * PAGE, offset) == data[offset : offset + 3 * PAGE]
                    except pagecache.CacheFullError:
                        pass  # all frames may be pinned for a moment
                    if rng.random() < 0.1:
                        cache.drop_caches()
            finally:
                self.finish(probe)

    def test_read_while_the_object_is_truncated_and_grows(self, probe, held, make_cache, data_file, rng):
        path, _ = data_file(0)
        data = pages_of(NR_PAGES * PAGE)
        path.write_bytes(data)
        cache = make_cache(2 * NR_PAGES * PAGE)
        with cache.open(path, "r+b") as file:
            handle = held(file)
            probe.start(handle, len(data), 3, rng.randrange(2**32))

            def cut():
                for _ in range(self.ROUNDS):
                    size = rng.randrange(len(data)) & ~7
                    file.truncate(size)
                    file.truncate(len(data))

            def read():
                for _ in range(self.ROUNDS):
                    file.pread(4 * PAGE, rng.randrange(len(data)))
                    cache.drop_caches()

            try:
                Crew(cut, read).join_well()
                wait_until(lambda: file.pread(len(data), 0) and probe.progress()["fewest"] > 0, "pins")
            finally:
                self.finish(probe)

    def test_hold_back_neither_python_nor_each_other(self, probe, held, make_cache, rng):
        """Python makes progress while C reads, and C while Python computes without letting go."""
        data = pages_of(NR_PAGES * PAGE)
        with make_cache(4 * NR_PAGES * PAGE).open(Store(data)) as file:
            read_all(file)
            handle = held(file)
            probe.start(handle, len(data), 2, rng.randrange(2**32))
            try:
                interval = sys.getswitchinterval()
                sys.setswitchinterval(PATIENCE_S)
                try:
                    before = probe.progress()["pinned"]
                    while probe.progress()["pinned"] < before + 100:
                        pass
                finally:
                    sys.setswitchinterval(interval)
            finally:
                seen = probe.stop()
            assert seen["wrong"] == seen["changed"] == 0, seen
