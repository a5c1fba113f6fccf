"""The server of faults does each fault once, and is well again."""

import contextlib
import gzip
import http.client
import urllib.parse

import pytest
from support import pages_of
from support.faulty_http import (
    FAULTS,
    MATRIX,
    FaultyServer,
    begins_earlier,
    changed,
    content_range,
    head_and_get,
    head_says_nothing,
    manners,
    refuses_head,
    states_no_length,
    stored_as_gzip,
)

DATA = pages_of(20_000)
PART = {"Range": "bytes=1000-1999"}


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


def ask(url, method="GET", headers=()):
    """Return (status, headers, body), or raise what http.client raises."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, f"{parts.path}?{parts.query}", headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


REQUESTS = {"first": ("HEAD", {}), "size": ("HEAD", {}), "range": ("GET", PART)}


@pytest.mark.parametrize(("fault", "when"), MATRIX)
def test_each_fault_strikes_once(server, fault, when):
    url = server.put("object", DATA)
    right = {"HEAD": (200, b""), "GET": (206, DATA[1000:2000])}
    server.fail(fault, when)
    method, headers = REQUESTS[when]
    if when == "range":  # others go well
        assert ask(url, "HEAD")[0] == 200
        assert ask(url)[2] == DATA
    try:
        status, said, body = ask(url, method, headers)
    except (OSError, http.client.HTTPException):
        assert fault in ("cut in headers", "cut in body", "stopped")
    else:
        length = int(said["Content-Length"] or -1)  # http.client takes the end of the connection for that of the headers
        expected = {"HEAD": (200, len(DATA)), "GET": (206, 1000)}[method]
        if fault.isdigit():
            assert status == int(fault)
        elif fault in ("too short", "too long"):
            assert status == expected[0]
            assert (length < expected[1]) == (fault == "too short") != (length > expected[1])
        elif fault == "changed":
            assert body in (b"", changed(DATA)[1000:2000])
            assert said["ETag"] == server.find("/object")[1]
            assert server.data("object") == changed(DATA)
        elif fault == "cut in headers":
            assert length == -1
        else:
            assert (fault, method) == ("cut in body", "HEAD")  # which has none
    assert server.struck == [fault]
    if fault == "stopped":
        with pytest.raises(OSError, match="refused"):
            ask(url)
    server.heal()
    if fault == "changed":
        right["GET"] = (206, changed(DATA)[1000:2000])
    for method, headers in REQUESTS.values():
        status, _, body = ask(url, method, headers)
        assert (status, body) == right[method]
    assert server.struck == [fault]


def test_unknown_names_are_refused(server):
    with pytest.raises(ValueError, match="no fault is named"):
        server.fail("506")
    with pytest.raises(AssertionError, match="a request is one of"):
        server.fail("503", when="sometimes")
    assert len(set(FAULTS)) == 11


def test_path_and_times(server):
    one, other = server.put("one", DATA), server.put("other", DATA)
    server.fail("503", path="one", times=2)
    assert [ask(url)[0] for url in (one, other, one, one, other)] == [503, 200, 503, 200, 200]


def test_request_of_ones_own_choice(server):
    url = server.put("object", DATA)
    server.fail("404", when=lambda answer: answer.span == (1000, 2000))
    assert ask(url)[0] == 200
    assert ask(url, headers=PART)[0] == 404


class TestManners:
    def test_refused_head(self, server):
        url = server.put("object", DATA)
        server.rewrite = refuses_head(403)
        assert ask(url, "HEAD")[0] == 403
        assert ask(url)[2] == DATA
        server.rewrite = refuses_head(None)
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert "Content-Length" not in ask(url, "HEAD")[1]

    def test_lengths_that_are_not_said(self, server):
        url = server.put("object", DATA)
        server.rewrite = head_says_nothing()
        assert "Content-Length" not in ask(url, "HEAD")[1]
        server.rewrite = head_says_nothing(0)
        assert ask(url, "HEAD")[1]["Content-Length"] == "0"
        assert ask(url)[2] == DATA
        server.rewrite = states_no_length
        status, said, body = ask(url, headers=PART)
        assert (status, said["Content-Range"], body) == (206, "bytes 1000-1999/*", DATA[1000:2000])
        assert "Content-Length" not in said
        assert ask(url, headers={"Range": "bytes=-1"})[1]["Content-Range"] == "bytes 19999-19999/*"

    def test_headers_of_each_method(self, server):
        url = server.put("object", DATA, etag='"one"')
        server.rewrite = manners(head_and_get({"ETag": 'W/"one"'}, {"X-Which": "get", "Accept-Ranges": ""}))
        assert ask(url, "HEAD")[1]["ETag"] == 'W/"one"'
        said = ask(url)[1]
        assert (said["ETag"], said["X-Which"], said["Accept-Ranges"]) == ('"one"', "get", None)

    def test_parts(self, server):
        url = server.put("object", DATA)
        server.rewrite = manners(begins_earlier(10), content_range("Bytes={first}-{last}/{size}"))
        status, said, body = ask(url, headers=PART)
        assert (status, said["Content-Range"]) == (206, "Bytes=990-2009/20000")
        assert body == DATA[990:2010]

    def test_stored_as_gzip(self, server):
        url = server.put("object", DATA)
        server.rewrite = stored_as_gzip
        stated = int(ask(url, "HEAD")[1]["Content-Length"])
        assert stated < len(DATA)
        status, _, body = ask(url, headers=PART | {"Accept-Encoding": "identity"})
        assert (status, body) == (200, DATA)
        status, said, body = ask(url, headers=PART | {"Accept-Encoding": "gzip"})
        assert (status, said["Content-Encoding"], len(body)) == (200, "gzip", stated)
        assert gzip.decompress(body) == DATA
