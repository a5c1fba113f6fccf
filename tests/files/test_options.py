"""Unknown options: a TypeError which names the right one, at every place that takes options by name."""

import pytest

import pagecache
from pagecache.options import check_options, check_spelling, unknown_option

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402
from pagecache.adapters.fsspec_cache_type import PageCacheType  # noqa: E402
from pagecache.stores.fsspec import store_of_url  # noqa: E402


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("1MiB")) as cache:
        yield cache


@pytest.fixture
def url():
    fsspec.filesystem("memory").pipe_file("/misspelled/object", b"bytes")
    yield "memory://misspelled/object"
    fsspec.filesystem("memory").rm("/misspelled", recursive=True)


MISSPELLED = [("rechek", "recheck"), ("on_chnage", "on_change"), ("whole_upto", "whole_up_to")]


@pytest.mark.parametrize(("wrong", "right"), MISSPELLED)
class TestMisspelled:
    def test_of_a_chained_url(self, cache, url, wrong, right):
        with pytest.raises(TypeError, match=f"pagecache:// has no option '{wrong}': did you mean '{right}'"):
            fsspec.open(f"pagecache::{url}", pagecache={wrong: 1})
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            fsspec.open(f"pagecache::{url}", **{wrong: 1})

    def test_of_the_file_system(self, wrong, right):
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            fsspec.filesystem("pagecache", target_protocol="memory", **{wrong: 1})
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            PageCacheFileSystem("memory", **{wrong: 1})

    def test_of_an_open_by_url(self, cache, url, wrong, right):
        """The memory file system, as most, takes any option."""
        with pytest.raises(TypeError, match=f"PageCache.open has no option '{wrong}': did you mean '{right}'"):
            cache.open(url, **{wrong: 1})
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            store_of_url(url, **{wrong: 1})
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            cache.open(f"pagecache::{url}", **{wrong: 1})

    def test_of_the_cache_of_a_file(self, wrong, right):
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            PageCacheType(1, None, 1, **{wrong: 1})


class TestElsewhere:
    """The other places that take options by name, and hand them on."""

    def test_of_an_open_by_path(self, cache, tmp_path):
        (tmp_path / "file").write_bytes(b"bytes")
        with pytest.raises(TypeError, match=r"'rechek': did you mean 'recheck'.*for URLs"):
            cache.open(tmp_path / "file", rechek=5)
        with pytest.raises(TypeError, match=r"'anon'.*for URLs"):
            cache.open(tmp_path / "file", anon=True)

    def test_of_a_plugin_for_workers(self):
        dask = pytest.importorskip("pagecache.adapters.dask", reason="distributed is not installed")
        with pytest.raises(TypeError, match="did you mean 'replicate'"):
            dask.PageCachePlugin("1MiB", replicat="none")
        with pytest.raises(TypeError, match="did you mean 'policy'"):
            dask.PageCachePlugin("1MiB", cache_options={"polcy": "lru"})
        with pytest.raises(TypeError, match="'secret'"):
            dask.PageCachePlugin("1MiB", secret="of my own")
        dask.PageCachePlugin("1MiB", replicate="none", timeout_s=1, cache_options={"policy": "kernel"})

    def test_of_a_mount(self, cache, tmp_path):
        from pagecache.adapters.fuse import mount

        for source in (str(tmp_path), "memory://somewhere"):
            with pytest.raises(TypeError, match="did you mean 'recheck'"):
                mount(source, str(tmp_path / "mountpoint"), cache=cache, rechek=5)
        with pytest.raises(TypeError, match="'write_back'"):
            mount(str(tmp_path), str(tmp_path / "mountpoint"), cache=cache, write_back=True)

    def test_of_a_registration(self, cache):
        duckdb = pytest.importorskip("pagecache.adapters.duckdb", reason="fsspec is not installed")
        with pytest.raises(TypeError, match="did you mean 'protocol'"):
            duckdb.register(None, cache, str, protcol="x")

    def test_of_a_database(self, cache):
        sqlite = pytest.importorskip("pagecache.adapters.sqlite", reason="apsw is not installed")
        with pytest.raises(TypeError, match="did you mean 'flags'"):
            sqlite.connect(":memory:", cache, flgs=1)


class TestLost:
    def test_options_of_the_target_beside_those_of_the_cache(self, cache):
        for options in ({"client_kwargs": {"trust_env": True}}, {"anon": True}, {"headers": {"A": "b"}}):
            with pytest.raises(TypeError, match=rf"no option '{next(iter(options))}'.*target_options=.*http="):
                fsspec.open("pagecache::http://127.0.0.1/object", **options)

    @pytest.mark.parametrize("options", [{"compression": "gzip"}, {"encoding": "latin-1"}, {"newline": ""}, {"num": 3}])
    def test_what_fsspec_would_leave_out(self, cache, url, options):
        with pytest.raises(TypeError, match=next(iter(options))):
            cache.open(url, **options)

    def test_options_of_files_that_a_store_has_not(self, cache, url):
        with pytest.raises(TypeError, match=r"on_change= is an option of PageCache\.open"):
            store_of_url(url, on_change="reload")

    def test_options_that_are_known_reach_their_place(self, cache, url):
        with cache.open(url, recheck=5, use_listings_cache=False) as file:
            assert file.read() == b"bytes"
        system = fsspec.filesystem(
            "pagecache", target_protocol="memory", recheck=5, batch_size=3, use_listings_cache=False, max_paths=5,
            listings_expiry_time=1, skip_instance_cache=True, asynchronous=False,
        )  # fmt: skip
        assert (system.recheck, system.batch_size) == (5.0, 3)


class TestMessages:
    def test_the_nearest_else_all(self):
        assert "did you mean 'alpha'" in str(unknown_option("alhpa", ("alpha", "beta"), "it"))
        assert "it has alpha, beta" in str(unknown_option("x", ("beta", "alpha"), "it"))
        assert str(unknown_option("x", (), "it", "why")) == "it has no option 'x': why"
        both = str(unknown_option("alph", ("alpha",), "it", "why"))
        assert both == "it has no option 'alph': did you mean 'alpha'? (why)"

    def test_those_that_are_known_pass(self):
        check_options(["alpha"], ("alpha",), "it")
        check_spelling(["gamma", "delta", "recheck", "anon"], ("recheck",), (), "it")
        check_spelling(["rechecks"], ("recheck",), ("rechecks",), "it")
