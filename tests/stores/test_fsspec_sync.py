"""The synchronous file systems of fsspec, with their libraries and servers: right bytes in the cache, and for its user."""

import contextlib
import io
import os
import random
import tarfile
import zipfile

import pytest
from support import PAGE, STRESS, Crew, checked_cache, wait_until
from support.file_servers import FtpServer, SftpServer
from support.fuse_mount import Mount, needs_fuse
from support.http_server import ObjectServer

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
import pagecache  # noqa: E402
import pagecache.adapters.fsspec  # noqa: E402
from pagecache.stores.fsspec import FsspecStore  # noqa: E402
from pagecache.stores.fsspec_instances import Callers, Own, Shared  # noqa: E402

SIZE = 60 * PAGE + 77
NAMES = ("a", "b", "c")
DATA = {name: random.Random(name).randbytes(SIZE + 1000 * number) for number, name in enumerate(NAMES)}


def tar_of(data, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, value in data.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    return file.getvalue()


def zip_of(data, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in data.items():
            archive.writestr(name, value)
    return file.getvalue()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with the files and with archives of them."""
    path = tmp_path_factory.mktemp("files")
    for name, value in DATA.items():
        (path / name).write_bytes(value)
    (path / "all.tar").write_bytes(tar_of(DATA))
    (path / "all.tar.gz").write_bytes(tar_of(DATA, "w:gz"))
    (path / "all.zip").write_bytes(zip_of(DATA))
    return path


@pytest.fixture(scope="module")
def ftp(directory):
    pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")
    with FtpServer(directory) as server:
        yield server


@pytest.fixture(scope="module")
def sftp(directory):
    pytest.importorskip("asyncssh", reason="asyncssh is not installed")
    pytest.importorskip("paramiko", reason="paramiko is not installed")
    with SftpServer(directory) as server:
        yield server


@pytest.fixture(scope="module")
def http(directory):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    with ObjectServer() as server:
        for name in ("all.tar", "all.zip"):
            server.put(name, (directory / name).read_bytes())
        yield server


@pytest.fixture
def asked(request):
    """Return a fixture by its name, so that only those are started that a case needs."""
    return request.getfixturevalue


def tar(asked):
    return fsspec.filesystem("tar", fo=str(asked("directory") / "all.tar")), "{}"


def tar_gz(asked):
    return fsspec.filesystem("tar", fo=str(asked("directory") / "all.tar.gz")), "{}"


def tar_of_a_file_object(asked):
    return fsspec.filesystem("tar", fo=io.BytesIO(tar_of(DATA))), "{}"


def tar_over_http(asked):
    return fsspec.filesystem("tar", fo=asked("http").url("all.tar")), "{}"


def tar_over_sftp(asked):
    options = asked("sftp").options
    return fsspec.filesystem("tar", fo="/all.tar", target_protocol="sftp", target_options=options), "{}"


def zip_file(asked):
    return fsspec.filesystem("zip", fo=str(asked("directory") / "all.zip")), "{}"


def zip_of_a_file_object(asked):
    return fsspec.filesystem("zip", fo=io.BytesIO(zip_of(DATA))), "{}"


def zip_over_http(asked):
    return fsspec.filesystem("zip", fo=asked("http").url("all.zip")), "{}"


def zip_over_ftp(asked):
    return fsspec.filesystem("zip", fo="/all.zip", target_protocol="ftp", target_options=asked("ftp").options), "{}"


def libarchive(asked):
    pytest.importorskip("libarchive", reason="libarchive-c is not installed")
    return fsspec.filesystem("libarchive", fo=str(asked("directory") / "all.zip")), "{}"


def ftp_server(asked):
    return fsspec.filesystem("ftp", **asked("ftp").options), "/{}"


def sftp_server(asked):
    return fsspec.filesystem("sftp", **asked("sftp").options), "/{}"


def directory_over_sftp(asked):
    return fsspec.filesystem("dir", path="/", fs=sftp_server(asked)[0]), "{}"


def directory_over_tar(asked):
    archive = fsspec.filesystem("tar", fo=io.BytesIO(tar_of({f"in/{name}": value for name, value in DATA.items()})))
    return fsspec.filesystem("dir", path="in", fs=archive), "{}"


def reference_over_tar(asked):
    references = {f"part/{name}": [f"tar://{name}"] for name in NAMES}
    return fsspec.filesystem("reference", fo=references, fs=tar(asked)[0]), "part/{}"


def simplecache_over_sftp(asked):
    return fsspec.filesystem("simplecache", fs=sftp_server(asked)[0]), "/{}"


def local(asked):
    return fsspec.filesystem("file"), f"{asked('directory')}/{{}}"


def directory_of_local(asked):
    return fsspec.filesystem("dir", path=str(asked("directory")), fs=fsspec.filesystem("file")), "{}"


def memory(asked):
    fs = fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)
    fs.pipe({f"/{name}": value for name, value in DATA.items()})
    return fs, "/{}"


def arrow(asked):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import LocalFileSystem

    return ArrowFSWrapper(LocalFileSystem()), f"{asked('directory')}/{{}}"


SYSTEMS = {
    tar: Own, tar_gz: Own, tar_of_a_file_object: Callers, tar_over_http: Own, tar_over_sftp: Own, zip_file: Own,
    zip_of_a_file_object: Callers, zip_over_http: Own, zip_over_ftp: Own, libarchive: Own, ftp_server: Own,
    sftp_server: Own, directory_over_sftp: Own, directory_over_tar: Callers, reference_over_tar: Callers,
    simplecache_over_sftp: Callers,
    local: Shared, directory_of_local: Shared, memory: Shared, arrow: Shared,
}  # fmt: skip
every_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.__name__)


def read_in_turns(files, fs, path, step=16 * 1024):
    """Read files in turns, as one thread of a user does, who calls the file system as well."""
    for start in range(0, SIZE, step):
        for name, file in files.items():
            assert file.pread(step, start) == DATA[name][start : start + step], (name, start)
        if start % (4 * step) == 0:
            name = random.choice(NAMES)
            part = fs.cat_file(path.format(name), start + 1, start + 5000)
            assert part == DATA[name][start + 1 : start + 5000], (name, start)


@every_system
class TestReading:
    def test_in_turns_beside_its_user(self, make_cache, asked, system):
        fs, path = system(asked)
        cache = make_cache("8MiB")
        files = {name: cache.open(FsspecStore(fs, path.format(name))) for name in NAMES}
        assert {type(file.inode.store._instance) for file in files.values()} == {SYSTEMS[system]}
        read_in_turns(files, fs, path)
        assert {name: file.pread(2 * SIZE, 0) for name, file in files.items()} == DATA

    def test_by_several_threads(self, make_cache, asked, system):
        fs, path = system(asked)
        cache = make_cache("8MiB")
        files = [(cache.open(FsspecStore(fs, path.format(name))), DATA[name]) for name in NAMES for _ in range(2)]

        def read(file, data):
            for start in range(0, len(data), 20000):
                assert file.pread(20000, start) == data[start : start + 20000]

        Crew(*[lambda file=file, data=data: read(file, data) for file, data in files]).join_well()

    def test_through_the_chained_file_system(self, make_cache, asked, system):
        fs, path = system(asked)
        with pagecache.using(make_cache("8MiB")):
            chained = fsspec.filesystem("pagecache", fs=fs, skip_instance_cache=True)
            read_in_turns({name: chained.open(path.format(name)) for name in NAMES}, fs, path)
            ranges = [path.format("a"), path.format("b")], [5, 100], [50, 30000]
            assert chained.cat_ranges(*ranges) == [DATA["a"][5:50], DATA["b"][100:30000]]
            assert {info["size"] for info in map(chained.info, map(path.format, NAMES))} == set(map(len, DATA.values()))


URLS = {
    "tar": lambda asked: f"tar://{{}}::{asked('directory')}/all.tar",
    "zip": lambda asked: f"zip://{{}}::{asked('directory')}/all.zip",
    "tar over HTTP": lambda asked: f"tar://{{}}::{asked('http').url('all.tar')}",
    "zip over FTP": lambda asked: f"zip://{{}}::{asked('ftp').url('all.zip')}",
    "ftp": lambda asked: asked("ftp").url("{}"),
    "sftp": lambda asked: asked("sftp").url("{}"),
    "tar over SFTP": lambda asked: f"tar://{{}}::{asked('sftp').url('all.tar')}",
}


@pytest.mark.parametrize("url", URLS)
class TestUrls:
    def test_are_read_from_an_instance_of_our_own(self, make_cache, asked, url):
        url = URLS[url](asked)
        cache = make_cache("8MiB")
        fs, path = fsspec.core.url_to_fs(url.format("b"))
        files = {name: cache.open(url.format(name)) for name in NAMES}
        assert all(isinstance(file.inode.store._instance, Own) for file in files.values())
        read_in_turns(files, fs, path.replace("b", "{}"))

    def test_behind_pagecache(self, make_cache, asked, url):
        url = URLS[url](asked)
        with pagecache.using(make_cache("8MiB")), contextlib.ExitStack() as stack:
            opened = {name: fsspec.open(f"pagecache::{url.format(name)}") for name in NAMES}
            files = {name: stack.enter_context(file) for name, file in opened.items()}
            assert all(file.inode.store.background_reads for file in files.values())
            target, path = opened["b"].fs.fs, opened["b"].path
            read_in_turns(files, target, path.replace("b", "{}"))
            assert opened["b"].fs.info(path)["size"] == len(DATA["b"])


class TestCacheOfAFile:
    def test_an_ftp_file_is_read_from_an_instance_of_our_own(self, make_cache, ftp):
        from fsspec.implementations.ftp import FTPFile  # `open` leaves cache_type out

        fs = fsspec.filesystem("ftp", **ftp.options)
        with pagecache.using(make_cache("8MiB")), contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(FTPFile(fs, f"/{name}", cache_type="pagecache")) for name in NAMES}
            assert all(isinstance(file.cache._file.inode.store._instance, Own) for file in files.values())
            for start in range(0, SIZE, 20000):
                for name, file in files.items():
                    file.seek(start)
                    assert file.read(20000) == DATA[name][start : start + 20000]
                assert fs.cat_file("/a", start, start + 100) == DATA["a"][start : start + 100]


@needs_fuse()
@pytest.mark.parametrize("name", ["ftp", "sftp"])
def test_a_mount_is_read_and_listed_by_several_programs(asked, name):
    with Mount(asked(name).url(""), "--size", "8MiB") as mount:

        def use(name):
            assert (mount.path / name).read_bytes() == DATA[name]
            assert {entry.name for entry in os.scandir(mount.path)} >= set(NAMES)
            assert os.stat(mount.path / name).st_size == len(DATA[name])

        Crew(*[lambda name=name: use(name) for name in NAMES for _ in range(2)]).join_well()


class TestConnections:
    def test_there_is_one_more_however_many_files_are_read(self, make_cache, ftp):
        fs = fsspec.filesystem("ftp", **ftp.options)
        before = ftp.nr_connections
        cache = make_cache("8MiB")
        for _ in range(3):
            files = {name: cache.open(FsspecStore(fs, f"/{name}")) for name in NAMES}
            read_in_turns(files, fs, "/{}")
            for file in files.values():
                file.close()
        with cache.open(ftp.url("a")) as file:
            assert file.pread(SIZE, 0) == DATA["a"]
        assert ftp.nr_connections <= before + 1

    def test_where_the_server_allows_no_other_one_the_users_is_used_in_its_thread(self, make_cache, directory):
        pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")
        with FtpServer(directory, max_connections=2) as server:  # the listening socket counts
            fs = fsspec.filesystem("ftp", **server.options)
            files = {name: make_cache("4MiB").open(FsspecStore(fs, f"/{name}")) for name in NAMES}
            assert all(isinstance(file.inode.store._instance, Callers) for file in files.values())
            read_in_turns(files, fs, "/{}")

    @pytest.mark.parametrize("name", ["ftp", "sftp"])
    def test_one_that_broke_is_made_anew(self, make_cache, asked, name):
        server = asked(name)
        with make_cache("4MiB").open(server.url("a"), recheck=False) as file:
            assert file.pread(10, 0) == DATA["a"][:10]
            broken = file.inode.store._instance.fs
            (broken.ftp.sock if name == "ftp" else broken.client).close()
            file.cache.drop_caches()
            with contextlib.suppress(OSError):
                assert file.pread(10, 5000) == DATA["a"][5000:5010]
            assert file.pread(SIZE, 0) == DATA["a"]

    @pytest.mark.parametrize("name", ["ftp", "sftp", "tar"])
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_a_child_does_not_read_from_what_the_parent_reads_from(self, make_cache, asked, name):
        """A descriptor has one position, a connection one order of answers, for parent and child together."""
        url = URLS[name](asked)
        cache = make_cache("4MiB")
        files = {name: cache.open(url.format(name), recheck=False) for name in NAMES}
        first = {name: file.pread(9, 0) for name, file in files.items()}
        stores = {name: file.inode.store for name, file in files.items()}
        child = os.fork()
        if child == 0:
            try:
                with pagecache.PageCache("4MiB") as other:
                    theirs = {name: other.open(store) for name, store in stores.items()}
                    good = all(file.pread(2 * SIZE, 0) == DATA[name] for name, file in theirs.items())
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        for name, file in files.items():
            for start in range(0, len(DATA[name]), 5000):
                assert file.pread(5000, start) == DATA[name][start : start + 5000]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert first == {name: value[:9] for name, value in DATA.items()}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_a_child_may_use_the_chained_file_system(self, make_cache, ftp):
        options = {"target_protocol": "ftp", "target_options": ftp.options, "skip_instance_cache": True}
        with pagecache.using(make_cache("4MiB")):
            fs = fsspec.filesystem("pagecache", **options)
            assert fs.cat_file("/a", 0, 100) == DATA["a"][:100]
            child = os.fork()
            if child == 0:
                try:
                    good = fs.cat_file("/b") == DATA["b"] and fs.info("/c")["size"] == len(DATA["c"])
                    os._exit(0 if good else 1)
                finally:
                    os._exit(2)
            for start in range(0, SIZE, 9000):
                assert fs.cat_file("/c", start, start + 9000) == DATA["c"][start : start + 9000]
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TestChanges:
    def test_a_file_that_was_replaced_on_an_ftp_server_is_noticed(self, make_cache, tmp_path):
        """Its file system answers out of listings of the directory until it has to forget that."""
        pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")
        (tmp_path / "file").write_bytes(b"old" * 5000)
        with FtpServer(tmp_path) as server:
            fs = fsspec.filesystem("ftp", **server.options)
            with make_cache("1MiB").open(FsspecStore(fs, "/file"), recheck=True, on_change="reload") as file:
                assert file.pread(3, 0) == b"old"
                (tmp_path / "file").write_bytes(b"newer" * 5000)
                assert file.pread(5, 0) == b"newer"
                assert file.size == 25000

    def test_what_was_written_through_the_chained_file_system_is_read(self, make_cache, tmp_path):
        pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")
        with FtpServer(tmp_path) as server, pagecache.using(make_cache("1MiB")):
            fs = fsspec.filesystem(
                "pagecache", target_protocol="ftp", target_options=server.options, skip_instance_cache=True
            )
            for number in range(3):
                with fs.open("/file", "wb") as file:
                    file.write(b"%d" % number * (1000 + number))
                assert fs.cat_file("/file") == b"%d" % number * (1000 + number)
                assert [info["size"] for info in fs.ls("/")] == [1000 + number]


@pytest.mark.parametrize("kind", ["tar", "zip"])
class TestArchives:
    @staticmethod
    def write(path, kind, data):
        other = path.with_suffix(".new")
        other.write_bytes((tar_of if kind == "tar" else zip_of)(data))
        other.replace(path)

    def test_another_one_in_the_place_of_the_first_is_read_anew(self, make_cache, tmp_path, kind):
        """Its members may have the times, and the sizes, that those of the first one had."""
        path, cache = tmp_path / "archive", make_cache("1MiB")
        for letter in (b"a", b"b", b"c"):
            self.write(path, kind, {"member": letter * 10000})
            fs = fsspec.filesystem(kind, fo=str(path))
            for store in (FsspecStore(fs, "member"), f"{kind}://member::{path}"):
                with cache.open(store) as file:
                    assert file.pread(3, 5000) == letter * 3

    def test_an_open_file_goes_on_with_the_one_that_it_was_opened_on(self, make_cache, tmp_path, kind):
        path, cache = tmp_path / "archive", make_cache("1MiB")
        self.write(path, kind, {"member": b"a" * 10000})
        with cache.open(f"{kind}://member::{path}", recheck=True) as file:
            self.write(path, kind, {"member": b"b" * 10000})
            assert file.pread(3, 5000) == b"aaa"
        cache.drop_caches()

    def test_the_same_one_is_cached_for_all_who_open_it(self, make_cache, directory, kind):
        cache = make_cache("4MiB")
        path = f"{directory}/all.{kind}"
        for make in (lambda: f"{kind}://a::{path}", lambda: FsspecStore(fsspec.filesystem(kind, fo=path), "a")):
            before = cache.stats().store_reads
            for _ in range(3):
                with cache.open(make()) as file:
                    assert file.pread(SIZE, 0) == DATA["a"]
                    file.inode.wait_idle(30)
            assert cache.stats().store_reads == before + 1


class TestStress:
    @pytest.mark.parametrize("frames", [1, 2, 3, 64])
    @pytest.mark.parametrize("system", [tar, tar_of_a_file_object, zip_file, zip_of_a_file_object, ftp_server, sftp_server])
    def test_threads_that_read_at_random_see_the_right_bytes(self, asked, seed, system, frames):
        fs, path = system(asked)

        def read(random, file, data):
            for _ in range(400 if STRESS else 12):
                start, nbytes = random.randrange(len(data)), random.choice((1, 100, PAGE, 5 * PAGE))
                if random.random() < 0.1:
                    file.prefetch(start, nbytes)
                assert file.pread(nbytes, start) == data[start : start + nbytes]

        with checked_cache(frames) as cache:
            files = [(cache.open(FsspecStore(fs, path.format(name))), DATA[name]) for name in NAMES]
            Crew(
                *[
                    lambda number=number, file=file, data=data: read(random.Random(seed + number), file, data)
                    for number, (file, data) in enumerate(files)
                ]
            ).join_well()
            for file, _ in files:
                wait_until(lambda file=file: file.inode.wait_idle(1), "background reads")
