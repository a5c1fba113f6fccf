"""The system's own ways to read a file that the kernel has cached."""

import io
import mmap
import os

from .peer import Data, Peer


class Pread(Peer):
    """One system call and one copy."""

    name = "os.pread"
    kind = "system"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.descriptor = os.open(data.path, os.O_RDONLY)

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the call."""
        return ("pread(descriptor, nbytes, offset)",)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the call and the descriptor."""
        return {"pread": os.pread, "descriptor": self.descriptor}

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


class Preadv(Pread):
    """As pread, without a new object."""

    name = "os.preadv into a bytearray"

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the call."""
        return ("preadv(descriptor, buffers, offset)", "buffer")

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the call and a buffer of this thread."""
        buffer = bytearray(nbytes)
        return {"preadv": os.preadv, "descriptor": self.descriptor, "buffers": [buffer], "buffer": buffer}


class MmapSlice(Peer):
    """A copy out of the kernel's mapping, every page present."""

    name = "slicing mmap"
    kind = "system"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        with open(data.path, "rb") as file:
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self.mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the slice."""
        return ("mapping[offset : offset + nbytes]",)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the mapping."""
        return {"mapping": self.mapping}

    def close(self) -> None:
        """Unmap the file."""
        self.mapping.close()


class MmapView(MmapSlice):
    """No copy: a part of a memoryview."""

    name = "slicing memoryview(mmap)"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.memory = memoryview(self.mapping)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the memoryview."""
        return {"mapping": self.memory}

    def close(self) -> None:
        """Unmap the file."""
        self.memory.release()
        super().close()


class BufferedReader(Peer):
    """The standard library's buffered file; each thread has its own, for it has a position."""

    name = "io.BufferedReader"
    kind = "system"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.files: list[io.BufferedReader] = []

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the two calls of a read at a place."""
        return ("seek(offset)", "read(nbytes)")

    def names(self, nbytes: int) -> dict[str, object]:
        """Open the file once more."""
        self.files.append(open(self.data.path, "rb"))  # noqa: SIM115
        file = self.files[-1]
        return {"seek": file.seek, "read": file.read}

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


PEERS = (Pread, Preadv, MmapSlice, MmapView, BufferedReader)
