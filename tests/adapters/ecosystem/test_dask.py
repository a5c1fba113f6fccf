"""A cluster of Dask workers in processes of their own: one read of the origin for all, and workers that die and come."""

import contextlib
import hashlib
import time
import urllib.request

import pytest
from support import PATIENCE_S, STRESS, pages_of, wait_until
from support.dask_workers import DaskWorkers
from support.http_server import ObjectServer

distributed = pytest.importorskip("distributed", reason="Dask's scheduler is not installed")
pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from pagecache.adapters.dask import PageCachePlugin, cluster_stats  # noqa: E402

NR_WORKERS = 4
NR_KILLABLE = 4 if STRESS else 2
MIB = 1 << 20
SIZE = 1024 * MIB if STRESS else 32 * MIB
NR_KILLS = 20 if STRESS else 1
PLUGIN = {"extent_bytes": "4MiB", "timeout_s": 5.0, "patience_s": 20.0}  # a busy machine makes no member fail


def read_all(url, step=MIB):
    """Return the hash of an object that a worker reads, what its reads cost, and its validator. Context: a worker."""
    import pagecache

    digest = hashlib.sha256()
    with pagecache.default_cache().open(url) as file:
        for offset in range(0, file.size, step):
            digest.update(file.pread(step, offset))
        return digest.hexdigest(), file.stats().as_dict(), file.mapping.validator


def attempts_of_store():
    """Return (requests that the stores of a worker were asked, requests that it made of peers). Context: a worker."""
    import pagecache

    stats = pagecache.default_cache().stats().as_dict()
    asked = sum(stats.get(name, 0) for name in ("peer_hits", "peer_failures", "peer_refusals"))
    return stats["store_reads"], asked


def start_cluster(**options):
    return distributed.LocalCluster(
        n_workers=NR_WORKERS, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=":0", **options
    )


@pytest.fixture(scope="module")
def data():
    return pages_of(SIZE)


@pytest.fixture(scope="module")
def server(data):
    with ObjectServer(delay_s=0.02) as made:
        made.put("object", data)
        yield made


@pytest.fixture(scope="module")
def client():
    with start_cluster() as cluster, distributed.Client(cluster) as client:
        client.register_plugin(PageCachePlugin("512MiB" if STRESS else "64MiB", **PLUGIN))
        yield client


def test_the_origin_sends_it_once(client, server, data):
    server.forget()
    found = client.run(read_all, server.url("object"))
    expected = hashlib.sha256(data).hexdigest()
    assert [digest for digest, _, _ in found.values()] == [expected] * NR_WORKERS
    assert server.bytes_sent() <= 1.05 * len(data)
    total = cluster_stats(client)["total"]
    assert total["origin_bytes"] == server.bytes_sent()
    assert total["peer_bytes"] >= (NR_WORKERS - 1.05) * len(data)
    assert total["served_bytes"] >= total["peer_bytes"]


def test_by_a_library_that_knows_nothing_of_it(client, server, data):
    def read(url):
        import fsspec

        import pagecache.adapters.fsspec  # noqa: F401, what an installed package's entry point does

        with fsspec.open(f"pagecache::{url}") as file:
            return file.read(MIB)

    server.put("other", data[: 8 * MIB])
    server.forget()
    assert set(client.run(read, server.url("other")).values()) == {data[:MIB]}
    assert server.bytes_sent() <= 8 * MIB


def test_registering_again_changes_nothing(client):
    def name_of_group():
        from pagecache.adapters.dask import current_group

        return repr(current_group())

    before = client.run(name_of_group)
    client.register_plugin(PageCachePlugin("1MiB"))
    assert client.run(name_of_group) == before
    assert all(name.endswith(f"of {NR_WORKERS}>") for name in before.values())


def test_numbers_on_the_route_of_each_worker_and_with_the_scheduler(client):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    text_string_to_metric_families = parser.text_string_to_metric_families
    own = cluster_stats(client)["workers"]
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        url = f"http://{worker['host']}:{worker['services']['dashboard']}/metrics"
        text = urllib.request.urlopen(url, timeout=PATIENCE_S).read().decode()
        found = {family.name: family.samples for family in text_string_to_metric_families(text)}
        for name in ("peer_hits", "peer_bytes", "origin_requests", "origin_bytes", "second_level_hits", "hits"):
            (sample,) = found[f"pagecache_{name}"]
            assert (sample.labels, sample.value) == ({"cache": "worker"}, own[address][name])
    deadline = time.monotonic() + PATIENCE_S
    while True:  # the next heartbeat of each worker brings them
        metrics = [worker["metrics"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        if all(metric.get("pagecache_peer_bytes") for metric in metrics):
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_object_that_is_replaced_during_the_run(client, server):
    """No reader sees a mix, and those that open after the change see the new one only."""
    versions = [pages_of(12 * MIB, start=number << 32) for number in range(4)]
    hashes = [hashlib.sha256(version).hexdigest() for version in versions]
    url = server.put("changing", versions[0])

    def read(url):
        for _ in range(50):
            with contextlib.suppress(OSError):
                return read_all(url, step=256 * 1024)[0]
        raise AssertionError("it changed in every attempt")

    for number, version in enumerate(versions):
        futures = [client.submit(read, url, pure=False) for _ in range(NR_WORKERS)]
        server.put("changing", version)
        after = client.run(read, url)
        assert set(after.values()) == {hashes[number]}
        assert set(client.gather(futures)) <= {hashes[max(0, number - 1)], hashes[number]}


def drop_caches():
    import pagecache

    pagecache.default_cache().drop_caches()


def nr_members():
    from pagecache.adapters.dask import current_group

    return len(current_group().members)


def test_workers_that_are_killed_and_one_that_joins(server, data, rng):
    """Every read is right, each request asks one peer at most, and the group is whole again in the end."""
    expected, url = hashlib.sha256(data).hexdigest(), server.url("object")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        DaskWorkers(cluster.scheduler_address, NR_KILLABLE) as workers,
    ):
        client.register_plugin(PageCachePlugin("512MiB" if STRESS else "64MiB", **PLUGIN))
        for number in range(NR_KILLS):
            workers.wait_for(client, PATIENCE_S)
            client.run(drop_caches)
            nr_asked = server.count() + rng.randrange(2, 12)
            futures = [client.submit(read_all, url, pure=False, retries=5) for _ in range(NR_KILLABLE)]
            wait_until(lambda nr=nr_asked: server.count() >= nr, "requests of the origin")
            workers.kill(rng.choice(sorted(workers.processes)))
            workers.start()
            if number == 0:
                workers.start()
            for digest, _, _ in client.gather(futures):
                assert digest == expected
            for store_reads, asked in client.run(attempts_of_store).values():
                assert asked <= store_reads
        workers.wait_for(client, PATIENCE_S)
        wait_until(lambda: set(client.run(nr_members).values()) == {NR_KILLABLE + 1}, "all members to know all")
        assert all(digest == expected for digest, _, _ in client.run(read_all, url).values())


@pytest.mark.skipif(not STRESS, reason="takes a cluster of its own; runs with PAGECACHE_STRESS=1")
def test_tls(server, data):
    pytest.importorskip("cryptography", reason="Dask makes certificates with cryptography, which is not installed")
    security = distributed.Security.temporary()
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, security=security, protocol="tls"
    ) as cluster, distributed.Client(cluster, security=security) as client:  # fmt: skip
        client.register_plugin(PageCachePlugin("64MiB", **{**PLUGIN, "extent_bytes": "1MiB"}))
        url = server.put("small", data[: 8 * MIB])
        server.forget()
        expected = hashlib.sha256(data[: 8 * MIB]).hexdigest()
        assert {digest for digest, _, _ in client.run(read_all, url).values()} == {expected}
        assert server.bytes_sent() == 8 * MIB
