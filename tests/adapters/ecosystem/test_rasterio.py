"""rasterio on cached files: real GeoTIFFs, read by window, tile by tile and many ranges at once."""

import numpy
import pytest
from support import Crew
from support.http_objects import HttpStore

rasterio = pytest.importorskip("rasterio")

from rasterio.windows import Window  # noqa: E402

from pagecache.adapters.rasterio import PageCacheOpener  # noqa: E402

SIDE, TILE = 1024, 128
PROFILE = {
    "driver": "GTiff", "width": SIDE, "height": SIDE, "count": 2, "dtype": "uint16", "tiled": True, "blockxsize": TILE,
    "blockysize": TILE, "compress": "deflate", "crs": "EPSG:4326", "transform": rasterio.transform.from_origin(0, 0, 1, 1),
}  # fmt: skip


@pytest.fixture
def pixels(seed):
    return numpy.random.default_rng(seed).integers(0, 60_000, (2, SIDE, SIDE), dtype="uint16")


@pytest.fixture
def tiff(pixels, tmp_path, server):
    """A tiled GeoTIFF of `pixels` on the server; returns its path there."""
    path = tmp_path / "image.tif"
    with rasterio.open(path, "w", **PROFILE) as raster:
        raster.write(pixels)
    server.put("images/image.tif", path.read_bytes())
    return "images/image.tif"


@pytest.fixture
def opener(cache, server):
    made = PageCacheOpener(cache, lambda path: HttpStore(server.url(path)))
    yield made
    made.close()


def windows(rng, count):
    for _ in range(count):
        row, column = rng.randrange(SIDE - TILE), rng.randrange(SIDE - TILE)
        yield Window(column, row, rng.randrange(1, TILE), rng.randrange(1, TILE))


def part_of(pixels, window):
    rows, columns = window.toslices()
    return pixels[:, rows, columns]


class TestReading:
    def test_windows_twice_and_the_second_pass_asks_for_nothing(self, opener, tiff, pixels, server, rng):
        wanted = list(windows(rng, 16))
        for _ in range(2):
            server.counts.take()
            with rasterio.open(tiff, opener=opener) as raster:
                for window in wanted:
                    numpy.testing.assert_array_equal(raster.read(window=window), part_of(pixels, window))
            opener._objects.cache.check()  # waits for readahead
        assert server.counts.take() == (0, 0)

    @pytest.mark.parametrize("path", ["image.tif", "images/image.tif", "a/b/c/image.tif"])
    def test_nothing_is_asked_for_but_the_image(self, opener, tiff, server, path):
        server.put(path, server.get(tiff))
        with rasterio.open(path, opener=opener) as raster:
            raster.read(1, window=Window(0, 0, 10, 10))
        assert {asked for _, asked, _, _ in server.counts.log} == {path}

    def test_a_window_of_many_tiles_is_read_with_few_requests(self, opener, tiff, pixels, server):
        with rasterio.open(tiff, opener=opener) as raster:
            server.counts.take()
            numpy.testing.assert_array_equal(raster.read(1, window=Window(0, 0, SIDE, 4 * TILE)), pixels[0, : 4 * TILE])
            nr_requests, _ = server.counts.take()
        assert nr_requests <= 8  # of 32 tiles

    def test_whole_image_through_a_small_cache(self, make_cache, tiff, pixels, server):
        opener = PageCacheOpener(make_cache("128KiB"), lambda path: HttpStore(server.url(path)))
        with rasterio.open(tiff, opener=opener) as raster:
            numpy.testing.assert_array_equal(raster.read(), pixels)
        opener.close()

    def test_side_files_are_found_only_if_wanted(self, cache, tiff, server):
        server.put("images/image.tif.aux.xml", b"<PAMDataset></PAMDataset>")
        for siblings in (False, True):
            opener = PageCacheOpener(cache, lambda path: HttpStore(server.url(path)), siblings=siblings)
            assert opener.isfile("images/image.tif.aux.xml") is siblings
            opener.close()

    def test_threads_with_a_data_set_each(self, opener, tiff, pixels, rng):
        chosen = [list(windows(rng, 20)) for _ in range(4)]

        def read(wanted):
            with rasterio.open(tiff, opener=opener, sharing=False) as raster:
                for window in wanted:
                    numpy.testing.assert_array_equal(raster.read(window=window), part_of(pixels, window))

        Crew(*[lambda wanted=wanted: read(wanted) for wanted in chosen]).join_well()


class TestContract:
    def test_ranges_are_bytes(self, opener, tiff):
        with opener.open(tiff) as file:
            pieces = file.get_byte_ranges([0, 5000, 100], [16, 10, 0])
            assert [type(piece) for piece in pieces] == [bytes] * 3
            assert type(file.read(10)) is bytes

    def test_mtime_and_size_stay_and_cost_nothing(self, opener, tiff, server):
        opener.open(tiff).close()
        mtime = opener.mtime(tiff)
        server.counts.take()
        opener.open(tiff).close()
        assert (opener.mtime(tiff), opener.size(tiff)) == (mtime, len(server.get(tiff)))
        assert server.counts.take() == (0, 0)

    def test_mtime_is_what_the_store_says(self, cache, server, tiff):
        class Dated(HttpStore):
            def modified_s(self):
                return 1_600_000_000

        opener = PageCacheOpener(cache, lambda path: Dated(server.url(path)))
        opener.open(tiff).close()
        assert opener.mtime(tiff) == 1_600_000_000
        opener.close()

    def test_local_files(self, cache, tmp_path, tiff, pixels):
        opener = PageCacheOpener(cache, lambda path: path)
        with rasterio.open(str(tmp_path / "image.tif"), opener=opener) as raster:
            numpy.testing.assert_array_equal(raster.read(), pixels)
        opener.close()

    def test_directories(self, opener, tiff):
        opener.open(tiff).close()
        assert opener.ls("images") == opener.ls("images/") == ["image.tif"]
        assert opener.isdir("images") and not opener.isdir("imag")
        assert opener.isfile(tiff) and not opener.isfile("images/other.tif")

    def test_writing_is_refused(self, opener, tiff):
        with pytest.raises(OSError, match="read through the cache"):
            opener.open(tiff, "wb")
        with pytest.raises(OSError, match="read through the cache"):
            opener.rm(tiff)

    def test_an_object_that_does_not_exist(self, opener):
        with pytest.raises(FileNotFoundError, match=r"images/none\.tif"):
            opener.open("images/none.tif")
        with pytest.raises(rasterio.errors.RasterioIOError):
            rasterio.open("images/none.tif", opener=opener)


class TestFailures:
    """GDAL hears of every failed read; `guard` does where GDAL ignores it."""

    @pytest.fixture
    def failing(self, cache, server):
        class Failing(HttpStore):
            def readv(self, offset, buffers):
                if opener.fails:
                    raise OSError(5, "planned")
                return super().readv(offset, buffers)

        opener = PageCacheOpener(cache, lambda path: Failing(server.url(path)))
        opener.fails = False
        yield opener
        opener.close()

    @pytest.fixture(params=["deflate", None])
    def image(self, request, pixels, server, tmp_path):
        with rasterio.open(tmp_path / "image.tif", "w", **PROFILE | {"compress": request.param}) as raster:
            raster.write(pixels)
        server.put("images/image.tif", (tmp_path / "image.tif").read_bytes())
        return "images/image.tif"

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_of_tiles_are_errors_again_and_again(self, failing, image, pixels):
        with rasterio.open(image, opener=failing) as raster:
            numpy.testing.assert_array_equal(raster.read(1, window=Window(0, 0, 10, 10)), pixels[0, :10, :10])
            failing.fails = True
            for window in (Window(0, 200, SIDE, SIDE - 200), Window(0, 800, 10, 10), Window(500, 500, 10, 10)):
                with pytest.raises(rasterio.errors.RasterioIOError):
                    raster.read(1, window=window)
                assert "planned" in str(failing.last_error)
        failing.fails = False
        with rasterio.open(image, opener=failing, sharing=False) as raster, failing.guard():
            numpy.testing.assert_array_equal(raster.read(), pixels)

    def test_of_the_index_of_tiles_are_raised_by_the_guard(self, failing, image):
        with rasterio.open(image, opener=failing) as raster:
            failing._objects._existing(image)[0].invalidate()
            failing.fails = True
            with pytest.raises(OSError, match="planned"), failing.guard():
                raster.read(1)

    def test_the_guard_raises_what_came_first(self, failing, image):
        """Not what Python says when a library calls it again with that error pending, as GDAL 3.12 does."""
        first = OSError(5, "the first")
        with pytest.raises(OSError, match="the first"), failing.guard():
            for error in (first, OSError(5, "the second")):
                again = SystemError("returned a result with an exception set")
                again.__cause__ = SystemError("the same once more")
                again.__cause__.__cause__ = error
                assert failing.note(again) is error
        with failing.guard():
            pass
        assert str(failing.last_error) == "[Errno 5] the second"

    def test_a_missing_image_is_looked_for_again(self, opener, image, server, pixels):
        with pytest.raises(rasterio.errors.RasterioIOError):
            rasterio.open("images/late.tif", opener=opener)
        server.put("images/late.tif", server.get(image))
        with rasterio.open("images/late.tif", opener=opener) as raster, opener.guard():
            numpy.testing.assert_array_equal(raster.read(), pixels)

    def test_missing_side_files_are_looked_for_once(self, cache, image, server):
        opener = PageCacheOpener(cache, lambda path: HttpStore(server.url(path)), siblings=True)
        for _ in range(2):
            server.counts.take()
            with rasterio.open(image, opener=opener, sharing=False) as raster:
                raster.read(1, window=Window(0, 0, 8, 8))
            asked = {path for _, path, _, _ in server.counts.log}
        assert asked <= {image}  # the second time
        opener.close()

    def test_guards_without_failures_raise_nothing(self, failing, image, pixels):
        with rasterio.open(image, opener=failing) as raster, failing.guard():
            numpy.testing.assert_array_equal(raster.read(), pixels)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestChanges:
    def test_a_replaced_image_is_an_error_until_it_is_invalidated(self, cache, tiff, pixels, server, tmp_path):
        opener = PageCacheOpener(cache, lambda path: HttpStore(server.url(path)))
        with rasterio.open(tiff, opener=opener) as raster:
            numpy.testing.assert_array_equal(raster.read(1, window=Window(0, 0, 8, 8)), pixels[0, :8, :8])
        with rasterio.open(tmp_path / "new.tif", "w", **PROFILE) as raster:
            raster.write(pixels[::-1])
        server.put(tiff, (tmp_path / "new.tif").read_bytes())
        with rasterio.open(tiff, opener=opener) as raster, pytest.raises(OSError, match="changed"), opener.guard():
            raster.read()
        opener.invalidate()
        with rasterio.open(tiff, opener=opener) as raster:
            numpy.testing.assert_array_equal(raster.read(), pixels[::-1])
        opener.close()
