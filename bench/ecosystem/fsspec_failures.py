"""Three things that fsspec's own caches get wrong, measured on this machine, and the same through the page cache.

    python -m bench ecosystem.fsspec_failures [--json FILE]

1. Eight threads with a handle each read one cold object over HTTP: how many of 160 reads return wrong bytes?
2. One request fails, and the read is tried again: what does the second one return, and a new file system after it?
3. Eight handles, 40 reads of one byte each, far apart: how much memory do they take?
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading

import fsspec
from support.http_server import ObjectServer

import pagecache
import pagecache.adapters.fsspec

MIB = 1 << 20
NR_THREADS, NR_READS, READ_BYTES = 8, 20, 4096
NR_HANDLES, NR_SCATTERED = 8, 40


def pages_of(size: int, seed: int = 1) -> bytes:
    """Return bytes of which no page is zero."""
    return random.Random(seed).randbytes(size)


def blockcache(directory: str) -> fsspec.AbstractFileSystem:
    """Return fsspec's block cache on disk over HTTP."""
    return fsspec.filesystem("blockcache", target_protocol="http", cache_storage=directory, skip_instance_cache=True)


def page_cache(directory: str) -> fsspec.AbstractFileSystem:
    """Return the page cache over HTTP."""
    return fsspec.filesystem("pagecache", target_protocol="http", skip_instance_cache=True)


def wrong_reads(make_system, server: ObjectServer) -> dict[str, int]:
    """Count wrong, all-zero and failed reads of threads with a handle each."""
    data = pages_of(64 * MIB)
    url = server.put(f"threads-{make_system.__name__}", data)
    directory = tempfile.mkdtemp()
    system = make_system(directory)
    counts = {"reads": 0, "wrong": 0, "zeros": 0, "exceptions": 0}
    lock, barrier = threading.Lock(), threading.Barrier(NR_THREADS)
    offsets = [number * (len(data) // NR_READS) + 1000 for number in range(NR_READS)]

    def read(file) -> None:
        barrier.wait()
        for offset in offsets:
            try:
                file.seek(offset)
                got = file.read(READ_BYTES)
            except Exception:
                got = None
            with lock:
                counts["reads"] += 1
                counts["exceptions"] += got is None
                counts["wrong"] += got is not None and got != data[offset : offset + READ_BYTES]
                counts["zeros"] += got is not None and not any(got)

    files = [system.open(url) for _ in range(NR_THREADS)]
    threads = [threading.Thread(target=read, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()
    shutil.rmtree(directory, ignore_errors=True)
    return counts


def after_an_error(make_system, server: ObjectServer) -> dict[str, str]:
    """Say what reads return after one that failed: of the same file, and of a new file system over the same directory."""
    data = pages_of(8 * MIB)
    url = server.put(f"errors-{make_system.__name__}", data)
    directory = tempfile.mkdtemp()
    said = {}

    def read(system, name: str) -> None:
        try:
            with system.open(url) as file:
                file.seek(MIB)
                got = file.read(8)
            said[name] = "right" if got == data[MIB : MIB + 8] else f"WRONG: {got!r}"
        except Exception as error:
            said[name] = f"{type(error).__name__}"

    system = make_system(directory)
    with system.open(url) as file:
        file.seek(MIB)
        server.fail_next(1)
        try:
            file.read(8)
            said["the read that fails"] = "no exception"
        except Exception as error:
            said["the read that fails"] = type(error).__name__
        try:
            file.seek(MIB)
            got = file.read(8)
            said["the next read"] = "right" if got == data[MIB : MIB + 8] else f"WRONG: {got!r}"
        except Exception as error:
            said["the next read"] = type(error).__name__
    if hasattr(system, "save_cache"):
        system.save_cache()
    read(make_system(directory), "a new file system")
    shutil.rmtree(directory, ignore_errors=True)
    return said


def resident_bytes() -> int:
    """Return the memory of this process that is in frames and no file's (bytes)."""
    with open("/proc/self/status") as status:
        return sum(int(line.split()[1]) * 1024 for line in status if line.startswith(("RssAnon", "RssShmem")))


def memory_taken(kind: str, address: str) -> dict[str, int]:
    """Return by how much the process grew through scattered reads of one byte (bytes)."""
    urls = [f"{address}/large-{number}" for number in range(NR_HANDLES)]
    rng = random.Random(2)
    places = [[rng.randrange(1, 256 * MIB) for _ in range(NR_SCATTERED)] for _ in urls]
    before = resident_bytes()
    if kind == "pagecache":
        system = page_cache("")
        files = [system.open(url) for url in urls]
    else:
        system = fsspec.filesystem("http")
        files = [system.open(url, cache_type=kind) for url in urls]
    for number in range(NR_SCATTERED):
        for file, offsets in zip(files, places, strict=True):
            file.seek(offsets[number])
            file.read(1)
    grown = resident_bytes() - before
    for file in files:
        file.close()
    return {"grown_bytes": grown}


def in_child(kind: str) -> dict[str, int]:
    """Measure memory in a process of its own, whose parent serves the objects."""
    data = bytes(256 * MIB)
    with ObjectServer() as server:
        for number in range(NR_HANDLES):
            server.put(f"large-{number}", data)
        address = server.url("").rstrip("/")
        command = [sys.executable, "-P", __file__, "--memory", kind, address]
        environment = {**os.environ, "PAGECACHE_SIZE": "64MiB"}
        said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return {**json.loads(said.stdout), "requests": server.count("GET"), "fetched_bytes": server.bytes_sent()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "ADDRESS"), help="measure memory only, in this process")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory_taken(*options.memory)))
        return
    results: dict[str, object] = {"fsspec": fsspec.__version__, "pagecache": pagecache.__version__}
    with pagecache.PageCache("64MiB") as cache, pagecache.using(cache), ObjectServer(delay_s=0.02) as server:
        for make_system in (blockcache, page_cache):
            results[f"threads, {make_system.__name__}"] = wrong_reads(make_system, server)
            results[f"errors, {make_system.__name__}"] = after_an_error(make_system, server)
    for kind in ("blockcache", "background", "readahead", "pagecache"):
        results[f"memory, {kind}"] = in_child(kind)
    for name, result in results.items():
        print(f"{name:24} {result}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
