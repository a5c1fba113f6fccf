"""What the tests share: caches that are checked when a test ends, files of known bytes, seeds, and no silent hangs."""

import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
TEST_SECONDS_MAX = int(os.environ.get("PAGECACHE_TEST_SECONDS", 1200 if STRESS else 120))
NOBODY = 65534

# New examples in every run, unless a seed is given, and what is needed to run a failed one again.
_PROFILE = {
    "deadline": None,
    "derandomize": "PAGECACHE_SEED" in os.environ,  # a given seed repeats these tests too
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", **_PROFILE)
settings.register_profile("stress", max_examples=5000, stateful_step_count=200, **_PROFILE)
settings.load_profile("stress" if STRESS else "default")

_seed_key = pytest.StashKey[int]()
_stderr_key = pytest.StashKey[int]()


def pytest_configure(config):
    """Keep a way to the real standard error, which a test that hangs has captured, and have Ctrl-C raise."""
    config.stash[_stderr_key] = os.dup(sys.__stderr__.fileno())
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells leave it to what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config):
    """Give back what pytest_configure took."""
    faulthandler.cancel_dump_traceback_later()
    os.close(config.stash[_stderr_key])


def pytest_collection_finish(session):
    """Keep the collector away from what all the libraries made while they were imported: many tests collect."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """End the run with the stacks of all threads when one test takes longer than any should."""
    faulthandler.dump_traceback_later(TEST_SECONDS_MAX, exit=True, file=item.config.stash[_stderr_key])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Say with which seed a failed test can be run again."""
    report = yield
    if report.failed and _seed_key in item.stash:
        report.sections.append(("seed", f"run again with PAGECACHE_SEED={item.stash[_seed_key]}"))
    return report


@pytest.fixture
def seed(request):
    """A number to seed random choices with: PAGECACHE_SEED if set, else a new one, shown if the test fails."""
    value = int(os.environ.get("PAGECACHE_SEED") or random.SystemRandom().randrange(2**32))
    request.node.stash[_seed_key] = value
    return value


@pytest.fixture
def rng(seed):
    """A random.Random seeded with `seed`."""
    return random.Random(seed)


@pytest.fixture(scope="module", params=[1, 2, 3, 64, 4096], ids="frames={}".format)
def frames(request):
    """How many page frames the cache of a test has: hardly any, few, and plenty. Fit for Hypothesis tests too."""
    return request.param


@pytest.fixture
def data_file(tmp_path, seed):
    """A factory of files of random bytes: `path, data = data_file(nbytes)`."""
    made = 0

    def make(nbytes: int, name: str | None = None) -> tuple[Path, bytes]:
        nonlocal made
        made += 1
        data = random.Random(seed + made).randbytes(nbytes)
        path = tmp_path / (name or f"data-{made}")
        path.write_bytes(data)
        return path, data

    return make


@pytest.fixture(scope="module", autouse=True)
def no_default_cache_is_left():
    """Close the process's own cache that a module made, so that the next one starts without."""
    yield
    default = sys.modules.get("pagecache.default")
    if default is not None and default._default is not None and not default._default.closed:
        default._default.close()


@pytest.fixture
def make_cache():
    """A factory of caches, `make_cache(size, **options)`, whose every invariant is checked when the test ends."""
    import pagecache

    caches = []

    def make(size, **options):
        caches.append(pagecache.PageCache(size, **options))
        return caches[-1]

    yield make
    for cache in caches:
        if not cache.closed:
            cache.check()
            cache.close()


@pytest.fixture
def unprivileged():
    """A context manager within which file permissions count even if the tests are run by root."""

    @contextlib.contextmanager
    def without_root():
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return without_root
