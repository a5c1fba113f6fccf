"""The ways in which files, caches and programs end: what is dirty is written, or its loss is reported."""

import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest
from support import PAGE, PATIENCE_S, Crew, assert_nothing_is_held, pages_of, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, fill_dirty
from test_signals import interrupted

import pagecache
from pagecache.writeback.flusher import busy_flushers

DATA = pages_of(8 * PAGE)
EIO = OSError(errno.EIO, "broken")


@pytest.fixture
def store():
    return WritableStore(DATA)


class TestClosingAFile:
    def test_writes_back_and_leaves_the_pages_cached(self, make_cache, store):
        cache = make_cache(64 * PAGE)
        file = cache.open(store, "r+b")
        file.pwrite(b"new", 3 * PAGE)
        file.close()
        assert store.data == DATA[: 3 * PAGE] + b"new" + DATA[3 * PAGE + 3 :]
        assert (store.names(), store.nr_closed) == (["writev"], 0)
        assert cache.stats().nr_file_pages > 0
        file.close()
        assert store.names() == ["writev"]
        cache.sync()
        assert (store.names(), store.nr_closed) == (["writev", "sync"], 1)

    def test_a_file_for_reading_writes_nothing(self, make_cache, store):
        cache = make_cache(64 * PAGE)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"new", 0)
            cache.open(store).close()
            assert store.calls == []

    def test_reports_and_closes_nevertheless(self, make_cache, store):
        cache = make_cache(64 * PAGE)
        file = cache.open(store, "r+b")
        file.pwrite(b"new", 0)
        store.on_write = fault = Fault(EIO)
        with pytest.raises(OSError, match="cannot write written at offset 0: broken"):
            file.close()
        assert file.closed
        assert store.nr_closed == 0, "what is dirty still needs it"
        fault.mend()
        cache.sync()
        assert store.data[:3] == b"new"

    def test_a_store_without_validator_is_shared_while_it_is_in_use(self, make_cache, store):
        store.validator = lambda: None
        cache = make_cache(64 * PAGE)
        with cache.open(store, "r+b") as one, cache.open(store, "r+b") as two:
            one.pwrite(b"one", 0)
            two.pwrite(b"two", 5)
            assert one.pread(8, 0) == two.pread(8, 0) == b"one" + DATA[3:5] + b"two"
        assert store.data[:8] == b"one" + DATA[3:5] + b"two"
        file = cache.open(store, "r+b")
        file.pwrite(b"kept", 0)
        store.on_write = fault = Fault(EIO)
        with pytest.raises(OSError, match="broken"):
            file.close()
        fault.mend()
        with cache.open(store) as again:
            assert again.pread(4, 0) == b"kept"

    def test_what_was_not_written_of_an_object_that_others_changed_is_lost_and_said_so(self, make_cache, store, caplog):
        cache = make_cache(64 * PAGE)
        file = cache.open(store, "r+b")
        file.pwrite(b"new", 0)
        store.on_write = fault = Fault(EIO)
        with pytest.raises(OSError, match="broken"):
            file.close()
        store.data[:] = bytes(8 * PAGE)
        store.nr_changes += 1
        with cache.open(store, "r+b") as again:
            assert again.pread(3, 0) == bytes(3)
            assert "could not be written to it is lost" in caplog.text
            fault.mend()
        assert store.data == bytes(8 * PAGE)


class TestForgottenFiles:
    def forget(self, file):
        """Drop an open file without closing it."""
        with pytest.warns(ResourceWarning, match="unclosed cached file"):
            file.pop()
            gc.collect()

    def test_the_flusher_writes_what_a_collected_file_left(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0)
        store.on_write = gate = Gate()
        file = [cache.open(store, "r+b")]
        file[0].pwrite(b"new", 0)
        self.forget(file)
        gate.wait_entered()
        gate.go_on.set()
        wait_until(lambda: store.data[:3] == b"new", "the flusher to write")
        wait_until(lambda: store.nr_closed == 1, "the store to be closed")

    def test_the_store_is_not_closed_while_something_is_being_written(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0)
        closed_inside = []
        store.on_write = gate = Gate()
        close = store.close
        store.close = lambda: (closed_inside.append(gate.nr_inside), close())
        file = [cache.open(store, "r+b")]
        file[0].pwrite(b"new", 0)
        gate.wait_entered()
        self.forget(file)
        cache.flusher.inodes()[0].close_retired()
        assert closed_inside == []
        gate.go_on.set()
        wait_until(lambda: closed_inside == [0], "the store to be closed")

    @pytest.mark.parametrize("in_a_cycle", [False, True])
    def test_cache_and_file_forgotten_together_lose_nothing(self, tmp_path, in_a_cycle):
        """In a cycle the collector finds all of them at once, the flusher too, and ends weak references first."""
        path = tmp_path / "data"
        path.write_bytes(DATA)

        def forget():
            cache = pagecache.PageCache(64 * PAGE, dirty_expire_s=0.2)
            file = cache.open(path, "r+b")
            file.pwrite(b"new", 0)
            file.cycle = file if in_a_cycle else None

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            forget()
            gc.collect()
        wait_until(lambda: path.read_bytes()[:3] == b"new", "the flusher to write what was forgotten")
        wait_until(lambda: not any(each.dirty_inodes() for each in busy_flushers()), "the flusher to be let go")


class TestClosingACache:
    def test_writes_back_syncs_and_closes_files_and_stores(self, store):
        cache = pagecache.PageCache(64 * PAGE)
        file = cache.open(store, "r+b")
        mapped = file.mmap(access=pagecache.mm.ACCESS_WRITE)
        file.pwrite(b"new", 0)
        mapped[PAGE] = 7
        cache.close()
        assert (store.data[:3], store.data[PAGE], store.nr_closed) == (b"new", 7, 1)
        assert store.names() == ["writev", "sync"]
        assert file.closed
        assert mapped.closed

    def test_reports_what_is_lost(self, store):
        cache = pagecache.PageCache(64 * PAGE)
        healthy = WritableStore(DATA, key="healthy")
        file, other = cache.open(store, "r+b"), cache.open(healthy, "r+b")
        file.pwrite(b"new", 0)
        other.pwrite(b"new", 0)
        store.on_write = Fault(EIO)
        with pytest.raises(OSError, match="broken") as caught:
            cache.close()
        assert caught.value.__notes__ == ["the cache was closed nevertheless; lost: what was not written of written"]
        assert healthy.data[:3] == b"new"
        assert cache.closed
        assert (store.nr_closed, healthy.nr_closed) == (1, 1)
        cache.close()

    def test_an_interrupt_loses_nothing(self, store):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            cache = pagecache.PageCache(64 * PAGE)
            file = cache.open(store, "r+b")
            file.pwrite(b"new", 0)
            store.on_write = gate = Gate()
            interrupted(cache.close)
            gate.go_on.set()
            store.on_write = lambda *call: None
            cache.close()
            assert cache.closed
            assert store.data[:3] == b"new"
        finally:
            signal.signal(signal.SIGINT, before)

    def test_sync_reports_and_keeps(self, make_cache, store):
        cache = make_cache(64 * PAGE)
        healthy = WritableStore(DATA, key="healthy")
        with cache.open(store, "r+b") as file, cache.open(healthy, "r+b") as other:
            file.pwrite(b"new", 0)
            other.pwrite(b"new", 0)
            store.on_write = Fault(EIO, 1)
            with pytest.raises(OSError, match="broken"):
                cache.sync()
            assert (dirty_pages(file), healthy.names()) == (1, ["writev", "sync"])
            cache.sync()
            assert store.names() == ["writev", "writev", "sync"]
            with pytest.raises(OSError, match="in the background"):
                file.fsync()


EXITS = {
    "normal end": "",
    "sys.exit": "import sys; sys.exit(3)",
    "exception": "raise ValueError('the end')",
    "file closed": "file.close()",
    "cache closed": "cache.close()",
    "everything forgotten": "del file, cache; import gc; gc.collect()",
    "daemon thread busy": """
        import threading
        def work():
            while True:
                file.pread(100, 0); file.pwrite(b"z", 5 * 4096)
        threading.Thread(target=work, daemon=True).start()
        """,
    "in a thread": "import threading, sys; t = threading.Thread(target=sys.exit); t.start(); t.join()",
}


def run(program, *arguments):
    """Run a program; returns its exit code and what it wrote to standard error."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr


class TestExit:
    @pytest.mark.parametrize("end", EXITS)
    def test_writes_what_is_dirty(self, tmp_path, end):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        program = """
            import sys, pagecache
            cache = pagecache.PageCache("1MiB", dirty_expire_s=1000)
            file = cache.open(sys.argv[1], "r+b")
            file.pwrite(b"new", 4096)
            """
        code, said = run(textwrap.dedent(program) + textwrap.dedent(EXITS[end]), path)
        assert code == {"sys.exit": 3, "exception": 1}.get(end, 0), said
        assert "lost" not in said
        assert path.read_bytes()[PAGE : PAGE + 3] == b"new"

    def test_nothing_is_said_of_what_is_left_open(self, tmp_path):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        program = """
            import sys, threading, pagecache
            from pagecache import mm
            cache = pagecache.PageCache("1MiB")
            files = [cache.open(sys.argv[1], mode) for mode in ("rb", "r+b")]
            memory = mm.MemoryMap()
            memory.mmap(files[0], 4096)
            threads = [threading.Thread(target=file.pread, args=(1, 0)) for file in files]
            for thread in threads:
                thread.start(); thread.join()
            """
        assert run(program, path) == (0, "")

    @pytest.mark.parametrize("error", ["OSError(28, 'full')", "SystemExit(9)", "MemoryError()"])
    def test_says_how_much_could_not_be_written(self, tmp_path, error):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        program = f"""
            import sys, pagecache
            class Full(pagecache.MemoryStore):
                name, parallel_requests = "the full one", 1
                def writev(self, offset, buffers):
                    raise {error}
            cache = pagecache.PageCache("1MiB", dirty_expire_s=1000)
            file = cache.open(Full(bytes(40960)), "r+b")
            file.pwrite(b"new", 0)
            file.pwrite(b"new", 20480)
            other = cache.open(sys.argv[1], "r+b")
            other.pwrite(b"new", 0)
            """
        code, said = run(program, path)
        assert code == 0
        assert "up to 8192 bytes that were written to the full one are lost" in said
        assert path.read_bytes()[:3] == b"new", "one failing store is no reason to give up the others"


def test_a_forked_child_writes_nothing_and_the_parent_once(make_cache, store):
    gc.collect()
    gc.freeze()  # what other tests left is not copied by the child's collector
    cache = make_cache(64 * PAGE)
    with cache.open(store, "r+b") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fill_dirty(file, 4)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                file.close()
                cache.close()
                gc.collect()
                code = 0 if store.calls == [] else 2
                pagecache.default._at_exit()
                code = code if store.calls == [] else 3
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert dirty_pages(file) == 4
        file.fsync()
        assert store.names() == ["writev", "sync"]


class TestInterrupts:
    @pytest.fixture(autouse=True)
    def interrupts(self):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize("requests", [1, 4], ids="requests={}".format)
    @pytest.mark.parametrize("way", ["fsync", "flush", "sync_range", "write_through", "sync", "map", "truncate"])
    def test_a_wait_for_a_store_that_hangs_ends_and_leaves_nothing_held(self, make_cache, store, way, requests):
        store.parallel_requests = requests
        cache = make_cache(64 * PAGE)
        with cache.open(store, "r+b") as file, cache.open(store, "r+b", durability="write-through") as through:
            mapped = file.mmap(access=pagecache.mm.ACCESS_WRITE)
            fill_dirty(file, 4)
            calls = {
                "fsync": file.fsync, "flush": file.flush, "sync_range": lambda: file.sync_range(0), "sync": cache.sync,
                "write_through": lambda: through.pwrite(b"x", 0), "map": mapped.flush,
                "truncate": lambda: file.truncate(10),
            }  # fmt: skip
            store.on_write = gate = Gate()
            writer = Crew(file.fsync) if way == "truncate" else None
            if writer is not None:
                gate.wait_entered()
            interrupted(calls[way])
            expected = file.pread(4 * PAGE, 0)
            gate.go_on.set()
            store.on_write = lambda *call: None
            if writer is not None:
                writer.join_well()
            file.fsync()
            assert store.data[: len(expected)] == expected
            mapped.close()
        assert_nothing_is_held(cache)

    def test_a_writer_at_the_limit_can_be_interrupted(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=2 * PAGE, dirty_background=PAGE)
        with cache.open(store, "r+b") as file:
            store.on_write = gate = Gate()
            interrupted(lambda: fill_dirty(file, 8))
            gate.go_on.set()
            store.on_write = lambda *call: None
            fill_dirty(file, 8)
            file.fsync()
            assert store.data == file.pread(8 * PAGE, 0)
        assert_nothing_is_held(cache)

    def test_a_partial_write_whose_page_hangs_changes_nothing(self, make_cache):
        store = WritableStore(DATA)
        gate = Gate()
        answer = store.answer
        store.answer = lambda offset, buffers: (gate(), answer(offset, buffers))[1]
        cache = make_cache(64 * PAGE)
        with cache.open(store, "r+b") as file:
            interrupted(lambda: file.pwrite(b"new", 10))
            gate.go_on.set()
            assert file.pread(8 * PAGE, 0) == DATA
            assert dirty_pages(file) == 0
