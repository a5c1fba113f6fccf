"""pyarrow: a cached `File` is what it reads already; what it cannot do is ask for many ranges at once.

    import pyarrow.parquet as pq

    file = cache.open(store)
    prefetch_parquet(file, ["price", "date"])       # all column chunks at once, in as few requests as possible
    table = pq.read_table(file, columns=["price", "date"])

pyarrow reads from Python files one range at a time, under a lock; `File.read_buffer` hands it cached pages uncopied.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pagecache.extras import needs
from pagecache.files.file import File
from pagecache.files.prefetch import Prefetch
from pagecache.files.ranges import missing_runs
from pagecache.units import PAGE_SHIFT

if TYPE_CHECKING:
    from pyarrow.dataset import FileSystemDataset
    from pyarrow.parquet import ColumnChunkMetaData, FileMetaData


class PrefetchGroup:
    """Prefetches of several ranges of one file, waited for together."""

    def __init__(self, parts: Sequence[Prefetch]):
        self.parts = parts

    @property
    def done(self) -> bool:
        """Whether nothing more will be read."""
        return all(part.done for part in self.parts)

    def cancel(self) -> None:
        """Skip what has not begun."""
        for part in self.parts:
            part.cancel()

    def wait(self) -> None:
        """Wait until all is read. Raises the first OSError that a part met. Context: Ctrl-C ends the wait."""
        for part in self.parts:
            part.wait()


def prefetch_ranges(file: File, ranges: Iterable[tuple[int, int]], *, hole_size: int | None = None) -> PrefetchGroup:
    """Bring many ranges of a file in, in the background.

    ranges: (offset, nbytes) of each. hole_size: gaps up to this many bytes between missing pages are read through;
    None: those that cost less than another request.
    Returns what can be waited for.
    """
    runs = missing_runs(file.mapping, list(ranges), hole_size)
    return PrefetchGroup([file.prefetch(first << PAGE_SHIFT, (last - first + 1) << PAGE_SHIFT) for first, last in runs])


def prefetch_parquet(
    file: File,
    columns: Sequence[str] | None = None,
    *,
    row_groups: Iterable[int] | None = None,
    hole_size: int | None = None,
) -> PrefetchGroup:
    """Bring the column chunks of a Parquet file in that a query will read, in the background.

    file: a cached `File`. columns: names as `pyarrow.parquet.read_table` takes them ("a" stands for all of "a.b" too);
    None: all. row_groups: numbers; None: all. hole_size: as for `prefetch_ranges`.
    Returns what can be waited for; reading may begin at once. Raises KeyError for a column that does not exist, OSError.
    Context: reads the footer in the calling thread.
    """
    with needs("arrow", "prefetch_parquet"):
        import pyarrow.parquet as pq

    metadata = pq.ParquetFile(file).metadata
    numbers = range(metadata.num_row_groups) if row_groups is None else row_groups
    wanted = None if columns is None else set(_columns_of(metadata, columns))
    chunks = (
        metadata.row_group(number).column(column)
        for number in numbers
        for column in (range(metadata.num_columns) if wanted is None else sorted(wanted))
    )
    return prefetch_ranges(file, [_range_of(chunk) for chunk in chunks], hole_size=hole_size)


def dataset_of(files: Sequence[File]) -> "FileSystemDataset":
    """Return a `pyarrow.dataset.Dataset` of cached Parquet files, which reads the parts that a query needs.

    files: cached `File`s of one schema, which have to stay open. Polars reads it with `polars.scan_pyarrow_dataset`.
    """
    with needs("arrow", "dataset_of"):
        import pyarrow
        import pyarrow.dataset as ds

    form = ds.ParquetFileFormat()
    fragments = [form.make_fragment(pyarrow.PythonFile(file, mode="r")) for file in files]
    return ds.FileSystemDataset(fragments, fragments[0].physical_schema, form)


def _columns_of(metadata: "FileMetaData", columns: Sequence[str]) -> Iterable[int]:
    """Yield the numbers of the columns with these names, or below them."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    for name in columns:
        found = [number for number, path in enumerate(paths) if path == name or path.startswith(name + ".")]
        if not found:
            raise KeyError(f"the file has no column {name!r}; it has {', '.join(paths)}")
        yield from found


def _range_of(chunk: "ColumnChunkMetaData") -> tuple[int, int]:
    """Return (offset, nbytes) of a column chunk: its dictionary page comes first, if it has one."""
    starts = [start for start in (chunk.dictionary_page_offset, chunk.data_page_offset) if start]
    return min(starts), chunk.total_compressed_size
