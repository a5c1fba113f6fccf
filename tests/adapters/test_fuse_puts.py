"""A changed object is put in place of the version that it was made of, and of no other: on each kind of store."""

import errno
import os

import pytest
from support import wait_until
from support.http_server import ObjectServer

from pagecache.adapters.fuse.object_files import ObjectFiles
from pagecache.adapters.fuse.object_puts import Put, present_version, put
from pagecache.stores.fsspec_instances import instance_of

fsspec = pytest.importorskip("fsspec")
KEYS = {"key": "testing", "secret": "testing"}
KINDS = ("local", "memory", "http", "http, If-Match ignored", "http, times only", "s3fs", "obstore")
CONDITIONAL = ("http", "s3fs", "obstore")  # where nothing can come between a look and the put
LARGE = 6 << 20


class Foreign:
    """A store and what others do to it. fs, remote: an object of it. put, get, remove: what others do."""

    def __init__(self, fs, remote, put, get, remove):
        self.instance = instance_of(fs)
        self.remote = remote
        self.put, self.get, self.remove = put, get, remove
        self.before_put = None  # called once, when a put has come and is not carried out yet

    def interpose(self):
        """Let others do what they wanted to."""
        call, self.before_put = self.before_put, None
        if call is not None:
            call()


@pytest.fixture(scope="module")
def moto():
    """A server of S3, as an address, and a list whose functions are called when a PUT comes."""
    module = pytest.importorskip("moto.moto_server.threaded_moto_server", reason="moto[server] is not installed")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    wait_until(lambda: server._server is not None, "moto's server")
    application, hooks = server._server.app, []

    def app(environ, start_response):
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        if hooks and ((method == "POST" and "uploadId=" in query) or (method == "PUT" and "partNumber" not in query)):
            hooks[0]()
        return application(environ, start_response)

    server._server.app = app
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}", hooks
    server.stop()


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    """A store that holds one object, b"first"."""
    kind = request.param
    made = {"local": local, "memory": memory, "s3fs": s3, "obstore": s3}.get(kind, http)
    yield from made(kind, request, tmp_path)


def local(kind, request, tmp_path):
    path = tmp_path / "object"

    def write(data):  # as another program would, and never twice at one time of the file system's clock
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.write_bytes(data)
        os.utime(path, ns=(before + 1000, before + 1000))

    fs = fsspec.filesystem("local")
    found = Foreign(fs, str(path), write, path.read_bytes, path.unlink)
    found.put(b"first")
    real = fs.put_file

    def put_file(*args, **options):
        found.interpose()
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "put_file", put_file)
        yield found


def memory(kind, request, tmp_path):
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    fs.store.clear()
    found = Foreign(fs, "/object", lambda data: fs.pipe_file("/object", data), lambda: fs.cat_file("/object"),
                    lambda: fs.rm_file("/object"))  # fmt: skip
    found.put(b"first")
    yield found
    fs.store.clear()


def http(kind, request, tmp_path):
    pytest.importorskip("aiohttp")
    with ObjectServer() as server:
        server.honours_if_match = "ignored" not in kind
        server.sends_etag = "times" not in kind
        server.sends_last_modified = True
        numbers = iter(range(1, 1000))

        def foreign(data):
            server.put("object", data, modified=1e9 + next(numbers))

        foreign(b"first")
        found = Foreign(fsspec.filesystem("http"), server.url("object"), foreign, lambda: server.find("/object")[0],
                        lambda: server.remove("object"))  # fmt: skip
        server.before_answer = lambda server, method, path: method == "PUT" and found.interpose()
        found.server = server
        yield found


def s3(kind, request, tmp_path):
    endpoint, hooks = request.getfixturevalue("moto")
    s3fs = pytest.importorskip("s3fs")
    theirs = s3fs.S3FileSystem(endpoint_url=endpoint, client_kwargs={"region_name": "eu-west-1"}, **KEYS)
    if not theirs.exists("bucket"):
        theirs.mkdir("bucket")
    fs = theirs
    if kind == "obstore":
        module = pytest.importorskip("obstore.fsspec")
        fs = module.FsspecStore(
            "s3", endpoint=endpoint, access_key_id="testing", secret_access_key="testing", region="eu-west-1",
            client_options={"allow_http": True}, skip_instance_cache=True,
        )  # fmt: skip
    found = Foreign(fs, "bucket/object", lambda data: theirs.pipe_file("bucket/object", data),
                    lambda: theirs.cat_file("bucket/object"), lambda: theirs.rm_file("bucket/object"))  # fmt: skip
    found.put(b"first")
    hooks[:] = [found.interpose]
    yield found
    hooks.clear()


@pytest.fixture
def files(make_cache, store):
    """Open objects of the store."""
    return ObjectFiles(make_cache("32MiB"), store.instance)


def closed(files, handle):
    """Close as a program does: returns the errno that it sees."""
    number = 0
    try:
        files.flush(handle)
    except OSError as error:
        number = error.errno
    files.release(handle)
    return number


def give_up(files):
    """Let go of what could not be put."""
    for opened in files.all():
        files.removed(opened)


class TestPut:
    def test_again_and_again(self, store, files):
        """Each put replaces the one before, which is ours."""
        handle = files.open(store.remote, os.O_RDWR)
        for number in range(3):
            files.write(handle, b"%d" % number, number)
            files.fsync(handle, False)
            assert store.get()[: number + 1] == b"012"[: number + 1]
        assert closed(files, handle) == 0
        handle = files.open(store.remote, os.O_RDWR)
        files.write(handle, b"end", 5)
        assert closed(files, handle) == 0
        assert store.get() == b"012stend"
        assert files.all() == []

    def test_replaced_by_others_meanwhile(self, store, files):
        handle = files.open(store.remote, os.O_RDWR)
        files.write(handle, b"ours!", 0)
        store.put(b"theirs")
        assert closed(files, handle) == errno.ESTALE
        assert store.get() == b"theirs"
        (kept,) = files.all()
        assert kept.spool.pread(10, 0) == b"ours!"  # from where it can be copied
        handle = files.open(store.remote, os.O_RDWR | os.O_TRUNC)  # emptying it replaces what there is
        files.write(handle, b"anew", 0)
        assert closed(files, handle) == 0
        assert (store.get(), files.all()) == (b"anew", [])

    def test_removed_by_others_meanwhile(self, store, files):
        handle = files.open(store.remote, os.O_RDWR)
        files.write(handle, b"ours!", 0)
        store.remove()
        assert closed(files, handle) == errno.ESTALE
        assert present_version(store.instance, store.remote) is None
        give_up(files)

    def test_made_by_others_meanwhile(self, store, files):
        store.remove()
        handle = files.open(store.remote, os.O_RDWR, is_new=True)
        files.write(handle, b"ours!", 0)
        store.put(b"theirs")
        assert closed(files, handle) == errno.ESTALE
        assert store.get() == b"theirs"
        give_up(files)

    def test_a_new_one(self, store, files):
        store.remove()
        handle = files.open(store.remote, os.O_RDWR, is_new=True)
        files.write(handle, b"ours!", 0)
        assert closed(files, handle) == 0
        assert store.get() == b"ours!"

    def test_emptied_and_replaced_by_others_before_it_is_put(self, store, files):
        handle = files.open(store.remote, os.O_WRONLY | os.O_TRUNC)
        files.write(handle, b"ours!", 0)
        store.put(b"theirs")
        assert closed(files, handle) == errno.ESTALE
        assert store.get() == b"theirs"
        give_up(files)

    @pytest.mark.parametrize("is_new", [False, True])
    def test_others_come_between_the_look_and_the_put(self, request, store, files, is_new):
        """Where the store takes a condition nothing is lost; elsewhere this moment is what remains."""
        if is_new:
            store.remove()
        handle = files.open(store.remote, os.O_RDWR, is_new=is_new)
        files.write(handle, b"ours!", 0)
        store.before_put = lambda: store.put(b"theirs")
        is_conditional = request.node.callspec.params["store"] in CONDITIONAL
        number = closed(files, handle)
        if request.node.callspec.params["store"] == "memory":
            assert number == 0
        elif is_conditional:
            assert (number, store.get()) == (errno.ESTALE, b"theirs")
        else:
            assert store.before_put is None
            assert number in (0, errno.ESTALE)
        give_up(files)

    def test_one_that_is_put_in_parts(self, store, files, monkeypatch):
        monkeypatch.setattr("pagecache.adapters.fuse.object_puts.PART_BYTES", 5 << 20)
        data = os.urandom(LARGE)
        handle = files.open(store.remote, os.O_RDWR | os.O_TRUNC)
        files.write(handle, data, 0)
        files.fsync(handle, False)
        assert store.get() == data
        files.write(handle, b"x", 1)
        store.put(b"theirs")
        assert closed(files, handle) == errno.ESTALE
        assert store.get() == b"theirs"
        give_up(files)


class TestHttp:
    @pytest.fixture
    def store(self, request, tmp_path):
        """Objects of a server."""
        yield from http("http", request, tmp_path)

    @pytest.mark.parametrize(("status", "number"), [
        (405, errno.EOPNOTSUPP), (501, errno.EOPNOTSUPP), (403, errno.EACCES), (404, errno.ENOENT), (500, errno.EIO),
        (507, errno.EIO),
    ])  # fmt: skip
    def test_a_server_that_does_not_take_it(self, store, files, status, number):
        handle = files.open(store.remote, os.O_RDWR)
        files.write(handle, b"ours!", 0)
        store.server.refuses_put = status
        with pytest.raises(OSError) as caught:
            files.flush(handle)
        assert caught.value.errno == number
        store.server.refuses_put = 0
        assert closed(files, handle) == 0
        assert store.get() == b"ours!"

    def test_a_server_that_cannot_be_asked_is_not_one_without_the_object(self, store, files):
        handle = files.open(store.remote, os.O_RDWR)
        files.write(handle, b"ours!", 0)
        store.server.rewrite = lambda answer: setattr(answer, "status", 503) if answer.method != "PUT" else None
        with pytest.raises(OSError) as caught:
            files.flush(handle)
        assert caught.value.errno not in (errno.ESTALE, errno.ENOENT)
        assert store.get() == b"first"
        store.server.rewrite = None
        assert closed(files, handle) == 0

    def test_content_is_of_the_kind_that_its_name_says(self, tmp_path, request):
        """On S3, where browsers learn so."""
        (store,) = [next(s3("s3fs", request, tmp_path))]
        path = tmp_path / "file"
        path.write_bytes(b"{}")
        put(Put(store.instance, "bucket/data.json", str(path), None))
        assert store.instance.fs.info("bucket/data.json")["ContentType"] == "application/json"


def test_a_mix_of_versions_is_never_fetched(make_cache, tmp_path, monkeypatch):
    """Replaced while it is fetched: the spool is of one version, and that is what a put replaces."""
    monkeypatch.setattr("pagecache.adapters.fuse.object_files.COPY_BYTES", 4096)
    pytest.importorskip("aiohttp")
    with ObjectServer() as server:
        url = server.put("object", b"1" * 50_000)
        replaced = []

        def replace(server, method, path):
            if method == "GET" and len(replaced) < 2:
                replaced.append(method)
                server.put("object", b"%d" % (len(replaced) + 1) * 50_000)

        files = ObjectFiles(make_cache("64KiB"), instance_of(fsspec.filesystem("http")), on_change="reload")
        server.before_answer = replace
        handle = files.open(url, os.O_RDWR)
        server.before_answer = None
        files.write(handle, b"x", 50_000)
        assert closed(files, handle) == 0
        assert server.find("/object")[0] == b"3" * 50_000 + b"x"
