"""pandas on cached files: Parquet, Feather, CSV and pickles, read from the file object."""

import io

import numpy
import pytest

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.fixture
def frame(seed):
    random = numpy.random.default_rng(seed)
    names = [f"n{number}" for number in random.integers(0, 50, 20_000)]
    return pandas.DataFrame({"id": numpy.arange(20_000), "value": random.random(20_000), "name": names})


def written(frame, how):
    sink = io.BytesIO()
    getattr(frame, how)(sink, **({"index": False} if how in ("to_csv", "to_parquet") else {}))
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "feather", "csv", "pickle"])
def test_a_frame_twice_and_the_second_time_asks_for_nothing(frame, open_object, cache, server, kind):
    file = open_object(f"frame.{kind}", written(frame, f"to_{kind}"))
    for _ in range(2):
        server.counts.take()
        file.seek(0)
        read = getattr(pandas, f"read_{kind}")(file)
        pandas.testing.assert_frame_equal(read, frame)
        cache.check()  # waits for readahead
    assert server.counts.take() == (0, 0)


def test_columns_of_a_parquet_file(frame, open_object):
    file = open_object("frame.parquet", written(frame, "to_parquet"))
    pandas.testing.assert_frame_equal(pandas.read_parquet(file, columns=["value"]), frame[["value"]])


def test_a_csv_file_in_pieces(frame, open_object):
    file = open_object("frame.csv", written(frame, "to_csv"))
    with pandas.read_csv(file, chunksize=3000) as pieces:
        pandas.testing.assert_frame_equal(pandas.concat(pieces), frame)


def test_a_frame_does_not_change_when_pages_are_dropped(frame, open_object, cache):
    file = open_object("frame.feather", written(frame, "to_feather"))
    file.prefetch().wait()
    read = pandas.read_feather(file)
    file.close()
    cache.drop_caches()
    pandas.testing.assert_frame_equal(read, frame)
