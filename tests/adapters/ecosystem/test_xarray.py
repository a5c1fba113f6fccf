"""xarray on cached files: NetCDF by h5py, Zarr through a cached store."""

import numpy
import pytest

xarray = pytest.importorskip("xarray", minversion="2024.1")  # not the directory of tests of that name


@pytest.fixture
def data(seed):
    random = numpy.random.default_rng(seed)
    time, y, x = 24, 90, 180
    temperature, mask = random.random((time, y, x), dtype="f4"), random.random((y, x)) < 0.5
    return xarray.Dataset(
        {"t2m": (("time", "y", "x"), temperature), "mask": (("y", "x"), mask)},
        coords={"time": numpy.arange(time), "y": numpy.linspace(-90, 90, y), "x": numpy.linspace(0, 360, x)},
        attrs={"title": "made up"},
    )


def test_netcdf_twice_and_the_second_time_asks_for_nothing(data, open_object, cache, server, tmp_path):
    pytest.importorskip("h5netcdf")
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf", encoding={"t2m": {"chunksizes": (1, 90, 180), "zlib": True}})
    file = open_object("data.nc", (tmp_path / "data.nc").read_bytes())
    for _ in range(2):
        server.counts.take()
        with xarray.open_dataset(file, engine="h5netcdf") as opened:
            xarray.testing.assert_identical(opened.isel(time=slice(3, 9)).load(), data.isel(time=slice(3, 9)))
        cache.check()  # waits for readahead
    assert server.counts.take() == (0, 0)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_zarr_twice_and_the_second_time_asks_for_nothing(data, cache, server, tmp_path):
    pytest.importorskip("zarr", minversion="3")
    pytest.importorskip("aiohttp")
    from zarr.storage import FsspecStore

    from pagecache.adapters.zarr import PageCacheStore

    data.to_zarr(tmp_path / "data.zarr", encoding={"t2m": {"chunks": (4, 45, 90)}}, consolidated=True)
    server.put_tree(tmp_path / "data.zarr", "data.zarr")
    store = PageCacheStore(FsspecStore.from_url(server.url("data.zarr"), read_only=True), cache)
    for _ in range(2):
        server.counts.take()
        with xarray.open_zarr(store, chunks=None, consolidated=True) as opened:
            xarray.testing.assert_identical(opened.isel(time=slice(3, 9)).load(), data.isel(time=slice(3, 9)))
        cache.check()  # waits for readahead
    assert server.counts.take() == (0, 0)
