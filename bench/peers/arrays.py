"""Libraries of arrays that cache chunks."""

from .peer import Data, Peer

CHUNK_BYTES = 65536


class TensorStore(Peer):
    """An uncompressed zarr array with a pool of cached chunks; a read gives an array, which is a copy."""

    name = "tensorstore, cache_pool"
    kind = "cache"
    modules = ("tensorstore", "numpy")

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import numpy
        import tensorstore

        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "memory"},
            "metadata": {"shape": [data.nbytes], "chunks": [CHUNK_BYTES], "dtype": "|u1", "compressor": None},
            "create": True,
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
        }
        pool = {"cache_pool": {"total_bytes_limit": 4 * data.nbytes + (1 << 20)}}
        self.array = tensorstore.open(spec, context=tensorstore.Context(pool)).result()
        self.array[:].write(numpy.fromfile(data.path, dtype=numpy.uint8)).result()
        self.array[:].read().result()

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the read, waited for."""
        return ("array[offset : offset + nbytes].read().result()",)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the array."""
        return {"array": self.array}

    def close(self) -> None:
        """Let go of the array."""
        del self.array


PEERS = (TensorStore,)
