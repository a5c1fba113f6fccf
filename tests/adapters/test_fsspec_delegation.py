"""What `pagecache::` leaves to its target, by fsspec's names and the target's, blocking or not, is seen by all who read."""

import asyncio
import contextlib

import pytest
from support import PAGE, pages_of
from support.http_server import ObjectServer

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402

SIZE = 300 * PAGE + 123
DATA = pages_of(SIZE)


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("8MiB")) as cache:
        yield cache


@pytest.fixture
def fs(cache):
    system = PageCacheFileSystem(target_protocol="http", skip_instance_cache=True)
    yield system
    system.invalidate_cache()


@pytest.fixture
def memory(cache):
    target = fsspec.filesystem("memory", skip_instance_cache=True)
    target.store, target.pseudo_dirs = {}, [""]
    return PageCacheFileSystem(fs=target, skip_instance_cache=True)


class TestEverythingElse:
    def test_listing_and_information_are_the_targets(self, memory):
        memory.pipe_file("/dir/one", b"1")
        memory.pipe_file("/dir/sub/two", b"22")
        target = memory.fs
        assert memory.ls("/dir") == target.ls("/dir")
        assert memory.ls("/dir", detail=False) == ["/dir/one", "/dir/sub"]
        assert memory.find("/") == ["/dir/one", "/dir/sub/two"]
        assert memory.glob("/dir/*") == target.glob("/dir/*")
        assert list(memory.walk("/dir")) == list(target.walk("/dir"))
        assert memory.info("/dir/one") == target.info("/dir/one")
        assert memory.exists("/dir/one")
        assert not memory.exists("/dir/none")
        assert memory.isdir("/dir/sub")
        assert memory.isfile("/dir/one")
        assert memory.size("/dir/sub/two") == 2
        assert memory.du("/dir") == 3
        assert memory.modified("/dir/one") == target.modified("/dir/one")
        assert memory.cat(["/dir/one", "/dir/sub/two"]) == {"/dir/one": b"1", "/dir/sub/two": b"22"}

    def test_writes_go_to_the_target_and_are_seen(self, memory, tmp_path):
        for number in range(3):
            memory.pipe_file("/object", bytes([number]) * 5000)
            assert memory.cat_file("/object") == bytes([number]) * 5000
            with memory.open("/object", "wb") as file:
                file.write(bytes([number + 10]) * 4000)
            assert memory.cat_file("/object") == bytes([number + 10]) * 4000
        memory.cp_file("/object", "/copy")
        assert memory.cat_file("/copy") == b"\x0c" * 4000
        memory.mv("/copy", "/moved")
        assert not memory.exists("/copy")
        (tmp_path / "local").write_bytes(b"put")
        memory.put_file(str(tmp_path / "local"), "/moved")
        assert memory.cat_file("/moved") == b"put"
        memory.get_file("/moved", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == b"put"
        memory.rm("/moved")
        with pytest.raises(FileNotFoundError):
            memory.cat_file("/moved")
        memory.makedirs("/made/dir", exist_ok=True)
        assert memory.isdir("/made/dir")

    @pytest.mark.parametrize("recheck", [False, 3600])
    def test_own_writes_are_seen_even_by_those_who_do_not_look(self, cache, recheck):
        target = fsspec.filesystem("memory", skip_instance_cache=True)
        target.store, target.pseudo_dirs = {}, [""]
        system = PageCacheFileSystem(fs=target, recheck=recheck, skip_instance_cache=True)
        for number in range(3):
            system.pipe_file("/object", bytes([number]) * 5000)
            assert system.cat_file("/object") == bytes([number]) * 5000
            with system.open("/object") as file:
                assert file.read() == bytes([number]) * 5000

    def test_a_change_while_an_object_is_opened(self, cache):
        """What was looked up before it is not taken for what is there afterwards, by those who do not look again either."""

        class Interrupted(fsspec.get_filesystem_class("memory")):
            cachable = False
            store, pseudo_dirs, meanwhile = {}, [""], None

            def info(self, path, **kwargs):
                found = super().info(path, **kwargs)
                if self.meanwhile is not None:
                    change, self.meanwhile = self.meanwhile, None
                    change()
                return found

        for recheck in (False, 3600, "open"):
            target = Interrupted()
            system = PageCacheFileSystem(fs=target, recheck=recheck, skip_instance_cache=True)
            system.pipe_file("/object", b"old" * 5000)
            target.meanwhile = lambda system=system: system.pipe_file("/object", b"new" * 5000)
            with contextlib.suppress(OSError):  # either version, or that it was replaced
                system.cat_file("/object")
            assert system.cat_file("/object") == b"new" * 5000
            with system.open("/object") as file:
                assert file.read() == b"new" * 5000

    def test_names_of_arguments_are_fsspecs(self, fs, server, memory):
        memory.pipe_file(path="/dir/one", value=b"1")
        assert memory.info(path="/dir/one") == memory.fs.info("/dir/one")
        memory.mv(path1="/dir/one", path2="/dir/two")
        assert memory.find(path="/dir") == ["/dir/two"]
        url = server.put("page/", b"<a href='one'></a>")
        assert fs.ls(path=url, detail=False) == [f"{url}one"]  # which the target calls url

    def test_paths_with_the_protocol(self, memory):
        memory.pipe({"pagecache://dir/one": b"1", "pagecache:///dir/two": b"2"})
        assert memory.cat(["pagecache://dir/one", "/dir/two"]) == {"/dir/one": b"1", "/dir/two": b"2"}
        memory.rm(["pagecache://dir/one"])
        assert memory.find("pagecache://dir") == ["/dir/two"]

    def test_what_only_the_target_has(self, cache, tmp_path):
        system = PageCacheFileSystem("file", skip_instance_cache=True)
        system.pipe_file(tmp_path / "one", b"old")
        assert system.cat_file(tmp_path / "one") == b"old"
        (tmp_path / "two").write_bytes(b"new")
        system.rm_file(str(tmp_path / "one"))
        system.symlink(f"pagecache://{tmp_path}/two", f"{tmp_path}/one")
        assert system.cat_file(tmp_path / "one") == b"new"
        system.pipe_file(tmp_path / "one", b"through the link")
        assert system.cat_file(tmp_path / "two") == b"through the link"
        assert (system.auto_mkdir, system.fsid, system.local_file) == (False, "local", False)
        with pytest.raises(AttributeError, match="no_such_thing"):
            system.no_such_thing  # noqa: B018
        assert not hasattr(system, "_no_such_thing")

    def test_unknown_operations_forget_what_they_name(self, cache):
        class Special(fsspec.get_filesystem_class("memory")):
            cachable = False
            store, pseudo_dirs = {}, [""]

            def encrypt(self, names, *, into):
                for name in names:
                    self.pipe_file(name, into)

            async def rotate(self, name):
                self.pipe_file(name, b"rotated")

        system = PageCacheFileSystem(fs=Special(), skip_instance_cache=True)
        system.pipe({"/one": b"plain", "/two": b"plain"})
        assert system.cat_file("/one") == system.cat_file("/two") == b"plain"
        system.encrypt(["/one", "pagecache://two"], into=b"secret")
        assert system.cat_file("/one") == system.cat_file("/two") == b"secret"
        fsspec.asyn.sync(fsspec.asyn.get_loop(), system.rotate, "/one")
        assert system.cat_file("/one") == b"rotated"

    def test_coroutines_do_what_blocking_calls_do(self, memory, server, cache):
        """Over a target with coroutines and over one without."""
        http = PageCacheFileSystem("http", skip_instance_cache=True)
        root = server.put("root/", b"<a href='a'></a> <a href='sub/'></a>")
        server.put("root/sub/", b"<a href='b'></a>")
        server.put("root/a", b"old" * 3000)

        async def use():
            assert [(path, dirs, files) async for path, dirs, files in http._walk(root)] == list(
                await asyncio.to_thread(lambda: list(http.fs.walk(root)))
            )
            assert await http._cat_file(f"{root}a") == b"old" * 3000
            await http._pipe_file(f"{root}a", b"new")
            assert await http._cat_file(f"{root}a") == b"new"
            await memory._pipe({"/d/one": b"1", "/d/sub/two": b"2"})
            assert [step async for step in memory._walk("/d")] == [("/d", ["sub"], ["one"]), ("/d/sub", [], ["two"])]
            await memory._mv_file("/d/one", "/d/three") if hasattr(memory.fs, "mv_file") else await memory._cp_file(
                "/d/one", "/d/three"
            )
            assert await memory._cat_file("/d/three") == b"1"
            await memory._rm("/d", recursive=True)
            assert not await memory._exists("/d/three")
            with pytest.raises(FileNotFoundError):
                await memory._cat_file("/d/three")

        asyncio.run(use())
        http.invalidate_cache()

    def test_streams_for_coroutines(self, fs, server):
        url = server.put("object", DATA)

        async def use():
            async with await fs.open_async(url) as stream:
                parts = [await stream.read(5), await stream.read(100_000), await stream.read()]
                assert (b"".join(parts), stream.size, await stream.read(1)) == (DATA, SIZE, b"")
                stream.seek(7)
                assert (await stream.read(3), stream.tell()) == (DATA[7:10], 10)
            server.forget()
            async with await fs.open_async(url) as stream:
                assert await stream.read(-1) == DATA
            assert server.count("GET") == 0
            with pytest.raises(ValueError, match="bytes"):
                await fs.open_async(url, "r")

        asyncio.run(use())

    def test_mapping_interface(self, memory):
        memory.pipe_file("/root/a", b"1")
        mapper = memory.get_mapper("/root")
        assert dict(mapper) == {"a": b"1"}
        assert mapper.getitems(["a", "b"], on_error="omit") == {"a": b"1"}
