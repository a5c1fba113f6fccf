"""pyarrow on cached files: Parquet, IPC and data sets, read without copies where one folio holds the bytes."""

import numpy
import pytest
from support import PAGE, assert_nothing_is_held
from support.http_objects import HttpStore

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from pagecache.adapters import arrow as adapter  # noqa: E402
from pagecache.files.file import VIEW_BYTES_MIN  # noqa: E402


@pytest.fixture
def table(seed):
    """A table of several types, in several row groups when written."""
    random = numpy.random.default_rng(seed)
    rows = 40_000
    return pa.table({
        "id": numpy.arange(rows),
        "price": random.random(rows),
        "count": random.integers(0, 1000, rows),
        "name": [f"name {value}" for value in random.integers(0, 500, rows)],
        "weight": random.random(rows),
    })  # fmt: skip


@pytest.fixture
def parquet(table, tmp_path):
    """The bytes of a Parquet file of `table`."""
    path = tmp_path / "table.parquet"
    pq.write_table(table, path, row_group_size=10_000, compression="snappy")
    return path.read_bytes()


class TestParquet:
    @pytest.mark.parametrize("pre_buffer", [False, True])
    def test_columns_twice_and_the_second_pass_asks_for_nothing(
        self, table, parquet, open_object, cache, server, pre_buffer
    ):
        file = open_object("table.parquet", parquet)
        columns = ["id", "price", "name"]
        assert pq.read_table(file, columns=columns, pre_buffer=pre_buffer).equals(table.select(columns))
        cache.check()  # waits for readahead
        assert server.counts.take()[0] > 0
        assert pq.read_table(file, columns=columns, pre_buffer=pre_buffer).equals(table.select(columns))
        assert server.counts.take() == (0, 0)

    def test_through_a_parquet_file(self, table, parquet, open_object):
        with pq.ParquetFile(open_object("table.parquet", parquet)) as reader:
            assert reader.num_row_groups == 4
            assert reader.read_row_group(2).equals(table.slice(20_000, 10_000))

    def test_prefetched_columns_need_no_request_when_read(self, table, parquet, open_object, server):
        file = open_object("table.parquet", parquet)
        adapter.prefetch_parquet(file, ["price", "weight"]).wait()
        server.counts.take()
        assert pq.read_table(file, columns=["price", "weight"]).equals(table.select(["price", "weight"]))
        assert server.counts.take() == (0, 0)

    def test_prefetch_takes_only_what_is_named(self, parquet, open_object):
        file = open_object("table.parquet", parquet)
        adapter.prefetch_parquet(file, ["price"], row_groups=[1], hole_size=0).wait()
        column = pq.ParquetFile(file).metadata.row_group(1).column(1)
        start = min(filter(None, [column.dictionary_page_offset, column.data_page_offset]))
        assert file.mapping.all_cached(start, column.total_compressed_size)
        assert file.cachestat().nr_cache * PAGE < len(parquet) // 2

    def test_prefetch_names_the_column_that_does_not_exist(self, parquet, open_object):
        file = open_object("table.parquet", parquet)
        with pytest.raises(KeyError, match="colour"):
            adapter.prefetch_parquet(file, ["colour"])

    def test_a_store_that_fails_is_an_error_not_zeros(self, parquet, cache, server, table):
        class Failing(HttpStore):
            fails = False

            def readv(self, offset, buffers):
                if self.fails:
                    raise ConnectionResetError("planned")
                return super().readv(offset, buffers)

        server.put("table.parquet", parquet)
        with cache.open(Failing(server.url("table.parquet"))) as file:
            reader = pq.ParquetFile(file)
            file.inode.store.fails = True
            with pytest.raises(OSError, match=r"table.parquet at offset \d+: planned"):
                reader.read()
            file.inode.store.fails = False
            assert reader.read().equals(table)


class TestIpc:
    def test_arrays_without_a_copy_keep_their_pages(self, table, cache, open_object):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        file = open_object("table.arrow", sink.getvalue())
        file.prefetch().wait()
        read = pa.ipc.open_file(file).read_all()
        assert cache.stats().nr_pinned > 0
        file.close()
        cache.drop_caches()
        assert read.equals(table)
        del read
        assert_nothing_is_held(cache)

    def test_a_table_larger_than_the_cache(self, table, make_cache, server):
        cache = make_cache("256KiB")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4000)
        assert sink.getvalue().size > 4 * cache.size
        server.put("table.arrow", sink.getvalue())
        with cache.open(HttpStore(server.url("table.arrow"))) as file:
            assert pa.ipc.open_file(file).read_all().equals(table)


class TestDataset:
    def test_of_fragments_on_cached_files(self, table, parquet, open_object, server):
        dataset = pytest.importorskip("pyarrow.dataset")
        file = open_object("table.parquet", parquet)
        fragment = dataset.ParquetFileFormat().make_fragment(pa.PythonFile(file, mode="r"))
        found = fragment.to_table(filter=dataset.field("count") < 10, columns=["id", "count"])
        kept = table.filter(pa.compute.less(table["count"], 10)).select(["id", "count"])
        assert found.sort_by("id").equals(kept)


class TestReadBuffer:
    @pytest.fixture
    def file(self, open_object, rng):
        file = open_object("bytes", rng.randbytes(600_000))
        file.prefetch().wait()
        return file

    def test_large_ranges_of_one_folio_are_views(self, file, server):
        data = server.get("bytes")
        file.seek(0)
        buffer = file.read_buffer(VIEW_BYTES_MIN)
        assert isinstance(buffer, memoryview) and buffer.readonly
        assert file.tell() == VIEW_BYTES_MIN
        assert buffer == data[:VIEW_BYTES_MIN]
        assert file.cache.stats().nr_pinned > 0
        buffer.release()
        assert file.cache.stats().nr_pinned == 0

    def test_any_size_and_position(self, file, server, rng):
        data = server.get("bytes")
        for _ in range(200):
            position = rng.randrange(len(data) + 10)
            size = rng.choice([-1, None, 0, 1, PAGE, VIEW_BYTES_MIN, 200_000, 2**40])
            file.seek(position)
            buffer = file.read_buffer(size)
            expected = data[position:] if size in (-1, None) else data[position : position + size]
            assert buffer == expected
            assert file.tell() == position + len(expected)

    def test_views_never_pin_the_cache_full(self, make_cache, server, rng):
        cache = make_cache("1MiB")
        data = rng.randbytes(4 * 1024 * 1024)
        server.put("large", data)
        with cache.open(HttpStore(server.url("large"))) as file:
            kept = []
            for start in range(0, len(data), 32 * 1024):
                file.prefetch(start, 32 * 1024).wait()
                file.seek(start)
                kept.append(file.read_buffer(32 * 1024))
            assert any(isinstance(buffer, memoryview) for buffer in kept)
            assert b"".join(kept) == data
        kept.clear()

    def test_closed(self, file):
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read_buffer(1)
