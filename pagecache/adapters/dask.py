"""Dask: `client.register_plugin(PageCachePlugin("4GiB"))`, and the workers of a cluster share what they have cached.

Each worker gets a cache, which is its process's default one, and a page server; all that tasks open of remote objects
(`pagecache.open(url)`, `fsspec.open("pagecache::s3://...")`, Zarr, pyarrow and so on) then goes through the group.  Members
come and go with the workers: a plugin of the scheduler, which the first worker brings there, keeps the list, counts its
changes, and sends it to all. A worker that joins waits until the others know, so that all do once the plugin is registered.

Addresses are those of the workers; where their connections use TLS, the page servers do, with the same certificates on
both sides.  A secret of the plugin, which travels with it, keeps all others out.
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc"

import asyncio
import contextlib
import gc
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from pagecache.extras import needs

with needs("dask", __name__):
    from distributed import SchedulerPlugin, WorkerPlugin
    from distributed.protocol.pickle import dumps
    from tornado.ioloop import PeriodicCallback

from pagecache.adapters import prometheus
from pagecache.adapters.metrics import METRICS
from pagecache.adapters.peers import Member, PeerGroup
from pagecache.cache import PageCache
from pagecache.default import using
from pagecache.options import check_options, constructor_parameters

if TYPE_CHECKING:
    from distributed import Client, Scheduler, Worker

NAME = "pagecache"
JOIN = "pagecache_join"
MEMBERS = "pagecache_members"
ASK_AGAIN_S = 10.0  # how often a worker asks for the list, in case that a message was lost
TELL_S = 1.0  # how long a worker that joins waits for the others to know; one that is silent gets to know later
SHOWN = ("hits", "misses", "resident_bytes", "peer_hits", "peer_bytes", "peer_failures", "second_level_hits",
         "second_level_bytes", "origin_requests", "origin_bytes")  # fmt: skip


class PageCachePlugin(WorkerPlugin):
    """A cache in each worker, and one group of them all.

    size: budget of each worker's cache: bytes, "4GiB", or "25%" of what the process may use. cache_options: further
    arguments of PageCache. storage_options: {protocol: options} with which an owner opens the URLs that others ask it
    for; the same as tasks use. group_options: further arguments of PeerGroup (extent_bytes, replicate, timeout_s,
    resolver and so on). Raises TypeError for one that these do not have.
    Registering it again changes nothing (`client.unregister_worker_plugin("pagecache")` first).
    """

    name = NAME
    idempotent = True

    def __init__(
        self,
        size: int | str = "25%",
        *,
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
        cache_options: Mapping[str, Any] | None = None,
        **group_options: Any,
    ):
        own = {"storage_options", "cache_options"}
        known = constructor_parameters(PeerGroup) - {"self", "members", "me", "cache", "secret", "tls"}
        check_options(group_options, known | own, "PageCachePlugin")
        check_options(cache_options or {}, constructor_parameters(PageCache) - {"self", "size", "segment"}, "PageCache")
        self._size = size
        self._cache_options = dict(cache_options or {})
        self._group_options = {"storage_options": storage_options, **group_options}
        self._secret = secrets.token_bytes(32)

    async def setup(self, worker: "Worker") -> None:
        """Start this worker's part. Context: the worker's event loop."""
        _guard_lists_of_frames()
        await asyncio.to_thread(_import_file_systems, {"http", "https", *(self._group_options["storage_options"] or {})})
        self._node = _join_node(worker, self)
        if self._node.users > 1:
            return  # another worker of this process has done it
        members = dumps(MembersPlugin())  # type: ignore[no-untyped-call]
        await worker.scheduler.register_scheduler_plugin(plugin=members, name=NAME, idempotent=True)
        worker.stream_handlers[MEMBERS] = worker.handlers[MEMBERS] = self._node.take
        for metric in SHOWN:
            worker.metrics[f"{NAME}_{metric}"] = _metric_of(self._node, metric)
        await self._node.ask(worker)
        self._asking = PeriodicCallback(lambda: self._node.ask(worker), ASK_AGAIN_S * 1000)
        self._asking.start()

    async def teardown(self, worker: "Worker") -> None:
        """Leave the group and close the cache. Context: the worker's event loop, which goes on meanwhile."""
        asking = self.__dict__.pop("_asking", None)
        if asking is not None:
            asking.stop()
        node = self.__dict__.pop("_node", None)
        if node is not None:
            for metric in SHOWN:
                worker.metrics.pop(f"{NAME}_{metric}", None)
            await asyncio.to_thread(_leave_node, node)

    def open_node(self, worker: "Worker") -> "Node":
        """Return this process's part, started."""
        cache = PageCache(self._size, **self._cache_options)
        try:
            host = worker.ip
            shown = f"[{host}]" if ":" in host else host
            me = Member(worker.address, f"{shown}:0", host)
            group = PeerGroup(
                [me], me, cache=cache, secret=self._secret, tls=_tls_of(worker), **self._group_options
            )  # fmt: skip
        except BaseException:
            cache.close()
            raise
        return Node(cache, group)


class Node:
    """What one process has: its cache, its group, and the registration of both with what finds them."""

    def __init__(self, cache: PageCache, group: PeerGroup):
        self.cache, self.group = cache, group
        self.users = 0
        self._using = using(cache)
        self._using.__enter__()
        group.attach()
        self._is_reported = _register_metrics(cache)

    def take(self, members: Any, epoch: int, **_: Any) -> None:
        """Take a list that the scheduler sent."""
        self.group.update([Member.of(member) for member in members], epoch)

    async def ask(self, worker: "Worker") -> None:
        """Tell the scheduler of this member, and take the list that it answers."""
        with contextlib.suppress(OSError, AttributeError):  # it is going, or is not that far yet: asked again
            self.take(**await getattr(worker.scheduler, JOIN)(worker=worker.address, member=list(self.group.me)))

    def close(self) -> None:
        """Stop serving and close the cache."""
        self._using.__exit__(None, None, None)
        if self._is_reported:
            prometheus.unregister({"worker": self.cache})
        self.group.close()
        self.cache.close()


class MembersPlugin(SchedulerPlugin):
    """The scheduler's part: the list of members, and its epoch."""

    name = NAME

    def __init__(self) -> None:
        self._members: dict[str, list[str]] = {}
        self._epoch = 0
        self._scheduler: Any = None

    def start(self, scheduler: "Scheduler") -> None:  # type: ignore[override]
        """Begin to listen to workers."""
        self._scheduler = scheduler
        self._epoch = time.time_ns()  # later than that of a scheduler before this one
        scheduler.handlers[JOIN] = self.join

    async def join(self, worker: str, member: list[str]) -> dict[str, Any]:
        """Note a worker's member, and let the others know; returns the list and its epoch."""
        if worker in self._scheduler.workers and self._members.get(worker) != list(member):
            self._members[worker] = list(member)
            self._epoch += 1
            others = [other for other in self._members if other != worker and other in self._scheduler.workers]
            telling = self._scheduler.broadcast(msg={"op": MEMBERS, **self._list()}, workers=others, on_error="ignore")
            with contextlib.suppress(asyncio.TimeoutError, OSError):
                await asyncio.wait_for(telling, TELL_S)
        return self._list()

    def _list(self) -> dict[str, Any]:
        return {"members": list(self._members.values()), "epoch": self._epoch}

    def remove_worker(self, scheduler: "Scheduler", worker: str, **_: Any) -> None:
        """Note that a worker is gone."""
        if self._members.pop(worker, None) is None:
            return
        self._epoch += 1
        for other in self._members:
            if other in self._scheduler.stream_comms:
                self._scheduler.worker_send(other, {"op": MEMBERS, **self._list()})


# -- the part of this process ------------------------------------------------------------------------------------------

_node: Node | None = None
_node_lock = threading.Lock()


def _join_node(worker: "Worker", plugin: PageCachePlugin) -> Node:
    global _node
    with _node_lock:
        if _node is None:
            _node = plugin.open_node(worker)
        _node.users += 1
        return _node


def _leave_node(node: Node) -> None:
    global _node
    with _node_lock:
        node.users -= 1
        if node.users:
            return
        if _node is node:
            _node = None
    node.close()


def _import_file_systems(protocols: set[str]) -> None:
    """Import what opens URLs before one is asked for: that takes a second, and the asker would wait."""
    for protocol in sorted(protocols):
        with contextlib.suppress(ImportError, ValueError):
            import fsspec

            fsspec.get_filesystem_class(protocol)


def _guard_lists_of_frames() -> None:
    """Keep Dask's profiler from a deadlock with threads that start.

    `sys._current_frames` holds a lock of CPython that the start of a thread needs, and before 3.13 the collector may run
    meanwhile; Dask's callback of the collector then gives up the GIL to a thread that is starting one, which keeps it.
    """
    listing = sys._current_frames
    if sys.version_info >= (3, 13) or getattr(listing, "is_guarded", False):
        return
    lock = threading.RLock()

    def current_frames() -> dict[int, FrameType]:
        with lock:
            was_enabled = gc.isenabled()
            gc.disable()
            try:
                return listing()
            finally:
                if was_enabled:
                    gc.enable()

    current_frames.is_guarded = True  # type: ignore[attr-defined]
    sys._current_frames = current_frames


def current_group() -> PeerGroup | None:
    """Return the group of this worker's process, or None."""
    return None if _node is None else _node.group


def _tls_of(worker: Any) -> Any:
    """Return the contexts (server, client) that a worker's connections use, or None if they use none."""
    if not worker.address.startswith("tls://"):
        return None
    listens, connects = worker.security.get_listen_args("worker"), worker.security.get_connection_args("worker")
    return listens["ssl_context"], connects["ssl_context"]


def _register_metrics(cache: PageCache) -> bool:
    """Report the cache on the worker's Prometheus route, which shows all that prometheus_client has registered. Returns
    whether that can be done."""
    try:
        prometheus.register({"worker": cache})
    except (ImportError, ValueError):  # not installed, or another cache of the program has this name
        return False
    return True


def _metric_of(node: Node, name: str) -> Callable[["Worker"], Any]:
    return lambda worker: getattr(node.cache.stats(), name)


# -- the whole cluster -------------------------------------------------------------------------------------------------


def _worker_numbers() -> dict[str, Any]:
    node = _node
    if node is None or node.cache.closed:
        return {}
    stats = node.cache.stats()
    return {metric.name: metric.read(stats) for metric in METRICS} | node.group.stats()


def cluster_stats(client: "Client") -> dict[str, Any]:
    """Return the numbers of all caches of a cluster.

    client: a distributed.Client. Returns {"workers": {address: numbers}, "total": numbers}: where bytes came from (hits of
    the own cache, `peer_...`, `second_level_...`, `origin_...`), what was served to peers, and the metrics of
    `pagecache.adapters.metrics`.
    """
    workers = client.run(_worker_numbers)
    total: dict[str, float] = {}
    for numbers in workers.values():
        for name, number in numbers.items():
            if isinstance(number, (int, float)) and name not in ("members", "epoch"):
                total[name] = total.get(name, 0) + number
    return {"workers": workers, "total": total}
