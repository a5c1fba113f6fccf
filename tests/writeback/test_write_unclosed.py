"""What was written is not lost when nothing is closed: files, caches and the program itself just go."""

import errno
import gc
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
from support import PAGE, PATIENCE_S, Crew, wait_until

import pagecache
from pagecache.writeback.flusher import busy_flushers

pytestmark = pytest.mark.filterwarnings("ignore:unclosed cached file:ResourceWarning")


def leave_dirty(source, **options):
    """Write through a cache and forget it and the file. Returns a weak reference to the cache."""
    cache = pagecache.PageCache(64 * PAGE, **options)
    file = cache.open(source, "r+b")
    file.pwrite(b"written", 0)
    return weakref.ref(cache)


def test_flusher_outlives_the_cache_until_all_is_written():
    store = pagecache.MemoryStore(bytes(PAGE))
    reference = leave_dirty(store, dirty_expire_s=0.01)
    gc.collect()
    assert reference() is None
    wait_until(lambda: store.tobytes().startswith(b"written"), "the flusher to write what is not held any more")


def test_nothing_is_kept_of_a_cache_that_is_clean():
    before = set(busy_flushers())
    store = pagecache.MemoryStore(bytes(PAGE))
    leave_dirty(store, dirty_expire_s=0.01)
    gc.collect()
    wait_until(lambda: set(busy_flushers()) <= before, "the flusher to let go of itself")
    assert store.tobytes().startswith(b"written")


def test_file_that_only_could_be_written_keeps_nothing():
    before = set(busy_flushers())
    cache = pagecache.PageCache(64 * PAGE)
    file = cache.open(pagecache.MemoryStore(bytes(PAGE)), "r+b")
    assert set(busy_flushers()) > before
    del file, cache
    gc.collect()
    assert set(busy_flushers()) <= before


def test_store_is_not_closed_under_a_write_back(make_cache):
    """The last map of an object goes while its pages, which are not marked dirty then, are on their way to the store."""

    class Slow(pagecache.MemoryStore):
        nr_closed = nr_failed = 0

        def writev(self, offset, buffers):
            entered.set()
            assert go_on.wait(PATIENCE_S)
            if not self.nr_failed:
                self.nr_failed += 1
                raise OSError(errno.EIO, "once")
            return super().writev(offset, buffers)

        def close(self):
            self.nr_closed += 1

    entered, go_on = threading.Event(), threading.Event()
    store = Slow(bytes(PAGE))
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file:
        mapped = file.mmap(access=pagecache.ACCESS_WRITE)
    mapped[:7] = b"written"
    crew = Crew(cache.sync)
    try:
        assert entered.wait(PATIENCE_S)
        mapped.close()
        del mapped
        gc.collect()
        assert store.nr_closed == 0
    finally:
        go_on.set()
    assert isinstance(crew.join()[0], OSError)
    cache.sync()
    assert store.tobytes().startswith(b"written")


@pytest.mark.parametrize("holds", ["", "kept = "], ids=["cache is gone", "cache is alive"])
def test_exit_of_the_interpreter_writes_back(tmp_path, holds):
    script = f"""
        import gc, sys, pagecache
        def leave(path):
            cache = pagecache.PageCache(64 * 4096)
            file = cache.open(path, "r+b")
            file.pwrite(b"written", 4000)
            return cache
        {holds}leave(sys.argv[1])
        gc.collect()
    """
    path = tmp_path / "data"
    path.write_bytes(bytes(PAGE))
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=True, timeout=60)
    assert path.read_bytes() == bytes(4000) + b"written" + bytes(PAGE - 4007)


def test_child_leaves_what_is_not_held_to_its_parent(tmp_path):
    script = """
        import gc, os, sys, pagecache
        def leave(path):
            pagecache.PageCache(64 * 4096).open(path, "r+b").pwrite(b"written", 0)
        leave(sys.argv[1])
        gc.collect()
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            with open(sys.argv[1], "rb") as file:
                assert file.read(7) == bytes(7)
        else:
            gc.collect()
    """
    path = tmp_path / "data"
    path.write_bytes(bytes(PAGE))
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=True, timeout=60)
    assert path.read_bytes() == b"written" + bytes(PAGE - 7)


def test_exit_says_what_could_not_be_written(tmp_path):
    script = """
        import errno, pagecache
        class Full(pagecache.MemoryStore):
            def writev(self, offset, buffers):
                raise OSError(errno.ENOSPC, "no space")
        pagecache.PageCache(64 * 4096).open(Full(bytes(100)), "r+b").pwrite(b"x", 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert "4096 bytes that were written to memory:1 are lost" in done.stderr
    assert "no space" in done.stderr
