"""Every way to read x every fault x every kind of request: the error that there is without a cache, or a truer one, never
wrong data; and right data as soon as the server is well.

Each cell runs twice, without a cache and with one, and the two are compared. Cells that cannot happen have a reason
(`reason_not`), are counted, and are shown not to happen.
"""

import collections
import contextlib
import errno
import itertools
import re

import pytest
from support import STRESS
from support.faulty_http import FAULTS, WHEN, FaultyServer

import pagecache

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("numpy", reason="numpy is not installed")
from support.fault_clients import CLIENTS, Files

CONNECTIONS = 8  # more than a client keeps
REQUESTS = (*WHEN, "second range")
ABSENT = re.compile(r"no such file|not found|no files found|does not exist|no such object|\b404\b")
DENIED = re.compile(r"\b403\b|forbidden|too many levels of symbolic links")
CHANGED = re.compile(r"\b412\b|was replaced|changed while")
IS_OF_FILES = {name: name.startswith(("PageCacheStore(LocalStore)", "PageCacheStore(ZipStore)")) for name in CLIENTS}


def kind_of(error):
    """Return what an error says of the object: "absent", "denied", "changed", or nothing but that it "failed"."""
    chain = []
    while error is not None and error not in chain:
        if isinstance(error, ExceptionGroup):  # as Zarr 3.4 has it of a store without a cache
            error = error.exceptions[0]
        chain.append(error)
        error = error.__cause__ or error.__context__
    text = " ".join(str(each) for each in chain).lower()
    if any(getattr(each, "errno", None) == errno.ESTALE for each in chain) or CHANGED.search(text):
        return "changed"
    if isinstance(chain[0], FileNotFoundError) or ABSENT.search(text):
        return "absent"
    if isinstance(chain[0], PermissionError) or DENIED.search(text):
        return "denied"
    return "failed"


# What happened; another length stated than served is what another object looks like.
TRUE_KINDS = {fault: {"failed"} for fault in FAULTS} | {
    "404": {"absent", "changed"}, "403": {"denied"}, "changed": {"changed"}, "too short": {"failed", "changed"},
    "too long": {"failed", "changed"},
}  # fmt: skip


OTHER_ANSWERS = "files have no servers that answer so"
ONE_WAY = "a file says its size, and its bytes, where it is opened: what fails there fails for both"
ONE_REQUEST = "a value is brought by one request"


def reason_not(client, fault, when):
    """Return why a cell cannot happen, or None."""
    if IS_OF_FILES[client]:
        return OTHER_ANSWERS if fault not in Files.FAULTS else ONE_WAY if when != "first" else None
    if client in ("PageCacheStore(FsspecStore)", "PageCacheStore(ObjectStore)") and when == "second range":
        return ONE_REQUEST
    return None


CELLS = list(itertools.product(CLIENTS, FAULTS, REQUESTS))


def is_run(client, fault, when):
    """Whether a cell is of the selection: each client with each fault, by one kind of request; a change by the last one,
    which finds bytes of before. All if tests run for long, also requests that are never made."""
    if STRESS and not IS_OF_FILES[client]:
        return True
    possible = [each for each in REQUESTS if reason_not(client, fault, each) is None]
    number = -1 if fault == "changed" else (list(CLIENTS).index(client) + FAULTS.index(fault)) % max(1, len(possible))
    return bool(possible) and possible[number] == when


class Server(FaultyServer):
    """A faulty server whose objects change into others that their libraries can read."""

    def __init__(self):
        self.next_objects = {}
        super().__init__()

    def put_all(self, objects):
        for name, data in objects.items():
            self.put(name, data)

    def _make(self, fault, answer):
        if fault == "changed":
            self.put_all(self.next_objects)
            self.answer_again(answer)
        else:
            super()._make(fault, answer)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: both versions of what a client reads, and what is read of each."""
    known = {}

    def of(kind):
        if kind not in known:
            versions = CLIENTS[kind].versions(tmp_path_factory.mktemp("versions"))
            seen = []
            with pagecache.PageCache("8MiB") as cache, served(kind, tmp_path_factory.mktemp("served")) as server:
                for objects in versions:
                    server.put_all(objects)
                    client = CLIENTS[kind](server, cache)
                    seen.append(client.read())
                    client.close()
            assert seen[0] != seen[1]
            known[kind] = (versions, seen)
        return known[kind]

    return of


def served(kind, directory):
    return Files(directory) if IS_OF_FILES[kind] else Server()


def side_of(kind, server, cache, versions, fault, when):
    """Read with a fault. Returns the client, and what came of it: the data or an error."""
    server.put_all(versions[0])
    server.next_objects = versions[1]
    client = CLIENTS[kind](server, cache)
    client.prepare(when)
    server.struck.clear()
    numbers = itertools.count(1)
    is_second = lambda answer: answer.is_range_request and next(numbers) == 2  # noqa: E731
    server.fail(fault, is_second if when == "second range" else when, path=client.path)
    try:
        found = client.read()
    except client.errors as error:
        found = error
    return client, found


def again(client, server, is_changed):
    """Have the server well, and read once more."""
    was_stopped = "stopped" in server.struck
    server.heal()
    if was_stopped:  # clients meet connections that the server has closed
        for _ in range(CONNECTIONS):
            with contextlib.suppress(Exception):
                client.read()
    if is_changed:
        client.look_again()
    return client.read()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "fault", "when"), [cell for cell in CELLS if is_run(*cell)])
def test_as_without_a_cache_or_better_and_well_afterwards(made, tmp_path, make_cache, kind, fault, when):
    versions, right = made(kind)
    with served(kind, tmp_path) as server:
        client, plain = side_of(kind, server, None, versions, fault, when)
        plain_struck = list(server.struck)
        server.heal()
        client.close()
        client, found = side_of(kind, server, make_cache("8MiB"), versions, fault, when)
        struck = list(server.struck)
        assert bool(struck) == (reason_not(kind, fault, when) is None)
        compare(client, fault, plain, plain_struck, found, struck, right)
        wanted = right[1] if "changed" in struck else right[0]
        is_believed = fault == "404" and client.looks_anew
        assert again(client, server, "changed" in struck or is_believed or client.looks_anew) == wanted
        assert client.read() == wanted
        client.close()


def compare(client, fault, plain, plain_struck, found, struck, right):
    """Check what came with a cache against what came without."""
    if not isinstance(found, Exception):
        is_absent = fault == "404" and struck and found == "fill"
        assert is_absent or client.is_right(found, right[:2] if "changed" in struck else right[:1]), (
            f"wrong data; without a cache: {short(plain)}"
        )
        return
    assert struck, f"there was no fault, but {found!r}"
    kind, is_true = kind_of(found), kind_of(found) in TRUE_KINDS[fault]
    if isinstance(plain, Exception):
        assert is_true or kind == kind_of(plain), f"{found!r}; without a cache: {plain!r}"
    else:
        assert is_true, f"{found!r}; without a cache: {short(plain)}"
    assert kind != "absent" or fault == "404" or client.is_opened_by_library, f"{found!r}; without a cache: {plain!r}"


def short(found):
    return repr(found)[:200]


def test_the_table_is_whole():
    """Each client meets each fault that it can meet in every run, and what it cannot meet is counted."""
    assert (len(CLIENTS), len(FAULTS), len(REQUESTS), len(CELLS)) == (20, 11, 4, 880)
    reasons = collections.Counter(reason for cell in CELLS if (reason := reason_not(*cell)) is not None)
    assert reasons == {OTHER_ANSWERS: 4 * 5 * 4, ONE_WAY: 4 * 6 * 3, ONE_REQUEST: 2 * 11}
    possible = {(client, fault) for client, fault, when in CELLS if reason_not(client, fault, when) is None}
    assert possible == {(client, fault) for client, fault, when in CELLS if is_run(client, fault, when)}
