"""Objects named by path: looked up once, shared, closed when there are too many."""

import pytest
from support.http_objects import HttpStore

from pagecache.adapters.objects import Objects


@pytest.fixture
def objects(cache, server):
    made = Objects(cache, lambda path: HttpStore(server.url(path)), max_objects=3)
    yield made
    made.close()


def test_is_looked_up_once(objects, server):
    server.put("a", b"data")
    for _ in range(3):
        assert (objects.size("a"), objects.exists("a")) == (4, True)
        with objects.open("a") as file:
            assert file.read() == b"data"
    assert server.counts.take() == (2, 4)


def test_absence_is_looked_up_each_time(objects, server):
    for _ in range(3):
        assert not objects.exists("none")
        with pytest.raises(FileNotFoundError, match="none"):
            objects.open("none")
    server.put("none", b"there now")
    assert objects.open("none").read() == b"there now"


def test_absence_is_looked_up_once_where_it_is_kept(cache, server):
    objects = Objects(cache, lambda path: HttpStore(server.url(path)), keeps_absence=lambda path: path.endswith(".ovr"))
    for _ in range(3):
        assert not objects.exists("none.ovr")
        with pytest.raises(FileNotFoundError, match="none"):
            objects.open("none.ovr")
    assert server.counts.take()[0] == 1
    server.put("none.ovr", b"there now")
    assert not objects.exists("none.ovr")
    objects.invalidate("none.ovr")
    assert objects.size("none.ovr") == 9
    objects.close()


def test_the_time_of_a_version_stays_and_that_of_the_next_one_is_later(objects, server):
    server.put("a", b"old")
    first = objects.modified_s("a")
    objects.invalidate("a")
    assert objects.modified_s("a") == first
    server.put("a", b"newer")
    assert objects.modified_s("a") == first
    objects.invalidate("a")
    assert objects.modified_s("a") > first


def test_a_store_that_fails_is_not_an_absence(cache):
    def fail(path):
        raise PermissionError(13, "planned", path)

    objects = Objects(cache, fail)
    for _ in range(2):
        with pytest.raises(PermissionError):
            objects.exists("a")


def test_what_was_used_least_recently_is_closed(objects, server):
    files = []
    for number in range(10):
        server.put(f"o{number}", bytes([number]) * 100)
        files.append(objects.open(f"o{number}"))
    assert len(objects._found) == 3
    for number, file in enumerate(files):
        assert file.read() == bytes([number]) * 100
        file.close()


def test_changes_are_seen_when_invalidated(objects, server):
    server.put("a", b"old")
    assert objects.open("a").read() == b"old"
    server.put("a", b"newer")
    assert objects.size("a") == 3
    objects.invalidate("a")
    with objects.open("a") as file:
        assert file.read() == b"newer"


def test_size_and_bytes_are_of_one_version(objects, server, cache):
    """Also when the store has noticed by itself that there is another one."""
    url = server.put("a", b"old" * 5000)
    with objects.open("a") as file:
        assert file.read(3) == b"old"
    server.put("a", b"newer" * 5000)
    store = HttpStore(url)
    moving = Objects(cache, lambda path: store)
    store._size = store._etag = None
    assert moving.open("a").read(5) == b"newer"
    server.put("a", b"newest" * 5000)
    store._size = store._etag = None
    for _ in range(2):
        with pytest.raises(OSError, match="was replaced"):
            moving.open("a")
        assert moving.size("a") == 25000
    moving.invalidate("a")
    assert (moving.open("a").read(6), moving.size("a")) == (b"newest", 30000)
    moving.close()


def test_local_files_that_are_replaced(cache, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    objects = Objects(cache, lambda path: str(tmp_path / path))
    objects.open("a").close()
    (tmp_path / "b").write_bytes(b"newer")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(OSError, match="was replaced"):
        objects.open("a")
    objects.invalidate("a")
    with objects.open("a") as file:
        assert file.read() == b"newer"
    objects.close()


def test_local_paths(cache, tmp_path):
    (tmp_path / "a").write_bytes(b"data")
    objects = Objects(cache, lambda path: str(tmp_path / path))
    with objects.open("a") as file:
        assert file.read() == b"data"
    assert objects.exists("a") and not objects.exists("b") and not objects.exists("")
    objects.close()
