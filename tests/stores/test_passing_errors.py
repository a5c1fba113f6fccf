"""Which errors can pass: those that the libraries really raise, and what they wrap them in."""

import errno
import http.client
import socket

import pytest
from support.faulty_http import FaultyServer

from pagecache.stores.errors import failed_request, meant_error
from pagecache.stores.passing import can_pass, retry_after_s

PASSES = {"503": True, "429": True, "403": False, "404": False, "500": True, "cut in headers": True, "cut in body": True,
          "stopped": True}  # fmt: skip


@pytest.fixture
def server():
    with FaultyServer() as running:
        running.put("bucket/object", b"x" * 100_000)
        yield running


def by_fsspec_http(server):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    return lambda: fs.cat_file(server.url("bucket/object"), 0, 50_000)


def by_s3fs(server):
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    fs = s3fs.S3FileSystem(
        endpoint_url=server.url("").rstrip("/"), key="testing", secret="testing", skip_instance_cache=True,
        client_kwargs={"region_name": "eu-west-1"}, config_kwargs={"retries": {"total_max_attempts": 1}},
    )  # fmt: skip
    fs.retries = 1
    return lambda: fs.cat_file("bucket/object", 0, 50_000)


def by_requests(server):
    requests = pytest.importorskip("requests", reason="requests is not installed")

    def ask():
        answer = requests.get(server.url("bucket/object"), headers={"Range": "bytes=0-49999"}, timeout=20)
        answer.raise_for_status()
        return answer.content

    return ask


def by_urllib(server):
    import urllib.request

    def ask():
        asked = urllib.request.Request(server.url("bucket/object"), headers={"Range": "bytes=0-49999"})
        with urllib.request.urlopen(asked) as answer:
            return answer.read()

    return ask


def by_obstore(server):
    stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
    store = stores.HTTPStore(server.url(""), client_options={"allow_http": True}, retry_config={"max_retries": 0})
    return lambda: store.get("bucket/object", options={"range": (0, 50_000)}).bytes()


LIBRARIES = {"fsspec": by_fsspec_http, "s3fs": by_s3fs, "requests": by_requests, "urllib": by_urllib, "obstore": by_obstore}


@pytest.mark.parametrize("fault", PASSES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_of_libraries(server, library, fault):
    if fault == "cut in headers" and library in ("requests", "urllib"):
        pytest.skip("http.client takes the end of the connection for that of the headers")
    ask = LIBRARIES[library](server)
    server.fail(fault, "range", times=3)
    with pytest.raises(Exception) as caught:  # whatever the library raises
        ask()
    error = caught.value
    assert can_pass(error) is PASSES[fault], repr(error)
    wrapped = meant_error(error, "object") or failed_request(error, "object")
    if wrapped is not error:
        wrapped.__cause__ = error
    assert can_pass(wrapped) is PASSES[fault], repr(wrapped)


@pytest.mark.parametrize("library", ["fsspec", "s3fs", "requests", "urllib"])
def test_what_the_server_wants_is_found(server, library):
    ask = LIBRARIES[library](server)

    def refuse(answer):
        answer.status, answer.headers, answer.body = 503, {"Retry-After": "17"}, b""

    server.rewrite = refuse
    with pytest.raises(Exception) as caught:  # whatever the library raises
        ask()
    assert retry_after_s(caught.value) == 17


def test_of_gcsfs():
    retry = pytest.importorskip("gcsfs.retry", reason="gcsfs is not installed")
    for status, passes in ((503, True), (429, True), (502, True), (404, False), (403, False), (412, False)):
        with pytest.raises(Exception) as caught:  # whatever the library raises
            retry.validate_response(status, b'{"error": {"code": %d, "message": "no"}}' % status, "b/object")
        assert can_pass(caught.value) is passes, repr(caught.value)


class ServiceResponseError(Exception):
    """As azure-core has it, which need not be installed."""


class HttpResponseError(Exception):
    """As azure-core has it: `status_code`, and the answer."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status_code = status
        self.response = type("Answer", (), {"headers": {"Retry-After": "3"}, "status_code": status})()


def test_of_azure():
    assert can_pass(ServiceResponseError("cut"))
    assert can_pass(HttpResponseError(503))
    assert retry_after_s(HttpResponseError(503)) == 3
    assert not can_pass(HttpResponseError(409))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False),
        (OSError(errno.EHOSTUNREACH, "away"), True),
        (http.client.IncompleteRead(b"", 5), True),
        (OSError(errno.ESTALE, "changed"), False),
        (OSError(errno.EIO, "more came"), False),
        (OSError("nothing is known"), False),
        (FileNotFoundError("object"), False),
        (ValueError("no"), False),
        (TypeError("no"), False),
    ],
)
def test_plain_ones(error, passes):
    assert can_pass(error) is passes


def test_a_status_counts_for_more_than_how_it_ended():
    refused = HttpResponseError(403)
    refused.__cause__ = ConnectionResetError()
    assert not can_pass(refused)
    hidden = FileNotFoundError("object")
    hidden.__cause__ = HttpResponseError(503)
    assert can_pass(hidden)


def test_what_was_being_handled_and_is_suppressed_does_not_count():
    try:
        try:
            raise TimeoutError
        except TimeoutError:
            raise OSError(errno.EIO, "another thing") from None
    except OSError as error:
        assert not can_pass(error)
