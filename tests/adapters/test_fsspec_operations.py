"""Every public operation of a target does through `pagecache::` what it does without, and leaves nothing stale behind.

Each is done in two equal worlds, one of them through the cache, which holds all objects already. Results and what is there
afterwards have to be the same. An operation of a target's class that is not in the table below fails the test.
"""

import contextlib
import inspect
import re

import pytest
from support.http_server import ObjectServer

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402

KINDS = ("file", "memory", "http", "s3")
TREE = {"a/one": b"1" * 9000, "a/two": b"22" * 5000, "a/sub/three": b"3" * 5000, "b": b"bb"}
VOLATILE = ("created", "mtime", "ino", "LastModified", "ETag", "VersionId", "atime", "ctime", "islink", "mode", "nlink",
            "ResponseMetadata")  # fmt: skip


class World:
    """A target with the tree, and one of its own root; `fs` is the target, or the cache over it."""

    def __init__(self, fs, root, local):
        self.fs, self.root, self.local = fs, root, local
        self.local.mkdir()
        (self.local / "new").write_bytes(b"new" * 3000)
        self.tmp = str(self.local)

    def __call__(self, name):
        return self.root + name

    def read_local(self, name):
        return (self.local / name).read_bytes()

    def write(self, name, data, **options):
        with self.fs.open(self(name), "wb", **options) as file:
            file.write(data)

    def transaction(self, *, fails):
        with contextlib.suppress(ZeroDivisionError), self.fs.transaction:
            self.write("a/one", b"committed or not")
            self.write("a/more", b"committed or not")
            if fails:
                raise ZeroDivisionError


async def stream(world):
    """Read a file for coroutines."""
    file = await world.fs.open_async(world("a/one"), "rb")
    found = await file.read(5), await file.read()
    await file.close()
    return found


def run(world, coroutine):
    """Run a coroutine on the loop of an asynchronous file system."""
    return fsspec.asyn.sync(fsspec.asyn.get_loop(), coroutine)


OPERATIONS = {
    "cat": lambda w: (w.fs.cat(w("b")), w.fs.cat([w("b"), w("a/one")]), w.fs.cat(w("none"), on_error="return")),
    "cat_file": lambda w: (w.fs.cat_file(w("a/one")), w.fs.cat_file(w("a/one"), start=5, end=10)),
    "cat_ranges": lambda w: w.fs.cat_ranges([w("a/one"), w("a/two")], [0, 5], [4, 9]),
    "checksum": lambda w: isinstance(w.fs.checksum(w("b")), int),
    "chmod": lambda w: w.fs.chmod(w("a/one"), 0o600),
    "copy": lambda w: (w.fs.copy(w("a/one"), w("b")), w.fs.copy(w("a/two"), w("c"))),
    "cp": lambda w: w.fs.cp(w("a/"), w("copied/"), recursive=True),
    "cp_file": lambda w: w.fs.cp_file(w("a/one"), w("b")),
    "created": lambda w: bool(w.fs.created(w("b"))),
    "delete": lambda w: w.fs.delete(w("a"), recursive=True),
    "disk_usage": lambda w: (w.fs.disk_usage(w("a")), w.fs.disk_usage(w("a"), total=False)),
    "download": lambda w: (w.fs.download(w("a/one"), w.tmp + "/got"), w.read_local("got")),
    "du": lambda w: w.fs.du(w("a"), maxdepth=1),
    "encode_url": lambda w: str(w.fs.encode_url(w("a/one"))),
    "end_transaction": lambda w: (w.fs.start_transaction(), w.write("a/one", b"deferred"), w.fs.end_transaction())[1],
    "exists": lambda w: (w.fs.exists(w("a/one")), w.fs.exists(w("a/none"))),
    "expand_path": lambda w: (w.fs.expand_path(w("a"), recursive=True), w.fs.expand_path(w("a/*"))),
    "find": lambda w: (w.fs.find(w("a")), w.fs.find(w("a"), withdirs=True, detail=True), w.fs.find(w("a"), maxdepth=1)),
    "get": lambda w: (w.fs.get([w("a/one"), w("a/two")], w.tmp + "/d/"), w.read_local("d/one"), w.read_local("d/two")),
    "get_file": lambda w: (w.fs.get_file(w("a/one"), w.tmp + "/got"), w.read_local("got")),
    "get_mapper": lambda w: {key: bytes(value) for key, value in w.fs.get_mapper(w("a")).items()},
    "get_tags": lambda w: w.fs.get_tags(w("a/one")),
    "getxattr": lambda w: w.fs.getxattr(w("a/one"), "key"),
    "glob": lambda w: (w.fs.glob(w("a/*")), w.fs.glob(w("a/t*")), w.fs.glob(w("a/**"), detail=True)),
    "head": lambda w: w.fs.head(w("a/one"), 11),
    "info": lambda w: (w.fs.info(w("a/one")), w.fs.info(w("a"))),
    "is_bucket_versioned": lambda w: w.fs.is_bucket_versioned(w("").partition("/")[0]),
    "isdir": lambda w: (w.fs.isdir(w("a")), w.fs.isdir(w("none"))),
    "isfile": lambda w: (w.fs.isfile(w("a/one")), w.fs.isfile(w("none"))),
    "islink": lambda w: (w.fs.symlink(w("b"), w("a/link")), w.fs.islink(w("a/link")), w.fs.islink(w("b"))),
    "lexists": lambda w: (w.fs.lexists(w("b")), w.fs.lexists(w("none"))),
    "link": lambda w: (w.fs.link(w("a/one"), w("a/hard")), w.fs.cat_file(w("a/hard"))),
    "list_multipart_uploads": lambda w: w.fs.list_multipart_uploads(w("").partition("/")[0]),
    "listdir": lambda w: w.fs.listdir(w("a"), detail=False),
    "ls": lambda w: (w.fs.ls(w("a")), w.fs.ls(w("a"), detail=True), w.fs.ls(w("a"), detail=False)),
    "makedir": lambda w: w.fs.makedir(w("made")),
    "makedirs": lambda w: (w.fs.makedirs(w("m/n"), exist_ok=True), w.fs.makedirs(w("m/n"), exist_ok=True)),
    "merge": lambda w: w.fs.merge(w("b"), [w("a/one"), w("a/two")]),
    "metadata": lambda w: w.fs.metadata(w("a/one")),
    "mkdir": lambda w: w.fs.mkdir(w("made")),
    "mkdirs": lambda w: w.fs.mkdirs(w("m/n"), exist_ok=True),
    "modified": lambda w: bool(w.fs.modified(w("b"))),
    "move": lambda w: w.fs.move(w("a"), w("moved"), recursive=True),
    "mv": lambda w: (w.fs.mv(w("a/one"), w("b")), w.fs.mv(w("a/two"), w("a/renamed"))),
    "object_version_info": lambda w: len(w.fs.object_version_info(w("a/one"))),
    "open": lambda w: (w.write("a/one", b"written"), w.fs.open(w("a/one")).read(), w.fs.open(w("a/two"), "rt").read(5)),
    "open_async": lambda w: run(w, lambda: stream(w)),
    "pipe": lambda w: (w.fs.pipe({w("a/one"): b"piped", w("p"): b"p" * 5000}), w.fs.pipe(w("b"), b"x")),
    "pipe_file": lambda w: w.fs.pipe_file(w("a/one"), b"piped"),
    "put": lambda w: (w.fs.put([w.tmp + "/new"], [w("a/one")]), w.fs.put(w.tmp + "/new", w("put"))),
    "put_file": lambda w: w.fs.put_file(w.tmp + "/new", w("a/one")),
    "put_tags": lambda w: (w.fs.put_tags(w("a/one"), {"k": "v"}), w.fs.get_tags(w("a/one"))),
    "read_block": lambda w: w.fs.read_block(w("a/one"), 100, 20),
    "read_bytes": lambda w: w.fs.read_bytes(w("a/one"), 3, 9),
    "read_text": lambda w: w.fs.read_text(w("b")),
    "rename": lambda w: w.fs.rename(w("a/one"), w("a/renamed")),
    "rm": lambda w: (w.fs.rm(w("a/t*")), w.fs.rm([w("b")]), w.fs.rm(w("a"), recursive=True)),
    "rm_file": lambda w: w.fs.rm_file(w("a/one")),
    "rmdir": lambda w: (w.fs.mkdir(w("empty")), w.fs.rmdir(w("empty")), w.fs.isdir(w("empty"))),
    "setxattr": lambda w: (w.fs.setxattr(w("a/one"), key="value"), w.fs.getxattr(w("a/one"), "key")),
    "sign": lambda w: w.fs.sign(w("b"))[:4],
    "size": lambda w: (w.fs.size(w("a/one")), w.fs.size(w("a/sub/three"))),
    "sizes": lambda w: w.fs.sizes([w("a/one"), w("b")]),
    "split_path": lambda w: w.fs.split_path(w("a/one"))[1:],
    "start_transaction": lambda w: w.transaction(fails=False),
    "stat": lambda w: w.fs.stat(w("a/one")),
    "symlink": lambda w: (w.fs.symlink(w("a/one"), w("a/link")), w.write("a/link", b"through"), w.fs.cat_file(w("a/one"))),
    "tail": lambda w: w.fs.tail(w("a/two"), 11),
    "touch": lambda w: (w.fs.touch(w("touched")), w.fs.touch(w("a/one"), truncate=True)),
    "transaction_type": lambda w: w.transaction(fails=True),
    "tree": lambda w: w.fs.tree(w("a")),
    "upload": lambda w: w.fs.upload(w.tmp + "/new", w("a/one")),
    "url": lambda w: w.fs.url(w("a/one"))[:4],
    "walk": lambda w: list(w.fs.walk(w("a"))),
    "write_bytes": lambda w: w.fs.write_bytes(w("a/one"), b"written"),
    "write_text": lambda w: w.fs.write_text(w("a/one"), "written"),
}
READS = (
    "cat", "cat_file", "cat_ranges", "checksum", "created", "disk_usage", "download", "du", "encode_url", "exists",
    "expand_path", "find", "get", "get_file", "get_mapper", "get_tags", "getxattr", "glob", "head", "info",
    "is_bucket_versioned", "isdir", "isfile", "lexists", "list_multipart_uploads", "listdir", "ls", "metadata", "modified",
    "object_version_info", "open_async", "read_block", "read_bytes", "read_text", "sign", "size", "sizes", "split_path",
    "stat", "tail", "tree", "url", "walk",
)  # fmt: skip
ALIASES = ("cp", "delete", "makedir", "mkdirs", "move", "rename", "upload", "write_bytes", "write_text")
# What is no operation on objects: of instances, of connections, or this file system's own.
OTHERS = {
    "abort_mpu", "call_s3", "clear_instance_cache", "clear_multipart_uploads", "close_session", "connect", "current",
    "from_dict", "from_json", "get_delegated_s3pars", "get_s3", "invalidate_cache", "invalidate_region_cache",
    "make_bucket_versioned", "set_session", "to_dict", "to_json", "ukey", "unstrip_protocol",
}  # fmt: skip


def has(kind, name):
    """Whether a kind of file system has an operation, as far as that can be known."""
    try:
        return hasattr(fsspec.get_filesystem_class(kind), name)
    except ImportError:
        return False


@pytest.fixture(scope="module")
def moto():
    server_module = pytest.importorskip("moto.moto_server.threaded_moto_server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def servers():
    with ObjectServer() as one, ObjectServer() as other:
        yield one, other


def targets(kind, tmp_path, request):
    """Return two targets with the tree, and the roots of their worlds."""
    if kind == "file":
        pairs = [(fsspec.filesystem("file", auto_mkdir=True), f"{tmp_path}/{name}/") for name in ("w1", "w2")]
    elif kind == "memory":
        pairs = [(fsspec.filesystem("memory", skip_instance_cache=True), f"/{name}/") for name in ("w1", "w2")]
        for target, _ in pairs:
            target.store, target.pseudo_dirs = {}, [""]
    elif kind == "http":
        both = request.getfixturevalue("servers")
        pairs = [(fsspec.filesystem("http", skip_instance_cache=True), server.url("w1/")) for server in both]
        for server in both:
            server.clear()
            server.put("w1/", b"<a href='a/'></a> <a href='b'></a>")
            for page in ("w1/a", "w1/a/"):
                server.put(page, b"<a href='one'></a> <a href='two'></a> <a href='sub/'></a>")
            server.put("w1/a/sub/", b"<a href='three'></a>")
    else:
        s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
        fs = s3fs.S3FileSystem(
            endpoint_url=request.getfixturevalue("moto"), client_kwargs={"region_name": "eu-west-1"}, key="k", secret="s",
            version_aware=True, use_listings_cache=False,
        )  # fmt: skip
        if not fs.exists("worlds"):
            fs.mkdir("worlds")
        pairs = [(fs, f"worlds/{tmp_path.name}/{name}/") for name in ("w1", "w2")]
    for target, root in pairs:
        for name, data in TREE.items():
            if kind in ("file", "memory"):
                target.makedirs((root + name).rpartition("/")[0], exist_ok=True)
            target.pipe_file(root + name, data)
    return pairs


def normal(value, world):
    """Return a result as it is in every world."""
    if isinstance(value, str):
        value = value.replace(world.root, "ROOT/").replace(world.root.rstrip("/"), "ROOT")
        return re.sub(r"127\.0\.0\.1:\d+|world-\d/w\d|w\d", "PLACE", value.replace(world.tmp, "LOCAL"))
    if isinstance(value, dict):
        found = {normal(k, world): normal(v, world) for k, v in value.items() if k not in VOLATILE}
        return dict(sorted(found.items(), key=str))
    if isinstance(value, (list, tuple)):
        found = [normal(item, world) for item in value]
        return sorted(found, key=str) if all(isinstance(item, (str, dict)) for item in found) else found
    return value if isinstance(value, (bytes, int, float, bool, type(None))) else type(value).__name__


def outcome(world, operation):
    """Return what an operation returns, or the kind of its error."""
    try:
        return normal(operation(world), world)
    except Exception as error:
        return type(error).__name__


def left(target, world, kind):
    """Return what is there, as the target says."""
    if kind == "http":
        return {url: target.cat_file(world(url)) for url in TREE if target.exists(world(url))}
    return {normal(path, world): target.cat_file(path) for path in target.find(world.root.rstrip("/"))}


class Worlds:
    """Two equal worlds, one of them behind a cache that has read everything."""

    def __init__(self, kind, tmp_path, request):
        self.kind = kind
        (self.plain, root), (self.target, other_root) = targets(kind, tmp_path, request)
        self.system = PageCacheFileSystem(fs=self.target, recheck=3600, skip_instance_cache=True)
        self.without = World(self.plain, root, tmp_path / "l1")
        self.through = World(self.system, other_root, tmp_path / "l2")
        for path in TREE:
            assert self.system.cat_file(self.through(path)) == TREE[path]

    def check_operation(self, name):
        """Check that an operation returns the same in both."""
        wanted, found = (outcome(world, OPERATIONS[name]) for world in (self.without, self.through))
        if name == "modified" and wanted == "NotImplementedError":  # what is known of versions answers that
            assert found is True
            return
        assert found == wanted, name

    def check_rest(self):
        """Check that there is the same in both, for those who read through the cache as well."""
        there = left(self.plain, self.without, self.kind)
        assert left(self.target, self.through, self.kind) == there
        for path in TREE:
            wanted, found = (outcome(w, lambda w, path=path: w.fs.cat_file(w(path))) for w in (self.without, self.through))
            assert found == wanted, f"what is cached of {path} is stale"


@pytest.fixture
def worlds(kind, tmp_path, request, make_cache):
    with pagecache.using(make_cache("1MiB")):
        yield (both := Worlds(kind, tmp_path, request))
        both.system.invalidate_cache()


@pytest.mark.parametrize("kind", KINDS)
def test_reading_is_as_without_the_cache(worlds, kind):
    if not has(kind, "info"):
        pytest.skip(f"the library of {kind} is not installed")
    for name in READS:
        if has(kind, name):
            worlds.check_operation(name)
    worlds.check_rest()


CHANGES = [
    (kind, name)
    for kind in KINDS
    for name in OPERATIONS
    if name not in READS and has(kind, name) and not (kind == "s3" and name in ALIASES)
]


@pytest.mark.parametrize(("kind", "name"), CHANGES)
def test_changing_is_as_without_the_cache(worlds, name):
    worlds.check_operation(name)
    worlds.check_rest()


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_of_the_class_is_in_the_table(kind):
    try:
        target = fsspec.get_filesystem_class(kind)
    except ImportError:
        pytest.skip(f"the library of {kind} is not installed")
    names = {name for name in dir(target) if not name.startswith("_") and callable(getattr(target, name))}
    names = {name for name in names if not isinstance(inspect.getattr_static(target, name), property)}
    assert names - OPERATIONS.keys() - OTHERS == set()

