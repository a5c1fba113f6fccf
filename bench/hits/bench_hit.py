"""What does a read cost that finds its bytes in the cache, by size and folios, beside the kernel's cache?"""

import os

import pytest

from bench.common.workload import KIB, MIB, random_offsets, read_count

SIZES = [64, 4 * KIB, 64 * KIB, MIB]
by_size = pytest.mark.parametrize("nbytes", SIZES)


@pytest.fixture
def offsets(nbytes):
    """Random offsets for reads of `nbytes`."""
    return random_offsets(nbytes, read_count(nbytes))


@by_size
def bench_pread(measure, cached_file, offsets, nbytes):
    pread = cached_file.pread

    def loop():
        for offset in offsets:
            pread(nbytes, offset)

    measure(loop, len(offsets))


@by_size
def bench_preadinto(measure, cached_file, offsets, nbytes):
    preadinto = cached_file.preadinto
    buffer = bytearray(nbytes)

    def loop():
        for offset in offsets:
            preadinto(buffer, offset)

    measure(loop, len(offsets))


@by_size
def bench_view(measure, cached_file, offsets, nbytes):
    view = cached_file.view

    def loop():
        for offset in offsets:
            view(nbytes, offset)

    measure(loop, len(offsets))


@by_size
def bench_read(measure, cached_file, offsets, nbytes):
    read, seek = cached_file.read, cached_file.seek

    def loop():
        for offset in offsets:
            seek(offset)
            read(nbytes)

    measure(loop, len(offsets))


@by_size
def bench_os_pread(measure, descriptor, offsets, nbytes):
    pread = os.pread

    def loop():
        for offset in offsets:
            pread(descriptor, nbytes, offset)

    measure(loop, len(offsets))


@by_size
def bench_mmap_slice(measure, mapping, offsets, nbytes):
    def loop():
        for offset in offsets:
            mapping[offset : offset + nbytes]

    measure(loop, len(offsets))
