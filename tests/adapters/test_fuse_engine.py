"""Requests of a mount that the engine answers without Python: the answers are those of Python, and what it leaves to it."""

import errno
import os
import random
import socket
import stat
import threading
import time

import pytest
from support import PAGE, STRESS, pages_of
from support.fuse_mount import ANSWERS, KINDS, mounted, needs_fuse
from support.fuse_wire import Wire

from pagecache import MemoryStore
from pagecache._core import FuseHandles, FuseStatus
from pagecache.adapters.fuse import handles, protocol, session
from pagecache.adapters.fuse.handles import PythonHandles, make_handles
from pagecache.adapters.fuse.protocol import Opcode

__all__ = ["mounted"]
WAYS = ("engine", "python")
SMALL, LARGE = PAGE, 64 * PAGE  # a read that is copied, and one that is answered from the folios
KILL = protocol.WRITE_KILL_SUIDGID


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Both ways of answering."""
    monkeypatch.setenv(ANSWERS, "" if request.param == "engine" else "python")
    return request.param


@pytest.fixture
def source(tmp_path):
    """A directory with one file of 100 pages and a bit."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(pages_of(100 * PAGE + 7))
    return tmp_path / "source"


@pytest.fixture
def wire(make_cache, source):
    """A session over the source, answered by the engine."""
    with Wire(make_cache("4MiB"), source) as wire:
        yield wire


def opened(wire, flags=os.O_RDWR, *, name="file", cached=True):
    """Return node and handle of a file, all of whose pages are cached."""
    node = wire.lookup(name)
    handle = wire.open(node, flags)
    if cached:
        for offset in range(0, 128 * PAGE, LARGE):
            wire.read(node, handle, LARGE, offset)
        wire.read(node, handle, LARGE, 0)
    return node, handle


def here(way, **counts):
    """Return what is counted where: by the engine, or, answered by Python, all of it there."""
    return counts if way == "engine" else {"python": sum(counts.values())}


class TestBothWays:
    def test_each_serves_what_is_at_hand(self, make_cache, source, way):
        data = (source / "file").read_bytes()
        with Wire(make_cache("4MiB"), source) as wire:
            node, handle = opened(wire)
            for nbytes in (1, SMALL, 5 * PAGE, LARGE):
                for offset in (0, 3, 99 * PAGE, 100 * PAGE + 6):
                    found = wire.served(wire.read, node, handle, nbytes, offset)
                    assert found == (data[offset : offset + nbytes], here(way, read=1)), (nbytes, offset)
            assert wire.served(wire.write, node, handle, b"new" * PAGE, 5) == (None, here(way, write=1))
            assert wire.read(node, handle, LARGE, 0) == data[:5] + b"new" * PAGE + data[5 + 3 * PAGE : LARGE]
            attributes, where = wire.served(wire.attributes, node)
            assert where == here(way, getattr=1) and attributes == wire.attributes(node, handle)
            wire.release(node, handle)
        assert (source / "file").read_bytes() == data[:5] + b"new" * PAGE + data[5 + 3 * PAGE :]

    def test_answers_agree(self, make_cache, source, monkeypatch):
        """The same requests, to two copies of a file: the same answers, but for times and inode numbers."""
        (source / "other").write_bytes((source / "file").read_bytes())
        rng = random.Random(seed := int(os.environ.get("PAGECACHE_SEED", random.randrange(1 << 32))))
        print(f"PAGECACHE_SEED={seed}")
        for size in ("4KiB", "8KiB", "12KiB", "256KiB", "4MiB"):
            monkeypatch.setenv(ANSWERS, "")
            first = Wire(make_cache(size), source)
            monkeypatch.setenv(ANSWERS, "python")
            second = Wire(make_cache(size), source)
            with first, second:
                both = ((first, "file"), (second, "other"))
                sides = [(wire, *opened(wire, name=name, cached=False)) for wire, name in both]
                for _ in range(2000 if STRESS else 150):
                    self.agree(sides, rng)
                for wire, node, handle in sides:
                    wire.release(node, handle)
            assert (source / "file").read_bytes() == (source / "other").read_bytes()
            assert sum(first.counts()[what] for what in ("read", "write", "getattr")) > 0

    @staticmethod
    def agree(sides, rng):
        place, nbytes = rng.randrange(120 * PAGE), rng.choice((1, 100, PAGE, 9 * PAGE, LARGE))
        place = rng.choice((place, place // PAGE * PAGE))
        what = rng.choice(("read", "read", "write", "append", "attributes", "truncate"))
        found = []
        for wire, node, handle in sides:
            if what == "read":
                found.append(wire.read(node, handle, nbytes, place))
            elif what == "write":
                wire.write(node, handle, bytes([place % 251]) * nbytes, place)
            elif what == "append":
                wire.write(node, handle, bytes([place % 251]) * (nbytes % 5000), 7, flags=os.O_APPEND)
            elif what == "truncate":
                wire.truncate(node, handle, place)
            fields = list(protocol.ATTR.unpack(wire.attributes(node)))
            found.append([field for at, field in enumerate(fields) if at not in (0, 2, 3, 4, 5, 6, 7, 8)])
        half = len(found) // 2
        assert found[:half] == found[half:], (what, place, nbytes)


class TestWhatIsLeftToPython:
    """What cannot be had at once, or is not for the engine to decide; and it finds the request as it came."""

    def test_missing_pages_and_the_end(self, wire, source):
        node, handle = opened(wire, cached=False)
        data = (source / "file").read_bytes()
        assert wire.served(wire.read, node, handle, SMALL, 10 * PAGE) == (data[10 * PAGE : 11 * PAGE], {"python": 1})
        assert wire.served(wire.read, node, handle, LARGE, 0) == (data[:LARGE], {"python": 1})
        assert wire.served(wire.read, node, handle, SMALL, 101 * PAGE) == (b"", {"python": 1})
        with open(source / "file", "ab") as file:
            file.write(b"!")
        assert wire.served(wire.read, node, handle, 1, 100 * PAGE + 7)[1] == {"python": 1}  # it asks the file

    def test_numbers_that_are_not_there(self, wire):
        node, handle = opened(wire)
        wire.release(node, handle)
        for number in (handle, 0, handle + (1 << 16), (1 << 64) - 1, 5):
            assert wire.served(wire.read, node, number, SMALL, 0) == ("EIO", {"python": 1})
        assert wire.served(wire.attributes, node, handle)[0] == "EBADF"
        assert wire.served(wire.attributes, node)[1] == {"python": 1}

    def test_requests_that_end_early(self, wire):
        node, handle = opened(wire)
        for opcode, body in ((Opcode.READ, b"12345678"), (Opcode.WRITE, b""), (Opcode.GETATTR, b"1")):
            assert wire.served(wire.ask, opcode, node, body) == ("EIO", {"python": 1})
        body = protocol.WRITE_IN.pack(handle, 0, 100, 0, 0, 0, 0) + b"less"
        assert wire.served(wire.ask, Opcode.WRITE, node, body)[1] == {"python": 1}

    def test_writes_to_a_file_that_is_open_for_reading(self, wire):
        node, handle = opened(wire, os.O_RDONLY)
        assert wire.served(wire.write, node, handle, b"x", 0) == ("EIO", {"python": 1})

    def test_a_file_that_asks_for_the_version(self, make_cache, source):
        with Wire(make_cache("4MiB"), source, recheck=True) as wire:
            node, handle = opened(wire)
            assert wire.served(wire.read, node, handle, SMALL, 0)[1] == {"python": 1}
            assert wire.served(wire.write, node, handle, b"x", 0)[1] == {"python": 1}
            assert wire.served(wire.attributes, node)[1] == {"python": 1}  # whose size is the present version's
            assert protocol.ATTR.unpack(wire.attributes(node))[1] == 100 * PAGE + 7

    def test_a_file_that_is_recorded(self, make_cache, source, tmp_path):
        cache = make_cache("4MiB")
        with Wire(cache, source) as wire:
            node, handle = opened(wire)
            with cache.record(tmp_path / "trace.npz") as recorder:
                for offset in (0, 5 * PAGE):
                    assert wire.served(wire.read, node, handle, SMALL, offset)[1] == {"python": 1}
                assert recorder.nr_accesses == 2
            assert wire.served(wire.read, node, handle, SMALL, 0)[1] == {"read": 1}

    def test_files_that_write_through(self, wire):
        node, handle = opened(wire, os.O_RDWR | os.O_DSYNC)
        assert wire.served(wire.write, node, handle, b"x", 0)[1] == {"python": 1}
        assert wire.served(wire.read, node, handle, SMALL, 0)[1] == {"read": 1}

    def test_when_much_is_dirty(self, make_cache, source):
        cache = make_cache("4MiB", dirty_expire_s=3600)
        with Wire(cache, source) as wire:
            node, handle = opened(wire)
            for page in range(7):
                assert wire.served(wire.write, node, handle, b"x", page * PAGE)[1] == {"write": 1}
            cache.segment.set_dirty_limits(9, 5)  # writers are slowed down above seven
            assert wire.served(wire.write, node, handle, b"x", 0)[1] == {"write": 1}
            cache.segment.set_dirty_limits(8, 4)
            assert wire.served(wire.write, node, handle, b"x", 0)[1] == {"python": 1}

    def test_bits_of_the_mode(self, wire, source):
        """A program without the right to it leaves no set-user-id bit behind; a program with it does."""
        (source / "file").chmod(0o4755)
        node, handle = opened(wire)
        assert wire.served(wire.write, node, handle, b"x", 0)[1] == {"write": 1}
        assert stat.S_IMODE((source / "file").stat().st_mode) == 0o4755
        assert wire.served(wire.write, node, handle, b"x", 0, io_flags=KILL)[1] == {"python": 1}
        assert stat.S_IMODE((source / "file").stat().st_mode) == 0o755
        assert wire.served(wire.write, node, handle, b"x", 0, io_flags=KILL)[1] == {"write": 1}

    def test_files_that_others_have_changed(self, wire, source):
        node, handle = opened(wire)
        with open(source / "file", "r+b") as file:
            file.write(b"theirs")
            os.utime(file.fileno(), ns=(1, 1))
        assert wire.served(wire.write, node, handle, b"ours", 0) == ("ESTALE", {"python": 1})
        assert (source / "file").read_bytes()[:6] == b"theirs"

    def test_while_another_writes_or_truncates(self, wire):
        node, handle = opened(wire)
        mapping = wire.files.opened(handle).file.inode.mapping
        with mapping.inode_locked():
            answer = wire.begin(Opcode.WRITE, node, protocol.WRITE_IN.pack(handle, 0, 1, 0, 0, 0, 0) + b"x")
            assert wire.served(wire.read, node, handle, SMALL, PAGE)[1]["read"] == 1
        assert protocol.WRITE_OUT.unpack(answer())[0] == 1
        with mapping.exclusive():
            assert wire.served(wire.read, node, handle, LARGE, 0)[1] == {"python": 1}
            assert wire.served(wire.read, node, handle, SMALL, 0)[1] == {"read": 1}

    def test_an_append_is_done_once(self, wire, source):
        """Where it needs a new page it is Python's; in the last page it is the engine's."""
        data = (source / "file").read_bytes()
        node, handle = opened(wire)
        found = [wire.served(wire.write, node, handle, b"abc" * 1000, 0, flags=os.O_APPEND)[1] for _ in range(3)]
        assert found == [{"write": 1}, {"python": 1}, {"python": 1}] or found[0] == {"write": 1}
        own = wire.served(wire.write, node, handle, b"page", 0, flags=os.O_APPEND, io_flags=protocol.WRITE_CACHE)[1]
        assert own == {"write": 1}
        wire.release(node, handle)
        assert (source / "file").read_bytes() == b"page" + data[4:] + b"abc" * 3000


class TestAttributes:
    def test_after_a_write_they_are_the_caches(self, wire, source):
        node, handle = opened(wire)
        before = os.stat(source / "file")
        wire.write(node, handle, b"x" * PAGE, 100 * PAGE + 7)
        wire.write(node, handle, b"y", 0)
        fields, where = wire.served(wire.attributes, node)
        ino, size, blocks, _, mtime, ctime, _, mtime_ns, ctime_ns, mode, nlink, *_ = protocol.ATTR.unpack(fields)
        assert where == {"getattr": 1}
        assert (ino, size, mode, nlink) == (before.st_ino, 101 * PAGE + 7, before.st_mode, 1)
        assert blocks == -(-size // 512)  # 102 pages
        assert (mtime, mtime_ns) == (ctime, ctime_ns) > divmod(before.st_mtime_ns, 10**9)
        assert os.stat(source / "file").st_size == 100 * PAGE + 7
        wire.release(node, handle)
        after = os.stat(source / "file")
        assert (after.st_size, after.st_mtime_ns) == (size, mtime * 10**9 + mtime_ns)  # it was seen

    def test_a_time_that_was_not_seen_is_that_of_the_write_back(self, wire, source):
        node, handle = opened(wire)
        wire.write(node, handle, b"y", 0)
        written_ns = wire.files.opened(handle).state.mtime_ns
        wire.release(node, handle)
        assert os.stat(source / "file").st_mtime_ns != written_ns

    def test_while_the_times_are_given_to_the_source_python_waits(self, wire):
        node, handle = opened(wire)
        with wire.files.opened(handle).state.lock.held():
            answer = wire.begin(Opcode.GETATTR, node, protocol.GETATTR_IN.pack(0, 0, 0))
            assert wire.served(wire.read, node, handle, SMALL, 0)[1]["read"] == 1
        assert protocol.ATTR.unpack(answer()[protocol.ATTR_OUT.size :])[1] == 100 * PAGE + 7
        assert wire.served(wire.attributes, node)[1] == {"getattr": 1}

    def test_of_a_file_that_is_emptied_and_grown(self, wire):
        node, handle = opened(wire)
        for size in (0, 5 * PAGE + 1, 3):
            wire.truncate(node, handle, size)
            fields, where = wire.served(wire.attributes, node)
            assert (protocol.ATTR.unpack(fields)[1], where) == (size, {"getattr": 1})


class TestObjects:
    def test_reads_of_an_object_until_it_is_changed(self, make_cache):
        import fsspec

        from pagecache.adapters.fuse.object_files import ObjectFiles
        from pagecache.stores.fsspec_instances import instance_of

        system = fsspec.filesystem("memory")
        system.pipe("/engine/object", b"old" * PAGE)
        files = ObjectFiles(make_cache("4MiB"), instance_of(system))
        try:
            reader = files.open("/engine/object", os.O_RDONLY)
            buffer = bytearray(PAGE)
            assert files.read(reader, buffer, 0) == PAGE
            assert reads_here(files.handles, reader, PAGE)
            writer = files.open("/engine/object", os.O_RDWR)
            assert not reads_here(files.handles, reader, PAGE)
            files.write(writer, b"new", 0)
            assert files.read(reader, buffer, 0) == PAGE and buffer[:6] == b"newold"
            later = files.open("/engine/object", os.O_RDONLY)
            assert not reads_here(files.handles, later, PAGE)
            for number in (reader, writer, later):
                files.release(number)
        finally:
            system.rm("/engine", recursive=True)


def reads_here(served, number, nbytes):
    """Whether the engine answers a read of a handle by itself."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        body = protocol.READ_IN.pack(number, 0, nbytes, 0, 0, 0, 0)
        kernel.send(protocol.IN_HEADER.pack(protocol.IN_HEADER.size + len(body), Opcode.READ, 1, 1, 0, 0, 0, 0, 0) + body)
        kernel.shutdown(socket.SHUT_WR)
        return served.next_request(ours.fileno(), bytearray(protocol.REQUEST_BYTES)) == 0


class TestHandles:
    def test_numbers_never_come_twice(self):
        served = FuseHandles()
        seen, alive = set(), []
        rng = random.Random(1)
        for _ in range(3000):
            number = served.new()
            assert number not in seen and number > 0
            seen.add(number)
            alive.append(number)
            if rng.random() < 0.6:
                served.give_up(alive.pop(rng.randrange(len(alive))))
        assert len({number & 0xFFFF for number in seen}) < 2000  # places do

    def test_more_than_there_are_places(self, make_cache):
        served = FuseHandles()
        numbers = [served.new() for _ in range((1 << 16) + 10)]
        assert len(set(numbers)) == len(numbers)
        with make_cache("1MiB").open(MemoryStore(b"x" * PAGE)) as file:
            file.pread(1, 0)
            for number in (numbers[-1], numbers[0]):
                served.serve(number, file)
            assert [reads_here(served, number, 1) for number in (numbers[-1], numbers[0])] == [False, True]
            served.give_up(numbers[0])
            assert served.new() & 0xFFFF == numbers[0] & 0xFFFF
        for number in numbers[1:]:
            served.give_up(number)

    def test_giving_up_waits_for_threads_that_use_it(self, make_cache):
        """The reader's socket is full, so the answer cannot be written, and the file is still needed."""
        served, nbytes = FuseHandles(), 8 * PAGE
        kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with kernel, ours, make_cache("4MiB").open(MemoryStore(pages_of(nbytes))) as file:
            for _ in range(2):
                file.pread(nbytes, 0)
            number = served.new()
            served.serve(number, file)
            body = protocol.READ_IN.pack(number, 0, nbytes, 0, 0, 0, 0)
            header = protocol.IN_HEADER.pack(protocol.IN_HEADER.size + len(body), Opcode.READ, 1, 1, 0, 0, 0, 0, 0)
            ours.setblocking(False)
            filler = bytes(1000)
            with pytest.raises(BlockingIOError):
                while True:
                    ours.send(filler)
            ours.setblocking(True)
            kernel.send(header + body)
            kernel.shutdown(socket.SHUT_WR)
            server = threading.Thread(
                target=served.next_request, args=(ours.fileno(), bytearray(protocol.REQUEST_BYTES)), daemon=True
            )
            server.start()
            while file.mapping.trylock_exclusive():  # until it has everything, and writes
                file.mapping.unlock_exclusive()
                assert server.is_alive()
                time.sleep(0.001)
            giving_up = threading.Thread(target=served.give_up, args=(number,), daemon=True)
            giving_up.start()
            giving_up.join(0.2)
            assert giving_up.is_alive()
            while len(kernel.recv(1 << 20)) == len(filler):
                pass
            giving_up.join(30)
            server.join(30)
            assert not giving_up.is_alive() and not server.is_alive()

    def test_the_word_in_the_environment(self, monkeypatch):
        for word, kind in (("", FuseHandles), ("python", PythonHandles)):
            monkeypatch.setenv(ANSWERS, word)
            assert type(make_handles()) is kind
        monkeypatch.setenv(ANSWERS, "pyhton")
        with pytest.raises(ValueError, match="must be python"):
            make_handles()

    def test_systems_without_fuse(self, monkeypatch):
        def without():
            raise OSError(errno.ENOSYS, "none here")

        monkeypatch.delenv(ANSWERS, raising=False)
        monkeypatch.setattr(handles, "FuseHandles", without)
        assert type(make_handles()) is PythonHandles

    def test_status_counts_writes(self, tmp_path):
        with open(tmp_path / "file", "wb") as file:
            status = FuseStatus(file.fileno())
            assert (status.written, status.settled, status.mtime_ns, status.has_privileges) == (0, 0, 0, False)
            status.touch()
            assert status.written == 1 and status.mtime_ns > 10**18


def test_a_mount_that_is_gone_before_its_first_request(make_cache, source, monkeypatch):
    wire = Wire(make_cache("1MiB"), source)
    monkeypatch.setattr(session.os, "readv", lambda *_: (_ for _ in ()).throw(OSError(errno.ENODEV, "gone")))
    wire.session.start()
    wire.session.wait()
    wire.session.end()
    wire.kernel.close()
    wire.operations.finish()


class TestThreads:
    def test_reads_beside_truncation_see_no_zeros(self, make_cache, tmp_path):
        """A read returns bytes from before a truncation, or ends at the new size; nothing between."""
        (tmp_path / "file").write_bytes(b"A" * (256 * PAGE))
        with Wire(make_cache("4MiB"), tmp_path) as wire:
            node, handle = opened(wire)
            ending, wrong = threading.Event(), []

            def look(nbytes):
                while not ending.is_set():
                    found = wire.read(node, handle, nbytes, 0)
                    if found.strip(b"A"):
                        wrong.append(found)

            readers = [threading.Thread(target=look, args=(nbytes,)) for nbytes in (LARGE, LARGE + 100, 3 * PAGE)]
            for reader in readers:
                reader.start()
            rng = random.Random(1)
            for _ in range(2000 if STRESS else 150):
                size = rng.randrange(1, LARGE)
                wire.truncate(node, handle, size)
                wire.write(node, handle, b"A" * (LARGE - size + 50), size)
            ending.set()
            for reader in readers:
                reader.join()
            counts = wire.counts()
        assert not wrong
        assert counts["read"] > 0

    def test_handles_that_come_and_go_beside_reads_and_writes(self, make_cache, tmp_path):
        """Each thread has places of a file of its own, which it compares with what it wrote there, through handles that it
        opens and closes while others are in the middle of requests for the same file."""
        nr_threads, nr_pages = 4, 40
        (tmp_path / "file").write_bytes(bytes(nr_threads * nr_pages * PAGE))
        with Wire(make_cache("512KiB"), tmp_path) as wire:
            node = wire.lookup("file")
            failed = []

            def work(number):
                rng, model = random.Random(number), {}
                try:
                    for _ in range(60 if STRESS else 8):
                        handle = wire.open(node)
                        for _ in range(40):
                            page = rng.randrange(nr_pages) * nr_threads + number
                            if rng.random() < 0.4:
                                model[page] = bytes([rng.randrange(256)]) * PAGE
                                wire.write(node, handle, model[page], page * PAGE)
                            else:
                                expected = model.get(page, bytes(PAGE))
                                assert wire.read(node, handle, PAGE, page * PAGE) == expected, page
                            if rng.random() < 0.1:
                                assert protocol.ATTR.unpack(wire.attributes(node))[1] == nr_threads * nr_pages * PAGE
                        wire.release(node, handle)
                    models.update(model)
                except BaseException as error:
                    failed.append(error)
                    raise

            models = {}
            threads = [threading.Thread(target=work, args=(number,)) for number in range(nr_threads)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            counts = wire.counts()
        assert not failed
        data = (tmp_path / "file").read_bytes()
        assert all(data[page * PAGE : (page + 1) * PAGE] == content for page, content in models.items())
        assert counts["read"] > 0 and counts["write"] > 0


@needs_fuse()
class TestMounts:
    @pytest.mark.parametrize("kind", KINDS)
    def test_says_where_requests_were_answered(self, mounted, kind):
        with mounted(*KINDS[kind]) as mount:
            (mount.source / "file").write_bytes(b"x" * LARGE)
            with open(mount.path / "file", "r+b", buffering=0) as file:
                for _ in range(3):
                    assert os.pread(file.fileno(), LARGE, 0) == b"x" * LARGE
                    os.pwrite(file.fileno(), b"x", 0)
                    assert os.fstat(file.fileno()).st_size == LARGE
            words = os.getxattr(mount.path, "user.pagecache.requests").split()
            counts = {name: int(number) for name, number in (word.split(b"=") for word in words)}
        assert set(counts) == {b"read", b"write", b"getattr", b"python"}
        here = [counts[name] for name in (b"read", b"write", b"getattr")]
        assert here == [0, 0, 0] if kind == "by_python" else here[1] > 0
        assert counts[b"python"] > 0
