"""Budgets that cannot be had say so, with what to do; and how a cache and its files are left in asyncio."""

import asyncio
import logging
import subprocess
import sys

import pytest
from support import PAGE, Store, pages_of

import pagecache
from pagecache import budget, default, units

GIB = 1 << 30


class TestBudget:
    @pytest.mark.parametrize("size", ["2TiB", 1 << 62])
    def test_more_than_a_cache_can_have_names_the_most(self, size):
        with pytest.raises(ValueError, match=r"too large: one cache has 1\.0 TiB at most"):
            pagecache.PageCache(size)

    def test_more_than_there_is_memory_is_warned_of(self, make_cache, monkeypatch, caplog):
        monkeypatch.setattr(budget, "memory_limit", lambda: 3 * PAGE)
        with caplog.at_level(logging.WARNING, logger="pagecache"):
            make_cache(3 * PAGE)
            assert not caplog.records
            make_cache(4 * PAGE)
        assert "may use 12.0 KiB of memory" in caplog.text

    @pytest.mark.parametrize("option", ["dirty_limit", "dirty_background"])
    @pytest.mark.parametrize(("part", "reason"), [("200%", "more than the whole budget"), ("x%", "cannot read the part")])
    def test_parts_of_it_are_parts(self, option, part, reason):
        with pytest.raises(ValueError, match=reason):
            pagecache.PageCache("1MiB", **{option: part})

    def test_too_few_addresses_name_the_limit(self):
        code = (
            "import resource, pagecache\n"
            f"resource.setrlimit(resource.RLIMIT_AS, ({4 * GIB}, resource.RLIM_INFINITY))\n"
            "try: pagecache.PageCache('8GiB')\n"
            "except OSError as error: print(error)\n"
        )
        ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=100)
        assert "give less, or raise RLIMIT_AS (4.0 GiB)" in ran.stdout, ran.stdout + ran.stderr


class TestDefaultCache:
    def test_names_the_variable_that_cannot_be_read(self, monkeypatch):
        monkeypatch.setattr(default, "_default", None)
        monkeypatch.setenv("PAGECACHE_SIZE", "abc")
        with pytest.raises(ValueError, match="PAGECACHE_SIZE in the environment: cannot read the size 'abc'"):
            pagecache.default_cache()

    def test_is_as_large_as_a_cache_can_be_on_the_largest_machines(self, monkeypatch):
        made = []
        monkeypatch.setattr(default, "_default", None)
        monkeypatch.setattr(default, "PageCache", lambda size: made.append(size))
        monkeypatch.setattr(default, "memory_limit", lambda: 64 << 40)
        monkeypatch.delenv("PAGECACHE_SIZE", raising=False)
        pagecache.default_cache()
        assert made == [units.MAX_BUDGET_BYTES]


class TestAsyncWith:
    def test_closes_files_and_cache(self):
        async def use():
            async with pagecache.PageCache(16 * PAGE) as cache:
                async with cache.open(Store(pages_of(3 * PAGE))) as file:
                    assert await file.pread_async(2 * PAGE, 0) == pages_of(2 * PAGE)
                async with cache.open(pagecache.MemoryStore(b"x"), on_change="reload") as other:
                    assert await other.pread_async(1, 0) == b"x"
                assert file.closed and other.closed and not cache.closed
            assert cache.closed

        asyncio.run(use())


class TestPrefetch:
    def test_can_be_iterated_over_page_by_page(self, make_cache):
        with make_cache(64 * PAGE).open(Store(pages_of(20 * PAGE))) as file:
            prefetch = file.prefetch()
            assert len(prefetch) == 20
            assert list(prefetch) == list(range(20))
            assert file.cachestat().nr_cache == 20

    def test_iterating_ends_with_what_went_wrong(self, make_cache):
        class Failing(Store):
            def answer(self, offset, buffers):
                raise OSError(5, "no")

        with make_cache(64 * PAGE).open(Failing(pages_of(20 * PAGE))) as file, pytest.raises(OSError, match="no"):
            list(file.prefetch())


def test_numbers_of_a_file_have_a_table(make_cache):
    cache = make_cache(16 * PAGE)
    with cache.open(Store(pages_of(3 * PAGE), key="<name>")) as file:
        file.pread(PAGE, 0)
        shown = cache.stats(per_file=True).files[0]._repr_html_()
    assert "&lt;name&gt;" in shown and "resident_bytes" in shown
