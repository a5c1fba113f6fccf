"""Random reads through a server that fails in every way there is, against a model, with hardly any page frames and with
plenty: whatever the server says, the bytes are the object's, and no error comes from it."""

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, PATIENCE_S, checked_cache, few, pages_of
from support.second_level_support import EXTENT, Origin, TieredStore

from pagecache.adapters.valkey import SecondLevel
from pagecache.adapters.valkey.connections import MemcachedProtocol, ValkeyProtocol

FAULTS = ("well", "well", "well", "refuses", "cuts", "is silent", "flips", "forgets", "babbles", "miscounts", "is gone",
          "shifts")  # fmt: skip
SIZE = 5 * EXTENT + 3 * PAGE + 77


class FlakyServer:
    """Values in this process, answered in Valkey's protocol over socket pairs, rightly or in the way that `fault` says."""

    def __init__(self):
        self.values = {}
        self.fault = "well"
        self.number = 0
        self.nr_asked = 0
        self._lock = threading.Lock()

    def dial(self):
        if self.fault == "is gone":
            raise ConnectionRefusedError("gone")
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(ours,), daemon=True).start()
        return theirs

    def _serve(self, connection):
        with connection, connection.makefile("rb") as stream:
            try:
                while line := stream.readline():
                    words = []
                    for _ in range(int(line[1:])):
                        nbytes = int(stream.readline()[1:])
                        words.append(stream.read(nbytes + 2)[:-2])
                    if not self._answer(connection, words):
                        return
            except (OSError, ValueError):
                return

    def _answer(self, connection, words):
        with self._lock:
            fault, self.number = self.fault, self.number + 1
            self.nr_asked += words[0] == b"MGET"
            if fault == "refuses":
                answer = b"-OOM command not allowed\r\n"
            elif words[0] == b"SET":
                self.values[words[1]] = words[2]
                answer = b"+OK\r\n"
            else:
                answer = self._values(words[1:], fault)
        if fault == "babbles":
            answer = b"\x00\xff what?\r\n" * 3
        if fault == "is silent":
            return True
        if fault == "cuts":
            connection.sendall(answer[: len(answer) // 2])
            return False
        connection.sendall(answer)
        return True

    def _values(self, names, fault):
        found = [self.values.get(name) for name in names]
        if fault == "forgets":
            self.values.clear()
            found = [None] * len(names)
        if fault == "shifts":  # each name gets the value of another
            found = found[1:] + found[:1] if len(found) > 1 else [next(iter(self.values.values()), None)]
        if fault == "miscounts":
            found.append(None)
        if fault == "flips":
            found = [self._flipped(value) for value in found]
        parts = [b"*%d\r\n" % len(found)]
        for value in found:
            parts.append(b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value))
        return b"".join(parts)

    def _flipped(self, value):
        if value is None:
            return None
        at = (self.number * 7919) % len(value)
        return value[:at] + bytes([value[at] ^ 1 << self.number % 8]) + value[at + 1 :]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, SIZE), st.sampled_from([1, 100, PAGE, 3 * PAGE, EXTENT, 3 * EXTENT])),
        st.tuples(st.just("fault"), st.sampled_from(FAULTS), st.just(0)),
        st.tuples(st.sampled_from(["replace", "drop", "flush"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(steps=STEPS, small_queue=st.booleans())
@few(25)
def test_whatever_the_server_does_the_bytes_are_right(frames, steps, small_queue):
    server = FlakyServer()
    origin = Origin(pages_of(SIZE))
    queue = 2 * EXTENT if small_queue else "1MiB"
    settings = {"extent_bytes": EXTENT, "timeout_s": 0.02, "patience_s": 0.05, "suspect_s": 0.0, "queue_bytes": queue}
    with SecondLevel("memcached://127.0.0.1", **settings) as level, checked_cache(frames) as cache:
        level._dial, level._protocol = server.dial, ValkeyProtocol(60)
        file = cache.open(TieredStore(origin, level))
        for what, first, second in steps:
            if what == "read":
                assert file.pread(second, first) == origin.data[first : first + second]
            elif what == "fault":
                server.fault = first
            elif what == "replace":
                origin.data = bytes(255 - byte for byte in origin.data)
                origin.version += "x"
                file.close()
                file = cache.open(TieredStore(origin, level))
            elif what == "drop":
                cache.drop_caches()
            else:
                assert level.flush(PATIENCE_S)
        server.fault = "well"
        level.flush(PATIENCE_S)
        assert file.pread(SIZE, 0) == origin.data
        assert level.stats()["queue_bytes_max"] <= level._fills.limit_bytes
        assert level.flights == {}
        file.close()


def test_the_server_of_this_test_is_asked_and_is_believed_when_it_is_well():
    """The test above would be worthless if all bytes came from the origin."""
    server, origin = FlakyServer(), Origin(pages_of(SIZE))
    with SecondLevel("memcached://127.0.0.1", extent_bytes=EXTENT, suspect_s=0.0) as level:
        level._dial, level._protocol = server.dial, ValkeyProtocol()
        for _ in range(2):
            with checked_cache(64) as cache, cache.open(TieredStore(origin, level)) as file:
                assert file.read() == origin.data
            assert level.flush(PATIENCE_S)
        assert origin.bytes_read() == SIZE
        assert server.nr_asked > 0


class Answers:
    """A connection on which everything was said before."""

    def __init__(self, protocol, answer, limit=1000):
        from pagecache.adapters.valkey.connections import Wire

        ours, theirs = socket.socketpair()
        self.ours = ours
        ours.sendall(answer)
        ours.shutdown(socket.SHUT_WR)
        self.wire = Wire(theirs, 1.0, limit)
        self.wire.ends_at = float("inf")
        self.protocol = protocol

    def get(self, *names):
        found = {}
        try:
            self.protocol.get_many(self.wire, names, lambda position, value: found.update({position: bytes(value)}))
        finally:
            self.ours.close()
            self.wire.close()
        return found


WORDS = [b"*1\r\n", b"*-1\r\n", b"$3\r\n", b"$-1\r\n", b"$9999999999\r\n", b"VALUE a 0 3\r\n",
         b"VALUE a 0 999999999999\r\n", b"VALUE\r\n",
         b"VALUE b 0 1\r\n", b"END\r\n", b"-ERR no\r\n", b"SERVER_ERROR no\r\n", b"abc", b"\r\n"]  # fmt: skip


class TestProtocols:
    def test_values_of_any_length_and_none(self):
        big = bytes(range(256)) * 3
        answer = b"*4\r\n$0\r\n\r\n$-1\r\n$768\r\n%b\r\n$2\r\n\r\n\r\n" % big
        assert Answers(ValkeyProtocol(), answer).get(b"a", b"b", b"c", b"d") == {0: b"", 2: big, 3: b"\r\n"}
        answer = b"VALUE c 0 768\r\n%b\r\nVALUE a 0 0\r\n\r\nEND\r\n" % big
        assert Answers(MemcachedProtocol(), answer).get(b"a", b"b", b"c") == {0: b"", 2: big}

    def test_what_is_too_large_is_passed_over(self):
        answer = b"*2\r\n$70000\r\n%b\r\n$1\r\nx\r\n" % bytes(70_000)
        assert Answers(ValkeyProtocol(), answer).get(b"a", b"b") == {0: b"", 1: b"x"}

    @pytest.mark.parametrize("protocol", [ValkeyProtocol(), MemcachedProtocol()])
    @given(answer=st.binary(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=9).map(b"".join))
    @few(60)
    def test_any_answer_is_taken_or_refused_cleanly(self, protocol, answer):
        from pagecache.adapters.valkey.connections import ServerRefusedError

        try:
            Answers(protocol, answer).get(b"a")
        except (OSError, EOFError, ServerRefusedError):
            pass

    def test_what_comes_in_drops_is_given_up(self):
        """Each drop ends a silence; the whole has its time all the same."""
        connection = Answers(ValkeyProtocol(), b"*1\r\n$100\r\n")
        connection.wire.ends_at = 0.0
        with pytest.raises(TimeoutError, match="too slowly"):
            connection.get(b"a")
