"""A group of processes that read each extent of an object from its origin once, and from each other otherwise.

The reader's chain is: its own folios, the owner of the extent, the origin.  The owner is a process like the others; it
answers out of its own cache, so that all that need an extent at once wait for one read of the origin.  The one that answers
never asks a third: an owner asks the origin only, whatever it thinks of the membership by then (a deputy, through which
the members of one machine read what a far machine owns, asks the owner and no other).  So a request makes two steps at
most, and there is no cycle to wait in.

Failure is ordinary: a peer that is gone, silent for `timeout_s`, slower than `patience_s`, or of another view of the owner
of an extent costs the reader one attempt, and the origin is asked.
"""

import contextlib
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pagecache._core import Mutex
from pagecache.adapters.peers import pages, protocol, transport
from pagecache.adapters.peers.client import PeerClient, PeerFailedError, PeerRefusedError, Suspects
from pagecache.adapters.peers.membership import Member, Membership, object_digest, split_address
from pagecache.adapters.peers.objects import Resolver, ServedObjects, UrlResolver
from pagecache.adapters.peers.protocol import Request
from pagecache.adapters.peers.server import PageServer, RefusedError, Views
from pagecache.adapters.peers.store import PeerStore
from pagecache.cache import PageCache
from pagecache.files.file import File
from pagecache.stores.base import BackingStore, key_scope_of
from pagecache.units import PAGE_SIZE, parse_size

REPLICATE = ("hot", "all", "none")
EXTENT_BYTES_MIN, EXTENT_BYTES_MAX = 64 * 1024, 64 * 1024 * 1024
IDLE_CONNECTIONS = 512  # that are kept to all peers together


class Source(NamedTuple):
    """Which member to ask, and whether that one may ask the owner."""

    member: Member
    may_ask_owner: bool


def _is(member: Member | None, other: Member) -> bool:
    return member is not None and member.name == other.name


class PeerGroup:
    """This process's place in a group, with its page server; a context manager.

    members: all of them, "host:port" or Member; me: the one that is this process, whose port may be 0. cache: whose pages
    are served and filled; None: the process's default cache. secret: what only the members know; needed where
    others than this machine can reach them, unless tls is given: (context of the server, context of the client), which
    then has to verify both sides.
    resolver: returns a store for the name of an object that this process has not open itself; None: opens URLs of remote
    file systems with storage_options {protocol: options}.
    extent_bytes: the unit of ownership; the same for all members. request_bytes: the most that one request carries.
    replicate: what becomes of pages that this process has from a peer: "all" are kept as others are; "hot" are, once they
    are used again, while the rest leave first; "none" leave when they have been read.
    timeout_s: silence on all connections after which a peer has failed; patience_s: what it may take in all while it says
    that it waits for the origin; suspect_s: how long it is not asked then (seconds). connections: to each peer at once.
    Raises ValueError; OSError when the address cannot be listened on.
    """

    def __init__(
        self,
        members: Iterable[Member | str],
        me: Member | str,
        *,
        cache: PageCache | None = None,
        secret: bytes | str | None = None,
        tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
        resolver: Resolver | None = None,
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
        extent_bytes: int | str = "8MiB",
        request_bytes: int | str = "1MiB",
        replicate: str = "hot",
        timeout_s: float = 0.2,
        patience_s: float = 5.0,
        suspect_s: float = 5.0,
        connections: int = 32,
    ):
        own = Member.of(me)
        self.extent_bytes = parse_size(extent_bytes)
        self.request_bytes = parse_size(request_bytes)
        if not EXTENT_BYTES_MIN <= self.extent_bytes <= EXTENT_BYTES_MAX or self.extent_bytes % PAGE_SIZE:
            raise ValueError(f"extent_bytes must be whole pages from 64 KiB to 64 MiB, not {extent_bytes!r}")
        if not PAGE_SIZE <= self.request_bytes <= self.extent_bytes:
            raise ValueError(f"request_bytes must be a page or more, and extent_bytes at most, not {request_bytes!r}")
        if replicate not in REPLICATE:
            raise ValueError(f"replicate must be one of {', '.join(REPLICATE)}, not {replicate!r}")
        if secret is None and tls is None and split_address(own.address)[0] not in transport.LOOPBACK:
            raise ValueError(f"{own.address} can be reached by others: give the group a secret, or tls")
        self.replicate = replicate
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self.suspects = Suspects(suspect_s)
        self._connections = connections
        self._secret = secret.encode() if isinstance(secret, str) else secret or b""
        self._tls = tls
        self._cache = cache
        self._objects = ServedObjects(self._open_served, resolver or UrlResolver(storage_options))
        self._lock = Mutex()
        self._clients: dict[str, PeerClient] = {}
        self._serving: dict[tuple[str, int], int] = {}  # extents that are being served as their owner
        self._served = {"served_requests": 0, "served_bytes": 0, "refused_requests": 0}
        self._is_attached = False
        self._closed = False
        self._pid = os.getpid()
        self.me = self._listen(own)
        self._membership = Membership([], self.me.name)
        self.update([self.me if Member.of(member) == own else Member.of(member) for member in members])

    def _listen(self, own: Member) -> Member:
        """Start the page server; returns this member with the port that it has."""
        listener = transport.listen_tcp(own.address)
        host, port = split_address(own.address)
        if port == 0:
            shown = f"[{host}]" if ":" in host else host
            address = f"{shown}:{listener.getsockname()[1]}"
            own = Member(address if own.name == own.address else own.name, address, own.host)
        path = transport.socket_path(own)
        near = transport.listen_unix(path) if path is not None else None
        self._paths = [path] if near is not None and path is not None else []
        self._server = PageServer(
            [listener] if near is None else [listener, near],
            self._ready,
            self._wait,
            secret=self._secret,
            epoch=lambda: self.wire_epoch,
            tls=self._tls[0] if self._tls else None,
            beat_s=self.timeout_s / 4,
            timeout_s=max(self.patience_s, self.timeout_s),
        )
        return own

    # -- members -------------------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        """The members, by name."""
        return self._membership.members

    @property
    def epoch(self) -> int:
        """The number of the present membership."""
        return self._membership.epoch

    @property
    def wire_epoch(self) -> int:
        """The epoch as it is sent to peers."""
        return self._membership.epoch & ((1 << 64) - 1)

    def update(self, members: Iterable[Member | str | Sequence[str]], epoch: int | None = None) -> bool:
        """Take a new list of members.

        epoch: its number; a list that is not newer than the present one is passed over. None: the next one.
        Returns whether it was taken. Context: reads go on meanwhile, by the old list or by the new one.
        """
        found = [Member.of(member) for member in members]
        with self._lock.held():
            if self._closed or (epoch is not None and epoch <= self._membership.epoch):
                return False
            epoch = self._membership.epoch + 1 if epoch is None else epoch
            self._membership = Membership(found, self.me.name, epoch)
            names = {member.name: member for member in found}
            gone = [name for name, client in self._clients.items() if names.get(name) != client.member]
            closing = [self._clients.pop(name) for name in gone]
        self.suspects.keep_only(set(names))
        for client in closing:
            client.close()
        return True

    # -- the reader's side ---------------------------------------------------------------------------------------------

    def store(self, origin: BackingStore) -> PeerStore:
        """Return the store that reads an origin's object through the group."""
        return PeerStore(origin, self)

    def wrap(self, store: BackingStore) -> BackingStore:
        """Return the store to open in place of another: one through the group if that is far away and read only, and its
        key means the same to all members."""
        if isinstance(store, PeerStore) or self._closed or getattr(store, "latency", "remote") != "remote":
            return store
        if key_scope_of(store) != "everywhere":
            return store
        return store if getattr(store, "fd", -1) >= 0 or hasattr(store, "writev") else PeerStore(store, self)

    def attach(self) -> None:
        """Have everything far away that is opened through the cache for reading go through the group."""
        self.cache.through(self.wrap)
        self._is_attached = True

    @property
    def cache(self) -> PageCache:
        """The cache whose pages are shared."""
        if self._cache is None:
            from pagecache.default import default_cache

            self._cache = default_cache()
        return self._cache

    def note_own(self, origin: BackingStore) -> None:
        """Note that this process reads an object by this store."""
        self._objects.note_own(origin)

    def may_serve(self, key: str, validator: str, name: str) -> bool:
        """Whether peers can be asked for an object at all."""
        if self._closed or self._pid != os.getpid():
            return False
        return max(len(key), len(validator), len(name)) * 4 <= protocol.STRING_BYTES_MAX

    def source(self, key: str, digest: bytes, offset: int, nbytes: int) -> Source | None:
        """Return which member to ask for a range of one extent; None: the origin."""
        extent = offset // self.extent_bytes
        if (key, extent) in self._serving:
            return None  # a peer waits for this very extent: it is not sent on to a third
        member, may_ask_owner = self._membership.source(digest, extent)
        return None if member is None else Source(member, may_ask_owner)

    def keeps(self, digest: bytes, offset: int) -> bool:
        """Whether peers may come to this process for the bytes at an offset."""
        return self._membership.keeps(digest, offset // self.extent_bytes)

    def fetch(self, member: Member, request: Request, buffers: Sequence[memoryview]) -> None:
        """Ask a member, once. Raises PeerFailedError, PeerRefusedError."""
        if not self.suspects.may_ask(member.name):
            raise PeerRefusedError(protocol.BUSY)
        try:
            self._client(member).fetch(request, buffers)
        except PeerFailedError:
            self.suspects.note_failure(member.name)
            raise
        except PeerRefusedError:
            self.suspects.note_success(member.name)
            raise
        self.suspects.note_success(member.name)

    def _client(self, member: Member) -> PeerClient:
        client = self._clients.get(member.name)
        if client is not None and client.member == member:
            return client
        with self._lock.held():
            client = self._clients.get(member.name)
            if client is None or client.member != member:
                client = PeerClient(
                    member,
                    is_near=member.host == self.me.host,
                    secret=self._secret,
                    tls=self._tls[1] if self._tls else None,
                    timeout_s=self.timeout_s,
                    patience_s=self.patience_s,
                    limit=self._connections,
                    idle_max=min(self._connections, IDLE_CONNECTIONS // max(1, len(self._membership.by_name))),
                )
                self._clients[member.name] = client
        return client

    # -- the owner's side ----------------------------------------------------------------------------------------------

    def _open_served(self, store: BackingStore) -> File:
        return self.cache.open(PeerStore(store, self))

    def _check_mine(self, request: Request) -> bool:
        """Return whether this process is the owner of what is asked for, not its deputy. Raises RefusedError."""
        extent = request.offset // self.extent_bytes
        if (request.offset + request.nbytes - 1) // self.extent_bytes != extent:
            raise RefusedError(protocol.NOT_MINE)
        digest, membership = object_digest(request.key, request.validator), self._membership
        if _is(membership.owner(digest, extent), self.me):
            return True
        if request.flags & protocol.MAY_ASK_OWNER and _is(membership.deputy(digest, extent), self.me):
            return False
        raise RefusedError(protocol.NOT_MINE)

    def _ready(self, request: Request) -> Views | None:
        """Return what is asked for if it is cached. Raises RefusedError."""
        try:
            self._check_mine(request)
        except RefusedError:
            self._note_served(refused_requests=1)
            raise
        file = self._objects.find(request.key, request.validator)
        if file is None or request.offset + request.nbytes > file.mapping.size:
            return None
        pieces = None
        if request.nbytes * pages.PINNED_SHARE <= file.mapping.segment.nr_frames * PAGE_SIZE:
            pieces = pages.cached_pieces(file, request.offset, request.nbytes)
        if pieces is not None:
            self._note_served(served_requests=1, served_bytes=request.nbytes)
        return pieces

    def _wait(self, request: Request) -> Views:
        """Return what is asked for, from the origin if need be. Raises RefusedError."""
        try:
            is_owner = self._check_mine(request)
            file = self._objects.open(request.key, request.validator, request.name)
            if request.offset + request.nbytes > file.mapping.size:
                raise RefusedError(protocol.FAILED)
            with self._serves(request) if is_owner else contextlib.nullcontext():
                pieces = pages.read_pieces(file, request.offset, request.nbytes)
        except RefusedError:
            self._note_served(refused_requests=1)
            raise
        self._note_served(served_requests=1, served_bytes=request.nbytes)
        return pieces

    @contextlib.contextmanager
    def _serves(self, request: Request) -> Iterator[None]:
        """While this lasts, this process reads the extent from the origin, whichever member owns it by then."""
        key = (request.key, request.offset // self.extent_bytes)
        with self._lock.held():
            self._serving[key] = self._serving.get(key, 0) + 1
        try:
            yield
        finally:
            with self._lock.held():
                self._serving[key] -= 1
                if not self._serving[key]:
                    del self._serving[key]

    def _note_served(self, **counts: int) -> None:
        with self._lock.held():
            for name, number in counts.items():
                self._served[name] += number

    def stats(self) -> dict[str, Any]:
        """Return what this process has served to its peers, and what it thinks of them."""
        with self._lock.held():
            served = dict(self._served)
        return {**served, "members": len(self.members), "epoch": self.epoch, "suspected": self.suspects.names()}

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the group is closed."""
        return self._closed

    def close(self) -> None:
        """Leave the group: nothing is served any more, and stores read from their origins. Idempotent."""
        with self._lock.held():
            if self._closed:
                return
            self._closed = True
            clients, self._clients = list(self._clients.values()), {}
        if self._pid != os.getpid():
            return  # of the process that forked this one
        if self._is_attached:
            self.cache.through(None)
        for client in clients:
            client.close()
        self._server.close(self._paths)
        self._objects.close()

    def __enter__(self) -> "PeerGroup":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PeerGroup {self.me.name} of {len(self.members)}{', closed' if self._closed else ''}>"


