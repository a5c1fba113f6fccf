"""The directory of the segment: what has no holder is found by its key, keeps its pages, and is reused in turn."""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support import PAGE, Crew, add_page

from pagecache._core import (
    AddressSpace,
    LongValidator,
    ObjectKey,
    Segment,
    find_object,
    known_objects,
    read_object,
)
from pagecache.files.inode_table import KnownObject

KEPT = 17  # records without pages that a segment of 64 frames keeps
LONG = "k" * 200


def park(segment, key, *, validator="v1", size=0, name=None, pages=()):
    """Make an object without a holder. Returns its place."""
    mapping = AddressSpace(segment, name or key)
    mapping.validator, mapping.size, mapping.stays = validator, size, True
    for index, data in enumerate(pages):
        add_page(mapping, index, data)
    assert mapping.publish(ObjectKey(key))
    return mapping.place


def known(segment):
    """Return what is known of the objects without a holder."""
    return [KnownObject(*found) for found in known_objects(segment, 0, 1000)[0]]


def claim(segment, key):
    return AddressSpace(segment, key=ObjectKey(key))


class TestKeys:
    @pytest.mark.parametrize(
        "key", ["", "a", "k" * 127, "k" * 128, "k" * 129, "k" * (1 << 20), "\0", "ключ", "\ud800", "a\0b"]
    )
    def test_any_key_is_found_and_told(self, key):
        segment = Segment(8)
        place = park(segment, key, size=77, validator="etag", name="n")
        assert find_object(segment, ObjectKey(key)) == place
        (found,) = known(segment)
        assert (found.number, found.generation, found.validator, found.name) == (*place, "etag", "n")
        assert found.key == key if found.is_whole else key.startswith(found.key)
        assert found.is_whole == (len(key.encode("utf-8", "surrogatepass")) <= 128)
        mapping = claim(segment, key)
        assert (mapping.size, mapping.validator, mapping.name, mapping.place) == (77, "etag", "n", place)
        segment.check()

    def test_keys_that_differ_behind_what_is_kept_are_two(self):
        segment = Segment(8)
        one, two = LONG + "1", LONG + "2"
        places = park(segment, one), park(segment, two)
        assert places[0] != places[1]
        assert (find_object(segment, ObjectKey(one)), find_object(segment, ObjectKey(two))) == places
        assert find_object(segment, ObjectKey(LONG)) is None
        segment.check()

    def test_a_long_validator_is_compared_by_its_hash(self):
        segment = Segment(8)
        park(segment, "key", validator="v" * 500)
        validator = claim(segment, "key").validator
        assert isinstance(validator, LongValidator)
        assert validator == "v" * 500 and validator == "v" * 500
        assert validator != "v" * 499 and validator != None and validator != 5  # noqa: E711

    @pytest.mark.parametrize("nbytes", [10, 150, 10_000])
    def test_of_a_long_name_the_end_is_kept(self, nbytes):
        segment = Segment(8)
        name = "/".join(str(number) for number in range(nbytes))[:nbytes]
        park(segment, "key", name=name)
        (found,) = known(segment)
        is_end = found.name.startswith("...") and name.endswith(found.name[3:]) and len(found.name) > 100
        assert found.name == name or is_end

    def test_an_object_without_a_validator_keeps_none(self):
        segment = Segment(8)
        park(segment, "key", validator=None)
        assert claim(segment, "key").validator is None


class TestHolding:
    def test_one_key_has_one_record(self):
        segment = Segment(8)
        one, two = AddressSpace(segment), AddressSpace(segment)
        assert one.publish(ObjectKey("key")) and not two.publish(ObjectKey("key"))
        assert not one.publish(ObjectKey("another")), "it is known by a key already"
        one.unpublish()
        assert two.publish(ObjectKey("key")) and find_object(segment, ObjectKey("key")) == two.place
        segment.check()

    def test_what_is_held_is_claimed_by_nobody_and_found_no_more(self):
        """What opens objects knows all holders: this one is about to end."""
        segment = Segment(8)
        mapping = AddressSpace(segment)
        mapping.stays = True
        mapping.publish(ObjectKey("key"))
        with pytest.raises(KeyError):
            claim(segment, "key")
        assert mapping.place is None and find_object(segment, ObjectKey("key")) is None
        add_page(mapping, 0, bytes(PAGE))
        del mapping
        segment.check()
        assert segment.counters()["nr_file_pages"] == segment.counters()["nr_mappings"] == 0

    def test_by_number_only_in_its_generation(self):
        segment = Segment(8)
        number, generation = park(segment, "key")
        for wrong in (generation + 2, generation + 1, generation - 2):
            with pytest.raises(KeyError):
                AddressSpace(segment, number=number, generation=wrong)
        AddressSpace(segment, number=number, generation=generation)  # which ends it
        assert find_object(segment, ObjectKey("key")) is None
        with pytest.raises(KeyError):
            AddressSpace(segment, number=number, generation=generation)
        segment.check()

    def test_without_pages_the_oldest_is_reused(self):
        segment = Segment(64, nr_mappings=KEPT + 100)
        for number in range(KEPT + 50):
            park(segment, f"key {number}")
        assert segment.counters()["nr_mappings"] == KEPT
        assert find_object(segment, ObjectKey("key 49")) is None
        assert find_object(segment, ObjectKey("key 50")) is not None
        segment.check()

    def test_with_pages_it_stays_until_the_last_is_evicted(self):
        segment = Segment(64, nr_mappings=6)
        for number in range(3):
            park(segment, f"cached {number}", size=PAGE, pages=[bytes([number]) * PAGE])
        park(segment, "empty")
        park(segment, "empty too")
        mapping = AddressSpace(segment)  # there is no other record than that of "empty"
        assert find_object(segment, ObjectKey("empty")) is None
        assert all(find_object(segment, ObjectKey(f"cached {number}")) for number in range(3))
        segment.check()
        assert segment.reclaim(64) >= 3
        segment.check()
        del mapping
        assert segment.counters()["nr_objects_idle"] == 4
        held = [AddressSpace(segment) for _ in range(5)]
        assert segment.counters()["nr_objects_known"] == 0
        with pytest.raises(OSError, match="mappings"):
            AddressSpace(segment)
        del held
        segment.check()

    def test_a_record_that_is_reused_remembers_nothing(self):
        segment = Segment(8, nr_mappings=2)
        park(segment, "one", size=5000, pages=[b"1" * PAGE, b"2" * PAGE])
        segment.reclaim(8)  # leaves shadows
        mapping = AddressSpace(segment, "two")
        assert mapping.empty and mapping.size == 0 and mapping.validator is None and mapping.place is None
        assert mapping.counters() == dict.fromkeys(mapping.counters(), 0)
        segment.check()

    def test_many_of_them_are_found_as_one_is(self):
        segment = Segment(65536, data=False)
        rng = random.Random(1)
        names = [f"object {number}" for number in range(1000)]
        for name in names:
            park(segment, name)
        rng.shuffle(names)
        for number, name in enumerate(names):
            assert find_object(segment, ObjectKey(name)) is not None
            if number % 3 == 0:
                claim(segment, name).stays = False
        segment.check()
        assert segment.counters()["nr_objects_known"] == sum(1 for number in range(1000) if number % 3)


class TestReading:
    def test_of_what_nobody_holds(self):
        segment = Segment(64)
        data = random.Random(1).randbytes(2 * PAGE + 100)
        pages = [data[at : at + PAGE].ljust(PAGE, b"\0") for at in (0, PAGE, 2 * PAGE)]
        place = park(segment, "key", size=len(data), pages=pages)
        assert read_object(segment, *place, 1 << 40, 0) == data
        assert read_object(segment, *place, 10, PAGE - 5) == data[PAGE - 5 : PAGE + 5]
        assert read_object(segment, *place, 10, len(data) - 3) == data[-3:]
        assert read_object(segment, *place, 10, len(data)) == b""
        assert segment.counters()["hits"] == 3

    def test_not_of_another_generation_nor_of_what_is_not_all_cached(self):
        segment = Segment(64)
        number, generation = park(segment, "key", size=3 * PAGE, pages=[bytes(PAGE)])
        assert read_object(segment, number, generation, PAGE, 0) == bytes(PAGE)
        assert read_object(segment, number, generation, PAGE + 1, 0) is None
        assert read_object(segment, number, generation, 1, PAGE) is None
        for wrong in (generation + 1, generation + 2, 0, 1):
            assert read_object(segment, number, wrong, 1, 0) is None
        with pytest.raises(ValueError):
            read_object(segment, 1 << 30, generation, 1, 0)

    def test_another_validator_is_another_generation(self):
        segment = Segment(64)
        mapping = AddressSpace(segment)
        mapping.validator, mapping.size = "v1", 10
        mapping.publish(ObjectKey("key"))
        add_page(mapping, 0, b"old bytes!".ljust(PAGE, b"\0"))
        place = mapping.place
        assert read_object(segment, *place, 10, 0) == b"old bytes!"
        mapping.validator = "v2"
        assert read_object(segment, *place, 10, 0) is None
        assert read_object(segment, *mapping.place, 10, 0) == b"old bytes!"

    def test_beside_threads_that_replace_the_object(self):
        """A read by generation gets the bytes of one version, whatever becomes of the record."""
        segment = Segment(64, nr_mappings=6)
        nr_left = [400]

        def replace():
            rng = random.Random()
            while nr_left[0] > 0:
                nr_left[0] -= 1
                version = rng.randrange(1000)
                try:
                    park(segment, f"{rng.randrange(3)}", validator=str(version), size=PAGE,
                         pages=[b"%3d" % version * 1365 + b"\0"])  # fmt: skip
                except (OSError, AssertionError):
                    for found in known(segment):
                        try:
                            AddressSpace(segment, number=found.number, generation=found.generation)
                        except KeyError:
                            continue

        def read():
            while nr_left[0] > 0:
                for found in known(segment):
                    data = read_object(segment, found.number, found.generation, 4095, 0)
                    assert data is None or data == b"" or data == b"%3d" % int(found.validator) * 1365

        Crew(replace, replace, read, read).join_well()
        segment.check()


class Directory(RuleBasedStateMachine):
    """A dictionary beside the directory: keys, sizes, and who holds what."""

    frames = 3

    def __init__(self):
        super().__init__()
        self.segment = Segment(self.frames, nr_mappings=8)
        self.held = {}
        self.sizes = {}

    keys = st.sampled_from(["", "a", "b", LONG, LONG + "x", "c" * 129])

    @rule(key=keys, size=st.integers(0, 3 * PAGE), nr_pages=st.integers(0, 2))
    def open(self, key, size, nr_pages):
        if key in self.held:
            return
        try:
            mapping = claim(self.segment, key)
            assert mapping.size == self.sizes[key]
        except KeyError:
            try:
                mapping = AddressSpace(self.segment, key)
            except OSError:
                assert len(self.held) == 7 or self.segment.reclaim(8) > 0
                return
            mapping.validator, mapping.size = f"v{size}", size
            assert mapping.publish(ObjectKey(key))
            self.sizes[key] = size
        for index in range(nr_pages):
            if mapping.get_folio(index) is None and mapping.nrpages < 2:
                add_page(mapping, index, bytes(PAGE))
        assert mapping.validator == f"v{self.sizes[key]}"
        self.held[key] = mapping

    @rule(key=keys, size=st.integers(0, 3 * PAGE))
    def change(self, key, size):
        if key in self.held:
            self.held[key].size, self.held[key].validator, self.sizes[key] = size, f"v{size}", size

    @rule(key=keys, stays=st.booleans())
    def close(self, key, stays):
        mapping = self.held.pop(key, None)
        if mapping is not None:
            mapping.stays = stays
            if not stays:
                del self.sizes[key]

    @rule(key=keys)
    def forget(self, key):
        place = find_object(self.segment, ObjectKey(key))
        if key not in self.held and place is not None:
            AddressSpace(self.segment, number=place[0], generation=place[1])
            del self.sizes[key]

    @rule(nr=st.integers(1, 8))
    def evict(self, nr):
        self.segment.reclaim(nr)

    @invariant()
    def holds(self):
        self.segment.check()
        for key, mapping in self.held.items():
            assert find_object(self.segment, ObjectKey(key)) == mapping.place
        for found in known(self.segment):
            assert found.validator in {f"v{size}" for size in self.sizes.values()}


@pytest.mark.parametrize("frames", [1, 2, 3, 64])
def test_is_as_a_dictionary_is(frames):
    machine = type(f"Directory{frames}", (Directory,), {"frames": frames})
    machine.TestCase.settings = settings(
        max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine.TestCase("runTest").runTest()
