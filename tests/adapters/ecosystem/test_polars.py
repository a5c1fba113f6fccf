"""Polars on cached files: a pyarrow data set reads parts; a file object is read whole."""

import pytest

polars = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
dataset = pytest.importorskip("pyarrow.dataset")

from pagecache.adapters.arrow import dataset_of  # noqa: E402


@pytest.fixture
def frame():
    return polars.DataFrame({
        "id": range(100_000), "square": [value * value for value in range(100_000)], "text": ["some text"] * 100_000,
        "noise": [hash(str(value)) for value in range(100_000)],
    })  # fmt: skip


@pytest.fixture
def parquet(frame, tmp_path):
    frame.write_parquet(tmp_path / "frame.parquet", row_group_size=10_000)
    return (tmp_path / "frame.parquet").read_bytes()


def test_scan_of_a_data_set_reads_parts(frame, parquet, open_object, cache, server):
    file = open_object("frame.parquet", parquet)
    for _ in range(2):
        server.counts.take()
        lazy = polars.scan_pyarrow_dataset(dataset_of([file]))
        found = lazy.filter(polars.col("id") < 25_000).select("id", "square").collect()
        assert found.sort("id").equals(frame.head(25_000).select("id", "square"))
        cache.check()  # waits for readahead
    assert server.counts.take() == (0, 0)


def test_several_files(frame, parquet, open_object):
    files = [open_object(f"{number}.parquet", parquet) for number in range(3)]
    assert polars.scan_pyarrow_dataset(dataset_of(files)).select(polars.len()).collect().item() == 3 * len(frame)


def test_a_file_object(frame, parquet, open_object, server):
    file = open_object("frame.parquet", parquet)
    for _ in range(2):
        server.counts.take()
        file.seek(0)
        assert polars.read_parquet(file).equals(frame)
    assert server.counts.take() == (0, 0)
