"""What cannot be found out is an error for a Zarr array that is read through a cache, never a fill value, and is forgotten
once the store is well: over HTTP by each kind of store, over files, and over archives."""

import asyncio
import contextlib
import errno
import os
import pickle
import shutil
import signal
import zipfile

import numpy
import pytest
from support import Crew, wait_until
from support.faulty_http import FAULTS, STATUSES, FaultyServer

zarr = pytest.importorskip("zarr", minversion="3")
aiohttp = pytest.importorskip("aiohttp")
obstore = pytest.importorskip("obstore")

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore, ZipStore  # noqa: E402

from pagecache.adapters.zarr import PageCacheStore  # noqa: E402

PROTOTYPE = default_buffer_prototype()
FILL = -7
OLD = numpy.arange(64 * 64, dtype="i4").reshape(64, 64)
NEW = OLD + 100_000
CONNECTIONS = 8  # more than a client keeps
LENGTHS = ("too short", "too long", "changed")
ARRAYS = ("sharded", "plain")
PART = (slice(8, 16), slice(8, 24))
KEYS = {"sharded": "sharded/c/0/0", "plain": "plain/c/0/0"}


def heal(server, store):
    """Have the server well, and known to be so: a client may meet connections that the server has closed once more."""
    was_stopped = "stopped" in server.struck
    wait_until(lambda: not store._reader.values.loading, "requests that the fault met to end: others would join them")
    server.heal()
    for _ in range(CONNECTIONS if was_stopped else 0):
        with contextlib.suppress(Exception):
            get(store._store, "zarr.json")


class OwnMethods(WrapperStore):
    """A store of which nothing is known: it is asked by its own methods."""

    async def getsize(self, key):
        return await self._store.getsize(key)


def of_fsspec(server, **options):
    return FsspecStore.from_url(server.url("").rstrip("/"), read_only=True, **options)


def of_obstore(server):
    client = {"allow_http": True, "timeout": "20s"}
    source = obstore.store.HTTPStore.from_url(server.url(""), client_options=client, retry_config={"max_retries": 0})
    return ObjectStore(source, read_only=True)


def of_own_methods(server):
    return OwnMethods(of_fsspec(server))


REMOTE = {"fsspec": of_fsspec, "obstore": of_obstore, "own methods": of_own_methods}


def write(store, values):
    group = zarr.open_group(store, mode="w")
    shapes = {"sharded": {"shards": (32, 32), "chunks": (8, 8)}, "plain": {"chunks": (32, 32)}}
    for name in ARRAYS:
        options = {"shape": values.shape, "dtype": "i4", "compressors": None, "fill_value": FILL}
        group.create_array(name, **shapes[name], **options)[...] = values


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Directories with the arrays: as they are, and as they become."""
    found = {}
    for name, values in {"old": OLD, "new": NEW}.items():
        found[name] = tmp_path_factory.mktemp(name)
        write(LocalStore(found[name]), values)
    return found


def put_tree(server, root):
    for file in root.rglob("*"):
        if file.is_file():
            server.put(str(file.relative_to(root)), file.read_bytes())


@pytest.fixture(scope="module")
def running():
    with FaultyServer() as server:
        yield server


@pytest.fixture
def server(running, trees):
    """A server of the arrays, which is well."""
    running.heal()
    running.rewrite = None
    running.struck.clear()
    put_tree(running, trees["old"])
    running.forget()
    yield running
    running.heal()


def read(array, part=PART):
    """Return what a read comes to: "old", "new", "fill", "other", or the error."""
    try:
        got = array[part]
    except Exception as error:
        return error
    for name, values in {"old": OLD, "new": NEW, "fill": numpy.full_like(OLD, FILL)}.items():
        if numpy.array_equal(got, values[part]):
            return name
    return "other"


def opened(store, name):
    return zarr.open_array(store, path=name, mode="r")


def get(store, key, byte_range=None):
    found = sync(store.get(key, PROTOTYPE, byte_range))
    return None if found is None else found.to_bytes()


class Replacing:
    """Replaces the objects of a server by their new versions when a request strikes."""

    def __init__(self, server, trees, strikes):
        self._server, self._trees, self._strikes = server, trees, strikes
        server.rewrite = self

    def __call__(self, answer):
        if self._strikes(answer):
            self._server.rewrite = None
            put_tree(self._server, self._trees["new"])
            self._server.struck.append("changed")
            self._server.answer_again(answer)


STRIKES = {
    "opening": lambda answer: True,
    "first": lambda answer: True,
    "pages": lambda answer: answer.is_range_request,
    "size": lambda answer: answer.is_size_request or answer.span == (0, 1),  # once HEAD was refused, GET is asked
}


def arm(server, trees, fault, when, name):
    if fault == "changed":
        Replacing(server, trees, lambda answer: name in answer.path and STRIKES[when](answer))
    else:
        server.fail(fault, STRIKES[when], path=name)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", REMOTE)
@pytest.mark.parametrize("fault", FAULTS)
class TestOverHttp:
    """Each fault once: an error or the right values, then the right values. Absent is what the server says is absent."""

    @staticmethod
    def is_believed(store, fault, is_first):
        """Whether what the server says is all that is known until the store is made anew: that there is no object, and,
        of a store that tells no versions, what it brings as a whole."""
        return (fault == "404" and is_first) or (fault in LENGTHS and not store._source.has_versions)

    def ends_well(self, server, store, array, found, fault, is_first=False):
        """Check what a read came to, and how the next ones go once the server is well."""
        assert server.struck == [fault]
        right = "new" if fault == "changed" else "old"
        is_absent = fault == "404" and is_first
        assert isinstance(found, Exception) or found == right or (is_absent and found == "fill"), found
        heal(server, store)
        if not self.is_believed(store, fault, is_first):
            assert read(array) == right
        again = PageCacheStore(store._store, store.cache)
        assert read(opened(again, array.path)) == right

    def test_when_it_is_opened(self, server, trees, make_cache, fault, kind, name):
        store = PageCacheStore(REMOTE[kind](server), make_cache("4MiB"))
        arm(server, trees, fault, "opening", name)
        with contextlib.suppress(Exception):
            assert read(opened(store, name)) == ("new" if fault == "changed" else "old")
        assert server.struck == [fault]
        heal(server, store)
        again = PageCacheStore(store._store, store.cache) if self.is_believed(store, fault, True) else store
        assert read(opened(again, name)) == ("new" if fault == "changed" else "old")

    def test_first_request_for_a_value(self, server, trees, make_cache, fault, kind, name):
        store = PageCacheStore(REMOTE[kind](server), make_cache("4MiB"))
        array = opened(store, name)
        arm(server, trees, fault, "first", KEYS[name])
        self.ends_well(server, store, array, read(array), fault, is_first=True)

    def test_request_for_pages_of_a_known_value(self, server, trees, make_cache, fault, kind, name):
        store = PageCacheStore(REMOTE[kind](server), make_cache("4MiB"))
        array = opened(store, name)
        assert get(store, KEYS[name], OffsetByteRequest(100))
        store.cache.drop_caches()
        arm(server, trees, fault, "pages", KEYS[name])
        self.ends_well(server, store, array, read(array), fault)

    def test_question_for_the_size(self, server, trees, make_cache, fault, kind, name):
        cache, source = make_cache("4MiB"), REMOTE[kind](server)
        assert read(opened(PageCacheStore(source, cache), name)) == "old"
        store = PageCacheStore(source, cache)
        array = opened(store, name)
        arm(server, trees, fault, "size", KEYS[name])
        found = read(array)
        if kind == "own methods" and name == "plain":
            assert (found, server.struck) == ("old", [])  # what is read whole has no size that would be asked for
            server.rewrite = None
        else:
            self.ends_well(server, store, array, found, fault)


@pytest.mark.parametrize("kind", REMOTE)
@pytest.mark.parametrize("status", STATUSES)
def test_the_error_is_the_one_without_a_cache(server, make_cache, kind, status):
    for name in ARRAYS:
        found = []
        for store in (REMOTE[kind](server), PageCacheStore(REMOTE[kind](server), make_cache("1MiB"))):
            array = opened(store, name)
            server.fail(status, path=KEYS[name])
            found.append(read(array))
            server.heal()
        assert type(found[0]) is type(found[1])
        assert (found[0] == "fill") == (status == "404") == (found[1] == "fill")


@pytest.mark.parametrize("recheck", ["open", True, 60, False])
@pytest.mark.parametrize("kind", REMOTE)
def test_a_server_that_stays_away_and_comes_back(server, make_cache, kind, recheck):
    """All requests fail, the questions and the repeated ones, too: no read of any part is a fill value."""
    store = PageCacheStore(REMOTE[kind](server), make_cache("4MiB"), recheck=recheck)
    arrays = [opened(store, name) for name in ARRAYS]
    for status in ("503", "429", "403", "500"):
        server.fail(status, times=1000)
        for array in arrays:
            assert isinstance(read(array), Exception)
            assert isinstance(read(array, slice(None)), Exception)
        server.heal()
    server.stop()
    for array in arrays:
        found = read(array)
        assert isinstance(found, Exception) or found == "old"  # one of the requests that no reader waited for was answered
    server.heal()
    for array in arrays:
        assert read(array) == "old"
        assert read(array, slice(None)) == "old"


def test_a_forked_child_has_no_zeros_either(server, make_cache):
    """Neither obstore nor an event loop's file system can be used in a child; what is asked for ranges directly can."""
    store = PageCacheStore(of_fsspec(server), make_cache("4MiB"))
    array = opened(store, "sharded")
    server.fail("503", times=1000)
    assert isinstance(read(array), Exception)
    server.heal()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            signal.alarm(20)  # a child that hangs ends
            status = 0 if read(opened(store, "sharded")) == "old" else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read(array) == "old"


@pytest.mark.parametrize("wrap", [lambda store: store, OwnMethods])
@pytest.mark.parametrize("name", ARRAYS)
def test_missing_is_what_the_store_takes_for_missing(server, make_cache, name, wrap):
    """As for a bucket whose missing objects may not be distinguished from forbidden ones."""
    missing = (FileNotFoundError, aiohttp.ClientResponseError)
    server.remove(KEYS[name])
    server.rewrite = lambda answer: setattr(answer, "status", 403 if answer.path == f"/{KEYS[name]}" else answer.status)
    plain, strict = of_fsspec(server, allowed_exceptions=missing), of_fsspec(server)
    caches = [make_cache("1MiB") for _ in range(2)]
    for _ in range(2):
        for store in (plain, PageCacheStore(wrap(plain), caches[0])):
            array = opened(store, name)
            assert read(array) == "fill"
            assert read(array, (slice(32, 64), slice(0, 64))) == "old"
        for store in (strict, PageCacheStore(wrap(strict), caches[1]), PageCacheStore(wrap(strict), caches[0])):
            assert isinstance(read(opened(store, name)), aiohttp.ClientResponseError)


@pytest.mark.parametrize("kind", REMOTE)
def test_questions_are_not_answered_with_no(server, make_cache, kind):
    store = PageCacheStore(REMOTE[kind](server), make_cache("1MiB"))
    server.fail("503", times=1000)
    if kind != "own methods":  # what another store's `exists` says is its own affair
        with pytest.raises((aiohttp.ClientResponseError, obstore.exceptions.BaseError)):
            sync(store.exists(KEYS["plain"]))
    with pytest.raises((OSError, aiohttp.ClientResponseError, obstore.exceptions.BaseError)):
        sync(store.getsize(KEYS["plain"]))
    server.heal()
    assert sync(store.exists(KEYS["plain"])) and not sync(store.exists("plain/c/9/9"))
    assert sync(store.getsize(KEYS["plain"])) == 32 * 32 * 4
    assert get(store, KEYS["plain"]) == OLD[:32, :32].tobytes()


@pytest.mark.parametrize("kind", REMOTE)
def test_a_server_that_refuses_to_tell_sizes(server, make_cache, kind):
    """HEAD is refused, as where URLs are signed for GET: GET tells enough."""
    from support.faulty_http import refuses_head

    cache, source = make_cache("4MiB"), REMOTE[kind](server)
    for status in (403, 404, 405, 500, None):
        server.rewrite = refuses_head(status)
        for recheck in ("open", True):
            store = PageCacheStore(source, cache, recheck=recheck)
            for name in ARRAYS:
                array = opened(store, name)
                assert (read(array), read(array, slice(None))) == ("old", "old")


class Sizes(MemoryStore):
    """Says what it likes of sizes, and brings what it likes."""

    says = staticmethod(lambda data: len(data))
    brings = staticmethod(lambda data, whole: data)

    async def get(self, key, prototype=None, byte_range=None):
        whole = await super().get(key, prototype or PROTOTYPE)
        data = None if whole is None else whole.to_bytes()
        if data is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            data = data[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            data = data[byte_range.offset :]
        elif isinstance(byte_range, SuffixByteRequest):
            data = data[max(0, len(data) - byte_range.suffix) :]
        return PROTOTYPE.buffer.from_bytes(self.brings(data, byte_range is None))

    async def getsize(self, key):
        return self.says(self._store_dict[key].to_bytes())


class TestStoresThatAreWrongAboutSizes:
    RANGES = (
        SuffixByteRequest(100),
        RangeByteRequest(10, 20),
        OffsetByteRequest(9000),
        RangeByteRequest(9990, 99_999),
        None,
    )

    @pytest.mark.parametrize("says", [
        lambda data: len(data) * 4 // 3, lambda data: len(data) - 1, lambda data: 0, lambda data: None,
        lambda data: 1 / 0,
    ])  # fmt: skip
    @pytest.mark.parametrize("first", range(5))
    def test_the_bytes_count(self, make_cache, rng, says, first):
        data = rng.randbytes(10_000)
        inner = Sizes({"k": PROTOTYPE.buffer.from_bytes(data)})
        inner.says = says
        store = PageCacheStore(inner, make_cache("1MiB"))
        for wanted in (*self.RANGES[first:], *self.RANGES[:first]) * 2:
            assert get(store, "k", wanted) == sync(inner.get("k", PROTOTYPE, wanted)).to_bytes()

    def test_too_many_bytes_are_an_error(self, make_cache):
        inner = Sizes({"k": PROTOTYPE.buffer.from_bytes(bytes(10_000))})
        inner.brings = lambda data, whole: data if whole else bytes(10_000)
        for wanted in self.RANGES[:2]:
            store = PageCacheStore(inner, make_cache("1MiB"))
            with pytest.raises(OSError, match="brought 10000 bytes") as raised:
                get(store, "k", wanted)
            assert raised.value.errno == errno.EIO
            assert get(store, "k") == bytes(10_000)

    def test_the_size_that_cannot_be_had_is_asked_for_by_none_that_waits(self, make_cache):
        inner = Sizes({"k": PROTOTYPE.buffer.from_bytes(bytes(10_000))})
        inner.says = lambda data: 1 / 0
        store = PageCacheStore(inner, make_cache("1MiB"))

        async def many():
            return await asyncio.gather(*[store.get("k", PROTOTYPE, RangeByteRequest(n, n + 9)) for n in range(50)])

        assert {len(found) for found in sync(many())} == {9}


class TestFiles:
    """Over a `LocalStore`: what a file system says in place of bytes."""

    @pytest.fixture
    def root(self, trees, tmp_path):
        return shutil.copytree(trees["old"], tmp_path / "arrays")

    @pytest.mark.parametrize("name", ARRAYS)
    @pytest.mark.parametrize("target", ["loop", "/proc/self/mem"])
    def test_a_file_that_cannot_be_read(self, root, make_cache, name, target):
        file = root / KEYS[name]
        data = file.read_bytes()
        plain = opened(LocalStore(root), name)
        store = PageCacheStore(LocalStore(root), make_cache("1MiB"))
        array = opened(store, name)
        file.unlink()
        file.symlink_to(file.name if target == "loop" else target)
        errors = [read(one) for one in (plain, array, array)]
        assert all(isinstance(error, OSError) for error in errors), errors
        assert len({error.errno for error in errors}) == 1
        file.unlink()
        file.write_bytes(data)
        assert read(array) == "old"

    @pytest.mark.parametrize("name", ARRAYS)
    def test_a_file_that_goes_while_a_part_of_it_is_cached(self, root, make_cache, name):
        file = root / KEYS[name]
        data = file.read_bytes()
        store = PageCacheStore(LocalStore(root), make_cache("1MiB"))
        array = opened(store, name)
        assert read(array) == "old"
        store.cache.drop_caches()
        file.unlink()
        found = read(array)
        assert (type(found).__name__, found.errno) == ("ObjectChangedError", errno.ESTALE)
        assert read(array) == "fill" == read(opened(LocalStore(root), name))
        file.write_bytes(data)
        assert read(opened(PageCacheStore(LocalStore(root), store.cache), name)) == "old"

    @pytest.mark.parametrize("name", ARRAYS)
    @pytest.mark.parametrize("way", ["replaced", "rewritten", "shorter", "longer"])
    def test_a_file_that_changes_while_a_part_of_it_is_cached(self, root, trees, make_cache, name, way):
        file, new = root / KEYS[name], (trees["new"] / KEYS[name]).read_bytes()
        store = PageCacheStore(LocalStore(root), make_cache("1MiB"))
        array = opened(store, name)
        assert read(array) == "old"
        store.cache.drop_caches()
        if way == "replaced":
            file.with_suffix(".tmp").write_bytes(new)
            file.with_suffix(".tmp").replace(file)
        else:
            file.write_bytes({"rewritten": new, "shorter": new[:-4096], "longer": new + bytes(4096)}[way])
            os.utime(file, ns=(1, 1))
        found = read(array)
        assert (type(found).__name__, found.errno) == ("ObjectChangedError", errno.ESTALE)
        file.write_bytes(new)
        assert read(opened(PageCacheStore(LocalStore(root), store.cache), name)) == "new"

    def test_a_directory_is_no_value_as_without_a_cache(self, root, make_cache):
        store = PageCacheStore(LocalStore(root), make_cache("1MiB"))
        for wanted in (None, RangeByteRequest(0, 10), SuffixByteRequest(10)):
            assert get(store, "plain/c", wanted) is None is get(LocalStore(root), "plain/c", wanted)


class TestArchives:
    """Over a `ZipStore`: archives that are damaged, or replaced."""

    @pytest.fixture
    def archive(self, trees, tmp_path):
        return self.pack(trees["old"], tmp_path / "arrays.zip")

    @staticmethod
    def pack(root, path):
        with zipfile.ZipFile(path, "w") as packed:
            for file in sorted(root.rglob("*")):
                if file.is_file():
                    packed.write(file, file.relative_to(root))
        return path

    @pytest.mark.parametrize("name", ARRAYS)
    def test_a_damaged_member(self, archive, make_cache, name):
        data = archive.read_bytes()
        with zipfile.ZipFile(archive) as packed:
            at = packed.getinfo(KEYS[name]).header_offset
        for damage in (b"\xff", data[at : at + 30].translate(bytes(range(255, -1, -1)))):
            with open(archive, "r+b") as file:
                file.seek(at)
                file.write(damage)
            array = opened(PageCacheStore(ZipStore(archive), make_cache("1MiB")), name)
            assert isinstance(read(array), zipfile.BadZipFile)
            assert isinstance(read(array), zipfile.BadZipFile)
            archive.write_bytes(data)
            assert read(opened(PageCacheStore(ZipStore(archive), make_cache("1MiB")), name)) == "old"

    @pytest.mark.parametrize("name", ARRAYS)
    def test_an_archive_that_is_replaced(self, archive, trees, make_cache, tmp_path, name):
        cache = make_cache("1MiB")
        store = PageCacheStore(ZipStore(archive), cache)
        assert read(opened(store, name)) == "old"
        self.pack(trees["new"], tmp_path / "other.zip").replace(archive)
        assert read(opened(store, name)) == "old"  # the archive that is open
        assert read(opened(PageCacheStore(ZipStore(archive), cache), name)) == "new"
        for one in (store, pickle.loads(pickle.dumps(store))):
            one.close()

    def test_a_cut_archive(self, archive, make_cache):
        archive.write_bytes(archive.read_bytes()[:-100])
        store = PageCacheStore(ZipStore(archive), make_cache("1MiB"))
        for call in (lambda: get(store, "zarr.json"), lambda: sync(store.exists("zarr.json")), lambda: store.get_sync("k")):
            with pytest.raises(zipfile.BadZipFile):
                call()


def test_an_error_ends_the_reads_that_waited_and_no_others(server, make_cache):
    store = PageCacheStore(of_fsspec(server), make_cache("4MiB"))
    server.fail("503", times=1)
    found = Crew(*[lambda: _outcome(store)] * 8).join_well()
    assert set(found) <= {"error", "right"}
    assert _outcome(store) == "right"


def _outcome(store):
    try:
        data = store.get_sync(KEYS["plain"], byte_range=RangeByteRequest(0, 4096))
    except aiohttp.ClientResponseError:
        return "error"
    return "right" if data.to_bytes() == OLD[:32, :32].tobytes() else "wrong"
