"""Adapters without their libraries: each says which extra to install, and none is needed to import the others."""

import json
import subprocess
import sys

import pytest
from support import ROOT

# module: (the extra that the error has to name; what to call after importing it, if that imports alone)
EXTRAS = {
    "arrow": ("arrow", "dataset_of([])"),
    "dask": ("dask", ""),
    "duckdb": ("duckdb", ""),
    "fsspec": ("fsspec", ""),
    "fsspec_cache_type": ("fsspec", ""),
    "opentelemetry": ("metrics", "instrument()"),
    "prometheus": ("metrics", "register()"),
    "rasterio": ("rasterio", ""),
    "sqlite": ("sqlite", ""),
    "valkey": ("valkey", "SecondLevel('valkey://127.0.0.1:1')"),
    "zarr": ("zarr", ""),
}
LIBRARIES = ("apsw", "distributed", "duckdb", "fsspec", "obstore", "opentelemetry", "prometheus_client",
             "pyarrow", "rasterio", "redis", "tornado", "valkey", "zarr")  # fmt: skip
PROGRAM = """
import importlib, json, sys
for library in {libraries}:
    sys.modules[library] = None
import pagecache
said = {{}}
for name, call in {calls}.items():
    try:
        module = importlib.import_module("pagecache.adapters." + name)
        if call:
            eval("module." + call)
        said[name] = None
    except ImportError as error:
        said[name] = str(error)
for name in {needless}:
    importlib.import_module("pagecache.adapters." + name)
with pagecache.PageCache("1MiB") as cache:
    try:
        cache.open("https://127.0.0.1/object")
    except ImportError as error:
        said["url"] = str(error)
print(json.dumps(said))
"""


def others():
    """Return the names of the adapters that are not in the table, nor a part of one that is: they need no library."""
    directory = ROOT / "pagecache" / "adapters"
    names = {path.stem for path in directory.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    parts = {name for name in names if any(name.startswith(f"{known}_") for known in EXTRAS)}
    return names - parts - EXTRAS.keys() - {"__init__"}


@pytest.fixture(scope="module")
def said():
    """What each adapter says where nothing is installed."""
    program = PROGRAM.format(
        libraries=LIBRARIES, calls={name: call for name, (_, call) in EXTRAS.items()}, needless=sorted(others())
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True, timeout=100)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", EXTRAS)
def test_the_extra_is_named(said, name):
    assert said[name] is not None, "it did without its library"
    assert f"pip install 'pagecache-engine[{EXTRAS[name][0]}]'" in said[name]


def test_urls_without_fsspec(said):
    assert "pip install 'pagecache-engine[http]'" in said["url"]


URLS = {"http://127.0.0.1:1/x": "http", "s3://bucket/x": "s3", "gs://bucket/x": "gcs", "zip://x::s3://bucket/y": "s3"}
PROGRAM_OF_URLS = """
import sys
for library in ("aiohttp", "gcsfs", "s3fs"):
    sys.modules[library] = None
import pagecache
with pagecache.PageCache("1MiB") as cache:
    for url in {urls}:
        try:
            cache.open(url)
        except ImportError as error:
            print(str(error).replace("\\n", " "))
"""


def test_urls_whose_library_is_missing():
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    program = PROGRAM_OF_URLS.format(urls=list(URLS))
    done = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True, timeout=100)
    for (url, extra), line in zip(URLS.items(), done.stdout.splitlines(), strict=True):
        assert url in line
        assert f"pip install 'pagecache-engine[{extra}]'" in line


def test_adapters_that_need_no_library(said):
    assert {"fuse", "metrics", "objects", "peers"} <= others()  # which were imported without any


def test_extras_are_the_projects():
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in {extra for extra, _ in EXTRAS.values()} | set(URLS.values()))
