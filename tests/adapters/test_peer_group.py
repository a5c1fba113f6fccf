"""Groups of caches within one process: one read of the origin for all, right bytes whatever peers do, and no cycle."""

import contextlib
import errno
import itertools
import os
import pickle
import threading

import pytest
from support import PAGE, PATIENCE_S, Crew, assert_nothing_is_held, pages_of, wait_until
from support.peer_support import EXTENT, PATIENT, FakePeer, Machine, Objects, Origin, head, know_each_other, machines
from support.remote_stores import wait_all_read

import pagecache
from pagecache.adapters.peers import Member, PeerStore, protocol, transport
from pagecache.adapters.peers.client import Suspects
from pagecache.adapters.peers.membership import object_digest
from pagecache.testing import StoreTests

NR_EXTENTS = 24
DATA = pages_of(NR_EXTENTS * EXTENT - 1000)
DIGEST = object_digest("origin:a", "version 1")


@pytest.fixture
def objects():
    made = Objects()
    made.put("a", DATA)
    return made


def read_all(machine, name="a", step=3 * PAGE + 7):
    with machine.open(name) as file:
        return b"".join(file.pread(step, offset) for offset in range(0, file.size, step))


def owned(machine, name="a", version=1, nr_extents=NR_EXTENTS):
    """Return the extents that a member owns."""
    digest = object_digest(f"origin:{name}", f"version {version}")
    membership = machine.group._membership
    return [extent for extent in range(nr_extents) if membership.owner(digest, extent).name == machine.group.me.name]


class TestOneReadForAll:
    def test_at_once(self, objects):
        with machines(objects, 4) as made:
            assert all(data == DATA for data in Crew(*(lambda m=m: read_all(m) for m in made)).join_well())
            assert objects.bytes_read() == len(DATA)
            counts = [machine.counts() for machine in made]
            for machine, count in zip(made, counts, strict=True):
                assert count["peer_bytes"] + count["origin_bytes"] >= len(DATA)
                assert count["peer_failures"] == 0
                served = machine.group.stats()
                assert served["refused_requests"] == 0
            assert sum(count["peer_bytes"] for count in counts) == sum(m.group.stats()["served_bytes"] for m in made)
            assert sum(count["origin_bytes"] for count in counts) == len(DATA)

    def test_an_extent_is_read_by_its_owner(self, objects):
        with machines(objects, 3) as made:
            assert read_all(made[0]) == DATA
            for machine in made:
                mine = owned(machine)
                assert machine.counts()["origin_bytes"] == sum(
                    min(EXTENT, len(DATA) - extent * EXTENT) for extent in mine
                )

    def test_what_waits_for_one_read(self, objects):
        with machines(objects, 4) as made:
            objects.go_on.clear()
            crew = Crew(*(lambda m=m: read_all(m, step=EXTENT)[:PAGE] for m in made for _ in range(2)))
            assert objects.entered.wait(PATIENCE_S)
            objects.go_on.set()
            assert crew.join_well() == [DATA[:PAGE]] * 8
            assert objects.bytes_read() == len(DATA)

    @pytest.mark.parametrize("frames", [1, 2, 3, 64])
    def test_small_caches(self, objects, frames):
        with machines(objects, 3, size=frames * PAGE, request_bytes=PAGE) as made:
            for data in Crew(*(lambda m=m: read_all(m) for m in made)).join_well():
                assert data == DATA
            for machine in made:
                machine.group.close()
                assert_nothing_is_held(machine.cache)

    def test_through_what_is_opened_by_libraries(self, objects):
        with machines(objects, 2) as made:
            for machine in made:
                machine.group.attach()
                with machine.cache.open(objects.open("a")) as file:
                    assert isinstance(file.inode.store, PeerStore)
                    assert file.pread(len(DATA), 0) == DATA
                    assert isinstance(pickle.loads(pickle.dumps(file.inode.store.__reduce__()[0])), type(owned))
            assert objects.bytes_read() == len(DATA)
            made[0].group.close()
            with made[0].cache.open(objects.open("a")) as file:
                assert file.pread(PAGE, PAGE) == DATA[PAGE : 2 * PAGE]

    def test_local_stores_and_files_that_are_written_stay_as_they_are(self, objects, tmp_path):
        (tmp_path / "file").write_bytes(DATA)
        with machines(objects, 1) as (machine,):
            machine.group.attach()
            for source, mode in ((tmp_path / "file", "r+b"), (pagecache.MemoryStore(DATA), "rb")):
                with machine.cache.open(source, mode) as file:
                    assert not isinstance(file.inode.store, PeerStore)
                    assert file.pread(PAGE, 0) == DATA[:PAGE]


    def test_keys_that_name_something_in_one_process_only_are_not_asked_for(self, objects):
        """Two processes number what has no name of its own, and its versions, alike: their bytes have nothing in common."""
        objects.put("b", DATA[::-1])
        with machines(objects, 2) as made:
            for _ in range(2):
                for machine, name, data in zip(made, "ab", (DATA, DATA[::-1]), strict=True):
                    machine.group.attach()
                    store = objects.open(name)
                    store.key, store.key_scope = "number 1", "process"
                    with machine.cache.open(store) as file:
                        assert file.pread(len(DATA), 0) == data
                    machine.cache.drop_caches()


class TestMachinesApart:
    """Two machines of three members: an extent crosses between them once."""

    def test_deputies(self, objects):
        made = [Machine(objects) for _ in range(6)]
        try:
            members = [m.group.me._replace(host=f"host {number % 2}") for number, m in enumerate(made)]
            for machine, member in zip(made, members, strict=True):
                machine.group.me = member
                machine.group.update(members)
            for machine in made:
                assert read_all(machine) == DATA
            assert objects.bytes_read() == len(DATA)
            across = sum(m.counts()["peer_bytes"] for m in made) - sum(m.counts()["origin_bytes"] for m in made)
            assert across > 0
            for machine in made:
                assert machine.group.stats()["refused_requests"] == 0
                assert machine.counts()["peer_failures"] == 0
        finally:
            for machine in made:
                machine.close()

    def test_an_owner_asks_no_other(self, objects):
        """Membership changes while a peer waits: the extent is read from the origin all the same."""
        with machines(objects, 2) as made:
            extent = owned(made[0])[0]
            objects.go_on.clear()
            with made[1].open("a") as file:
                crew = Crew(lambda: file.pread(PAGE, extent * EXTENT))
                assert objects.entered.wait(PATIENCE_S)
                self.give_away(made[0].group, extent)
                assert made[0].group.source("origin:a", DIGEST, extent * EXTENT, PAGE) is None
                others = [other for other in range(NR_EXTENTS) if other != extent]
                assert any(made[0].group.source("origin:a", DIGEST, other * EXTENT, PAGE) for other in others)
                objects.go_on.set()
                assert crew.join_well() == [DATA[extent * EXTENT :][:PAGE]]
            assert made[0].group.source("origin:a", DIGEST, extent * EXTENT, PAGE) is not None
            assert made[1].group.stats()["served_requests"] == 0

    def give_away(self, group, extent):
        """Have a group believe that an extent belongs to a member that joins."""
        for number in itertools.count():
            group.update([group.me, Member(f"guest {number}", "127.0.0.1:1", "elsewhere")])
            if group._membership.owner(DIGEST, extent) != group.me:
                return


class TestReplacedObjects:
    def test_who_opens_later_sees_only_the_new(self, objects):
        new = bytes(reversed(DATA))
        with machines(objects, 3) as made:
            assert read_all(made[0]) == DATA
            with made[1].open("a") as before:
                head_of_old = before.pread(EXTENT, 0)
                objects.put("a", new)
                for machine in made:
                    assert read_all(machine) == new
                seen = []
                for offset in range(0, len(DATA), EXTENT):
                    try:
                        seen.append((offset, before.pread(EXTENT, offset)))
                    except OSError as error:
                        assert error.errno == errno.ESTALE
                assert head_of_old == DATA[:EXTENT]
                assert all(data == DATA[offset : offset + EXTENT] for offset, data in seen)

    def test_replaced_again_and_again_while_many_read(self, objects, rng):
        versions = [bytes([number]) * (8 * EXTENT) for number in range(1, 9)]
        objects.put("b", versions[0])
        nr_read = []

        def reader(machine):
            while not done.is_set():
                with contextlib.suppress(OSError), machine.open("b") as file:
                    version = int(file.mapping.validator.split()[1])
                    data = file.pread(8 * EXTENT, 0)
                    assert data == versions[version - 1], f"version {version} is mixed"
                    nr_read.append(version)

        done = threading.Event()
        with machines(objects, 3) as made:
            crew = Crew(*(lambda m=m: reader(m) for m in made))
            for data in versions[1:]:
                before = len(nr_read)
                objects.put("b", data)
                wait_until(lambda before=before: len(nr_read) > before + 3, "reads of the new version")
            done.set()
            crew.join_well()
            assert all(read_all(machine, "b") == versions[-1] for machine in made)

    def test_reloading_files(self, objects):
        with machines(objects, 2) as made, made[0].open("a", recheck=True, on_change="reload") as file:
            assert file.pread(len(DATA), 0) == DATA
            objects.put("a", bytes(reversed(DATA)))
            assert file.pread(len(DATA), 0) == bytes(reversed(DATA))


def silent(connection, request):
    pass


def half(connection, request):
    data = DATA[request.offset : request.offset + request.nbytes]
    transport.send(connection, [head(protocol.DATA, request), data[: len(data) // 2]])


def pending_for_ever(connection, request):
    with contextlib.suppress(OSError):
        while True:
            transport.send(connection, [head(protocol.PENDING, request)])
            threading.Event().wait(0.01)


def another_version(connection, request):
    transport.send(connection, [head(protocol.REFUSED, request, reason=protocol.STALE)])


def hang_up(connection, request):
    transport.shut(connection)


def noise(connection, request):
    transport.send(connection, [os.urandom(4096)])


class TestPeersThatFail:
    @pytest.mark.parametrize("answer", [silent, half, pending_for_ever, another_version, hang_up, noise])
    def test_the_origin_is_asked_after_one_attempt(self, objects, answer):
        with FakePeer(answer) as peer, machines(objects, 1, timeout_s=0.05, patience_s=0.1, suspect_s=1e6) as (machine,):
            machine.group.update([machine.group.me, peer.member])
            assert read_all(machine) == DATA
            counts = machine.counts()
            assert counts["origin_bytes"] == len(DATA)
            assert counts["peer_hits"] == 0
            theirs = NR_EXTENTS - len(owned(machine))
            if answer is another_version:
                assert counts["peer_failures"] == 0
                assert peer.nr_requests == counts["peer_refusals"] >= theirs > 0
            else:
                assert counts["peer_failures"] == peer.nr_requests <= 16  # those at once; it is suspected from then on
                assert peer.nr_requests >= 1
                assert machine.group.stats()["suspected"] == [peer.member.name]

    def test_a_member_that_is_not_there(self, objects):
        with machines(objects, 1, suspect_s=1e6) as (machine,):
            gone = transport.listen_tcp("127.0.0.1:0")
            address = f"127.0.0.1:{gone.getsockname()[1]}"
            gone.close()
            machine.group.update([machine.group.me, address])
            assert read_all(machine) == DATA
            assert machine.counts()["peer_failures"] >= 1
            assert machine.counts()["origin_bytes"] == len(DATA)

    def test_an_owner_whose_origin_fails(self, objects):
        """Its readers ask the origin themselves, and have its error if it fails for them as well."""
        with machines(objects, 2) as made:
            objects.error = OSError(errno.EIO, "the origin is ill")
            with made[0].open("a") as file:
                with pytest.raises(OSError, match="the origin is ill"):
                    file.pread(len(DATA), 0)
                objects.error = None
                assert file.pread(len(DATA), 0) == DATA

    def test_an_owner_that_cannot_open(self, objects):
        def refuse(name):
            raise PermissionError(name)

        blind = Machine(objects, resolver=refuse)
        with machines(objects, 1) as (machine,):
            try:
                know_each_other([machine, blind])
                assert read_all(machine) == DATA
                assert machine.counts()["peer_refusals"] > 0
                assert machine.counts()["peer_failures"] == 0
                with blind.open("a"), machine.open("a") as file:  # what it has open itself it can open once more
                    machine.cache.drop_caches()
                    before = machine.counts()["peer_hits"]
                    assert file.pread(len(DATA), 0) == DATA
                    assert machine.counts()["peer_hits"] > before
            finally:
                blind.close()

    def test_a_resolver_that_opens_something_else(self, objects):
        objects.put("b", bytes(len(DATA)))
        liar = Machine(objects, resolver=lambda name: objects.open("b"))
        with machines(objects, 1) as (machine,):
            try:
                know_each_other([machine, liar])
                assert read_all(machine) == DATA
            finally:
                liar.close()

    def test_without_a_validator_no_peer_is_asked(self, objects, monkeypatch):
        monkeypatch.setattr(Origin, "validator", lambda self: None)
        with machines(objects, 2) as made:
            assert read_all(made[0]) == DATA
            assert made[0].counts()["peer_hits"] == 0
            assert made[0].counts()["peer_refusals"] == 0


class TestSuspects:
    def test_one_asks_when_the_time_is_over(self):
        now = [0.0]
        suspects = Suspects(5.0, lambda: now[0])
        assert suspects.may_ask("a")
        suspects.note_failure("a")
        assert not suspects.may_ask("a")
        assert suspects.may_ask("b")
        now[0] = 5.0
        assert [suspects.may_ask("a") for _ in range(3)] == [True, False, False]
        suspects.note_success("a")
        assert suspects.may_ask("a")
        suspects.note_failure("a")
        suspects.keep_only({"b"})
        assert suspects.names() == []


class TestMembers:
    def test_who_leaves_and_who_joins_under_load(self, objects, seed):
        """Members come, go and are closed while others read: every byte is right, and nothing hangs."""
        nr_rounds = 20
        done = threading.Event()

        def reader(machine):
            nr = 0
            while not done.is_set() or nr == 0:
                machine.cache.drop_caches()
                assert read_all(machine) == DATA
                nr += 1
            return nr

        with machines(objects, 3, timeout_s=1.0, suspect_s=0.0) as made:
            crew = Crew(*(lambda m=m: reader(m) for m in made))
            for _ in range(nr_rounds):
                guest = Machine(objects)
                know_each_other([*made, guest])
                if owned(guest):  # one in a thousand guests owns none of 24 extents
                    wait_until(lambda g=guest: g.group.stats()["served_requests"] > 0, "the guest to be asked")
                guest.close()  # without a word: the others find out
            know_each_other(made)
            done.set()
            assert min(crew.join_well()) > 0
            for machine in made:
                machine.group.close()
                assert_nothing_is_held(machine.cache)

    def test_a_restarted_member_is_asked_again(self, objects):
        with machines(objects, 1, suspect_s=0.0) as (machine,):
            for _ in range(3):
                other = Machine(objects)
                address = other.group.me.address
                know_each_other([machine, other])
                machine.cache.drop_caches()
                assert read_all(machine) == DATA
                other.close()
                again = Machine(objects, me=address)
                try:
                    know_each_other([machine, again])
                    machine.cache.drop_caches()
                    before = machine.counts()
                    assert read_all(machine) == DATA
                    after = machine.counts()
                    assert after["peer_hits"] > before["peer_hits"]
                    assert after["peer_failures"] == before["peer_failures"]
                finally:
                    again.close()

    def test_lists_that_are_late_are_passed_over(self, objects):
        with machines(objects, 2) as made:
            group, members = made[0].group, [m.group.me for m in made]
            assert group.update(members, 10)
            assert not group.update(members[:1], 9)
            assert not group.update(members[:1], 10)
            assert (group.members, group.epoch) == (sorted(members), 10)

    def test_two_opinions_about_members(self, objects):
        """A peer that is asked for what it thinks is another's refuses; no members wait in a circle."""
        with machines(objects, 3) as made:
            made[0].group.update([made[0].group.me, made[1].group.me])
            made[1].group.update([made[1].group.me, made[2].group.me])
            made[2].group.update([made[2].group.me, made[0].group.me])
            for data in Crew(*(lambda m=m: read_all(m) for m in made)).join_well():
                assert data == DATA
            assert sum(machine.group.stats()["refused_requests"] for machine in made) > 0

    def test_closed_groups_read_from_the_origin(self, objects):
        with machines(objects, 2) as made:
            made[0].group.close()
            made[0].group.close()
            assert read_all(made[0]) == DATA
            assert made[0].counts()["peer_failures"] == 0

    @pytest.mark.parametrize(
        "options", [{"extent_bytes": 1000}, {"replicate": "some"}, {"request_bytes": 1}, {"request_bytes": 1 << 30}]
    )
    def test_nonsense_is_refused(self, objects, options):
        with pytest.raises(ValueError):
            Machine(objects, **options)

    def test_a_static_list(self, objects):
        ports = []
        for _ in range(2):
            listener = transport.listen_tcp("127.0.0.1:0")
            ports.append(listener.getsockname()[1])
            listener.close()
        addresses = [f"127.0.0.1:{port}" for port in ports]
        with contextlib.ExitStack() as stack:
            groups = []
            for address in addresses:
                cache = stack.enter_context(pagecache.PageCache("4MiB"))
                options = {"resolver": objects.open, "extent_bytes": EXTENT, "request_bytes": EXTENT, **PATIENT}
                groups.append(stack.enter_context(pagecache_group(addresses, address, cache=cache, **options)))
            assert groups[0].members == groups[1].members == sorted(Member.of(address) for address in addresses)
            for group in groups:
                with group.cache.open(group.store(objects.open("a"))) as file:
                    assert file.pread(len(DATA), 0) == DATA
            assert objects.bytes_read() == len(DATA)


def pagecache_group(*args, **options):
    from pagecache.adapters.peers import PeerGroup

    return PeerGroup(*args, **options)


class TestReplicate:
    """Half the object fits one cache: what is owned stays, what is a copy goes by the group's rule."""

    def resident(self, machine, file):
        """Return (pages of own extents, pages of the others') that are cached."""
        pages = file.mincore()
        mine = set(owned(machine))
        found = [0, 0]
        for index, page in enumerate(pages):
            found[index * PAGE // EXTENT not in mine] += page & 1
        return found

    @pytest.mark.parametrize("replicate", ["all", "hot", "none"])
    def test_plenty_of_memory(self, objects, replicate):
        with machines(objects, 2, replicate=replicate) as made, made[0].open("a") as file:
            for offset in range(0, file.size, PAGE):
                assert file.pread(PAGE, offset) == DATA[offset : offset + PAGE]
            nr_pages = -(-len(DATA) // PAGE)
            mine, others = self.resident(made[0], file)
            nr_mine = sum(index * PAGE // EXTENT in owned(made[0]) for index in range(nr_pages))
            assert mine == nr_mine
            if replicate != "none":
                assert others == nr_pages - nr_mine
                return
            assert others < nr_pages - nr_mine  # what was in use when it was read leaves when it is read again
            wait_all_read(file)
            for index, is_resident in enumerate(file.mincore()):
                if is_resident and index * PAGE // EXTENT not in owned(made[0]):
                    file.pread(PAGE, index * PAGE)
            assert self.resident(made[0], file) == [nr_mine, 0]

    def test_copies_leave_first(self, objects):
        objects.put("more", pages_of(NR_EXTENTS * EXTENT, start=1 << 40))
        with machines(objects, 2, size="2MiB", replicate="hot") as made, made[0].open("a") as file:
            for offset in range(0, file.size, PAGE):
                file.pread(PAGE, offset)
            hot = next(extent for extent in range(NR_EXTENTS) if extent not in owned(made[0]))
            for _ in range(3):
                assert file.pread(EXTENT, hot * EXTENT) == DATA[hot * EXTENT :][:EXTENT]
            before = self.resident(made[0], file)
            with made[0].open("more") as other:
                for offset in range(0, other.size // 2, PAGE):
                    other.pread(PAGE, offset)
            after = self.resident(made[0], file)
            assert before[1] - after[1] > before[0] - after[0], (before, after)
            assert sum(page & 1 for page in file.mincore()[hot * EXTENT // PAGE :][: EXTENT // PAGE]) > 0

    def test_small_reads_of_large_folios_bring_them_once(self, objects):
        with machines(objects, 2, replicate="none") as made, made[0].open("a") as file:
            for offset in range(0, file.size, 100):
                assert file.pread(100, offset) == DATA[offset : offset + 100]
            assert made[0].counts()["store_read_bytes"] <= len(DATA) + PAGE


class TestUnixSockets:
    def test_near_members_use_them(self, objects):
        if transport.socket_directory() is None:
            pytest.skip("no directory of this user's own for Unix sockets")
        with machines(objects, 2) as made:
            assert transport.socket_path(made[1].group.me).is_socket()
            connection = transport.dial(made[1].group.me, True, PATIENCE_S, None)
            assert connection.family.name == "AF_UNIX"
            connection.close()
            path = transport.socket_path(made[1].group.me)
        assert not path.exists()

    def test_a_directory_that_others_can_enter_is_not_used(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        directory = transport.socket_directory()
        assert directory is not None
        directory.chmod(0o755)
        assert transport.socket_directory() is None


class TestTls:
    def test_both_sides_show_certificates(self, objects):
        distributed = pytest.importorskip("distributed", reason="Dask, which makes certificates, is not installed")
        pytest.importorskip("cryptography", reason="cryptography, with which certificates are made, is not installed")

        def contexts():
            security = distributed.Security.temporary()
            sides = security.get_listen_args("worker"), security.get_connection_args("worker")
            return tuple(side["ssl_context"] for side in sides)

        tls, made = contexts(), []
        try:
            made += [Machine(objects, tls=tls, secret="s"), Machine(objects, tls=tls, secret="s")]
            members = [m.group.me._replace(host=f"host {number}") for number, m in enumerate(made)]
            for machine, member in zip(made, members, strict=True):
                machine.group.me = member
                machine.group.update(members)
            for machine in made:
                assert read_all(machine) == DATA
                assert machine.counts()["peer_failures"] == 0
            assert objects.bytes_read() == len(DATA)
            stranger = Machine(objects, tls=contexts(), secret="s")
            made.append(stranger)
            stranger.group.me = stranger.group.me._replace(host="host 3")
            stranger.group.update([*members, stranger.group.me])
            assert read_all(stranger) == DATA
            assert (stranger.counts()["peer_hits"], stranger.counts()["peer_failures"] > 0) == (0, True)
        finally:
            for machine in made:
                machine.close()


class TestPeerStore(StoreTests):
    """It is a store like any other."""

    writable = holes = extends = False

    @pytest.fixture(autouse=True)
    def group(self):
        self.objects = Objects()
        self.nr = 0
        with machines(self.objects, 2) as made:
            self.machine = made[0]
            yield

    def make_store(self, data):
        self.nr += 1
        self.objects.put(f"object-{self.nr}", data)
        return self.machine.group.store(self.objects.open(f"object-{self.nr}"))

    def reopen(self, store):
        return self.machine.group.store(self.objects.open(store.name))

    def change(self, store, data):
        self.objects.put(store.name.removeprefix("origin://"), data)
        store.refresh()
        return True


class TestFork:
    def test_a_child_reads_from_the_origin(self, objects):
        with machines(objects, 2) as made:
            store = made[0].group.store(objects.open("a"))
            buffer = bytearray(len(DATA))
            pid = os.fork()
            if pid == 0:
                good = False
                with contextlib.suppress(BaseException):
                    good = store.readv(0, [memoryview(buffer)]) == len(DATA) and buffer == DATA
                    made[0].group.close()
                os._exit(0 if good else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert read_all(made[1]) == DATA
