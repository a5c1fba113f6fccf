"""The frames between peers and the handshake: what is no frame ends a connection, and never a process or a byte."""

import contextlib
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PATIENCE_S, STRESS, few, pages_of
from support.peer_support import EXTENT, FakePeer, Machine, Objects, head, machines

from pagecache.adapters.peers import protocol, transport
from pagecache.adapters.peers.client import PeerClient, PeerFailedError, PeerRefusedError
from pagecache.adapters.peers.protocol import ANSWER, REQUEST, ProtocolError, Request

DATA = pages_of(4 * EXTENT)
numbers = st.integers(0, (1 << 32) - 1)
requests = st.builds(
    Request, numbers, st.integers(0, 255), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 60),
    st.integers(1, protocol.REQUEST_BYTES_MAX), st.text(max_size=99), st.text(max_size=99), st.text(max_size=99),
)  # fmt: skip


def is_encodable(*texts):
    try:
        return sum(len(text.encode()) for text in texts) >= 0
    except UnicodeEncodeError:
        return False


class TestFrames:
    @given(requests.filter(lambda request: is_encodable(*request[5:])))
    @few(100)
    def test_a_request_comes_back(self, request):
        frame = protocol.encode_request(request)
        fields, lengths = protocol.decode_request_head(frame[: REQUEST.size])
        assert protocol.decode_request(fields, lengths, frame[REQUEST.size :]) == request

    @given(st.binary(min_size=REQUEST.size, max_size=REQUEST.size), st.binary(min_size=ANSWER.size, max_size=ANSWER.size))
    @few(200)
    def test_garbage_is_refused_or_within_bounds(self, noise, answer_noise):
        request = Request(1, 0, 1, 0, 4096, "k", "v", "n")
        for damaged in (noise, protocol.MAGIC + b"\x01" + noise[5:]):
            with contextlib.suppress(ProtocolError):
                (_, _, _, offset, nbytes), lengths = protocol.decode_request_head(damaged)
                assert offset + nbytes <= 1 << 63
                assert nbytes <= protocol.REQUEST_BYTES_MAX
                assert max(lengths) <= protocol.STRING_BYTES_MAX
        for damaged in (answer_noise, protocol.MAGIC + answer_noise[4:]):
            with contextlib.suppress(ProtocolError):
                answer = protocol.decode_answer(damaged, request)
                assert answer.number == 1
                assert answer.nbytes == (4096 if answer.kind == protocol.DATA else 0)

    @pytest.mark.parametrize(
        "request_", [Request(1, 0, 1, 0, 0, "k", "v", "n"), Request(1, 0, 1, 0, 1, "k" * 9000, "v", "n"),
                     Request(1, 0, 1, -1, 1, "k", "v", "n"), Request(1, 0, 1, 0, 1, "\udc80", "v", "n")],
    )  # fmt: skip
    def test_what_no_receiver_would_accept_is_not_sent(self, request_):
        with pytest.raises(ProtocolError):
            protocol.encode_request(request_)


def connect(machine, secret=b""):
    """Return a connection to a member's page server, past the handshake."""
    connection = transport.dial(machine.group.me, False, PATIENCE_S, None)
    connection.settimeout(PATIENCE_S)
    transport.greet_as_client(connection, secret)
    return connection


def ask(connection, request):
    """Return the answer to a request: its header and data; PENDING is passed over."""
    transport.send(connection, [protocol.encode_request(request)])
    while True:
        answer = protocol.decode_answer(transport.receive(connection, ANSWER.size), request)
        if answer.kind != protocol.PENDING:
            return answer, bytes(transport.receive(connection, answer.nbytes))


GOOD = Request(7, 0, 1, EXTENT, EXTENT, "origin:a", "version 1", "origin://a")


@pytest.fixture(scope="module")
def machine():
    objects = Objects()
    objects.put("a", DATA)
    with machines(objects, 1) as (made,):
        yield made


class TestServer:
    def test_answers(self, machine):
        with connect(machine) as connection:
            for _ in range(3):
                answer, data = ask(connection, GOOD)
                assert (answer.kind, data) == (protocol.DATA, DATA[EXTENT : 2 * EXTENT])

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"offset": EXTENT - 4096}, protocol.NOT_MINE),  # of two extents
            ({"offset": 4 * EXTENT}, protocol.FAILED),  # behind the end
            ({"validator": "version 2"}, protocol.STALE),
            ({"key": "origin:b", "name": "origin://b"}, protocol.UNKNOWN),
            ({"key": "origin:b"}, protocol.UNKNOWN),  # the name is that of another object
        ],
    )
    def test_refuses_and_goes_on(self, machine, change, reason):
        with connect(machine) as connection:
            answer, _ = ask(connection, GOOD._replace(**change))
            assert (answer.kind, answer.reason) == (protocol.REFUSED, reason)
            assert ask(connection, GOOD)[1] == DATA[EXTENT : 2 * EXTENT]

    def test_another_epoch_makes_no_difference_where_the_owner_is_the_same(self, machine):
        with connect(machine) as connection:
            assert ask(connection, GOOD._replace(epoch=99))[1] == DATA[EXTENT : 2 * EXTENT]

    @given(st.data())
    @few(60)
    def test_garbage_ends_the_connection_only(self, machine, data):
        frame = bytearray(protocol.encode_request(GOOD))
        how = data.draw(st.sampled_from(["noise", "truncated", "damaged", "oversized"]))
        if how == "noise":
            frame = bytearray(data.draw(st.binary(min_size=1, max_size=200)))
        elif how == "truncated":
            del frame[data.draw(st.integers(0, len(frame) - 1)) :]
        elif how == "damaged":
            frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
        else:
            frame[REQUEST.size - 10 : REQUEST.size] = b"\xff" * 10
        received = b""
        with connect(machine) as connection, contextlib.suppress(ConnectionError, OSError):
            connection.sendall(frame)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 20):
                received += piece
        self.check_is_no_lie(received)
        with connect(machine) as connection:
            assert ask(connection, GOOD)[1] == DATA[EXTENT : 2 * EXTENT]

    def check_is_no_lie(self, received):
        """What was answered to a damaged frame is bytes of the object where the answer says so: the offset may differ."""
        while received:
            kind, nbytes = received[4], int.from_bytes(received[ANSWER.size - 4 : ANSWER.size], "big")
            body = received[ANSWER.size : ANSWER.size + nbytes]
            assert kind in (protocol.DATA, protocol.PENDING, protocol.REFUSED)
            assert body in DATA
            received = received[ANSWER.size + nbytes :]

    def test_requests_one_after_the_other_without_waiting(self, machine):
        with connect(machine) as connection:
            asked = [GOOD._replace(number=n, offset=n % 4 * EXTENT, nbytes=4096 * (1 + n % 3)) for n in range(20)]
            transport.send(connection, [protocol.encode_request(request) for request in asked])
            for request in asked:
                while True:
                    answer = protocol.decode_answer(transport.receive(connection, ANSWER.size), request)
                    if answer.kind == protocol.DATA:
                        break
                expected = DATA[request.offset : request.offset + request.nbytes]
                assert transport.receive(connection, request.nbytes) == expected

    def test_many_connections(self, machine):
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connect(machine)) for _ in range(100)]
            for connection in connections:
                assert ask(connection, GOOD)[1] == DATA[EXTENT : 2 * EXTENT]


class TestSecret:
    def test_without_it_nothing_is_said(self):
        objects = Objects()
        objects.put("a", DATA)
        with machines(objects, 1, secret="right") as (machine,):
            for secret in (b"wrong", b""):
                with pytest.raises((EOFError, OSError, ProtocolError)):
                    connect(machine, secret)
            with connect(machine, b"right") as connection:
                assert ask(connection, GOOD)[1] == DATA[EXTENT : 2 * EXTENT]

    def test_a_client_that_believes_everything_is_not_answered(self):
        objects = Objects()
        objects.put("a", DATA)
        with machines(objects, 1, secret="right") as (machine,):
            with transport.dial(machine.group.me, False, PATIENCE_S, None) as connection:
                said = transport.receive(connection, len(transport.HELLO) + transport.NONCE_BYTES)
                proof = bytes(transport.PROOF_BYTES)
                with contextlib.suppress(OSError):
                    connection.sendall(bytes(said) + proof + protocol.encode_request(GOOD))
                received = b""
                with contextlib.suppress(ConnectionError):
                    while piece := connection.recv(4096):
                        received += piece
                assert received == b""
            assert machine.group.stats()["served_requests"] == 0

    def test_a_server_without_it_is_not_believed(self):
        with FakePeer(lambda connection, request: None, secret=b"other") as peer:
            client = PeerClient(peer.member, is_near=False, secret=b"right", timeout_s=PATIENCE_S)
            with pytest.raises(PeerFailedError):
                client.fetch(GOOD, [memoryview(bytearray(EXTENT))])
            assert peer.nr_requests == 0

    def test_needed_where_others_can_come(self):
        with pytest.raises(ValueError, match="give the group a secret"):
            Machine(Objects(), me="0.0.0.0:0")


ANSWERS = st.sampled_from(["noise", "half", "short", "long", "number", "kind", "refused", "pending", "close", "good"])


class TestClient:
    """Whatever a peer answers, the client has the right bytes, or says that it has none."""

    @given(st.lists(ANSWERS, min_size=1, max_size=6), st.binary(min_size=ANSWER.size, max_size=300))
    @few(40 if not STRESS else 1000)
    def test_all_answers(self, script, noise):
        answers = iter(script)

        def answer(connection, request):
            how = next(answers, "close")
            data = DATA[request.offset : request.offset + request.nbytes]
            frames = {
                "noise": [noise],
                "half": [head(protocol.DATA, request), data[: len(data) // 2]],
                "short": [head(protocol.DATA, request, nbytes=len(data) - 1), data],
                "long": [head(protocol.DATA, request, nbytes=(1 << 32) - 1), data],
                "number": [head(protocol.DATA, request, number=request.number ^ 1), data],
                "kind": [head(protocol.GET, request), data],
                "refused": [head(protocol.REFUSED, request, reason=protocol.STALE)],
                "pending": [head(protocol.PENDING, request)] * 3,
                "close": [],
                "good": [head(protocol.PENDING, request), head(protocol.DATA, request), data],
            }
            transport.send(connection, frames[how] or [b""])
            if how not in ("refused", "good"):
                connection.shutdown(socket.SHUT_WR)

        with FakePeer(answer) as peer:
            client = PeerClient(peer.member, is_near=False, secret=b"", timeout_s=PATIENCE_S, patience_s=PATIENCE_S)
            for number, how in enumerate(script):
                buffers = [memoryview(bytearray(size)) for size in (1, 4095, 8192, EXTENT - 12288)]
                try:
                    client.fetch(GOOD, buffers)
                    found = "good"
                except PeerRefusedError:
                    found = "refused"
                except PeerFailedError:
                    found = "failed"
                assert found == (how if how in ("good", "refused") else "failed")
                if found == "good":
                    assert b"".join(buffers) == DATA[EXTENT : 2 * EXTENT]
                assert peer.nr_requests == number + 1, "one attempt for each request"
            client.close()

    def test_as_many_at_once_as_connections(self):
        entered, go_on = threading.Semaphore(0), threading.Event()

        def answer(connection, request):
            entered.release()
            go_on.wait(PATIENCE_S)
            transport.send(connection, [head(protocol.DATA, request), DATA[: request.nbytes]])

        with FakePeer(answer) as peer:
            client = PeerClient(peer.member, is_near=False, secret=b"", timeout_s=PATIENCE_S, limit=3)
            threads = [
                threading.Thread(target=client.fetch, args=(GOOD, [memoryview(bytearray(EXTENT))])) for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for _ in range(3):
                assert entered.acquire(timeout=PATIENCE_S)
            assert peer.nr_requests == 3
            go_on.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert peer.nr_requests == 6
            client.close()
