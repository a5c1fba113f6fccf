"""Values that are not what they should be: each is a miss, and is replaced."""

import pytest
from support import PAGE, PATIENCE_S, pages_of
from support.second_level_support import EXTENT, Origin, corrupted, dial_plainly, filled, read_all, values_of

from pagecache.adapters.valkey.extents import HEADER_BYTES, VERSION, ObjectVersion, checksum

pytest_plugins = ["support.second_level_fixtures"]
DATA = pages_of(40 * PAGE + 123)
NR_EXTENTS = -(-len(DATA) // EXTENT)
DAMAGES = ["flipped", "flipped header", "truncated", "too long", "of another version", "of another extent",
           "of another object", "empty", "of another length", "huge"]  # fmt: skip


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_value_that_is_not_right_is_a_miss_and_is_replaced(self, server, level, damage, rng):
        origin = Origin(DATA)
        store = filled(level, origin)
        before = values_of(server, store)
        assert len(before) == NR_EXTENTS
        victim = 1
        with dial_plainly(server) as put:
            put(*corrupted(store, before, victim, damage, rng))
        origin.requests.clear()
        assert read_all(store) == DATA
        assert origin.requests == [(victim * EXTENT, EXTENT)]
        assert store.source_counts()["second_level_mismatches"] == 1
        assert level.flush(PATIENCE_S)
        assert values_of(server, store) == before
        assert level.stats()["suspected"] == []

    def test_every_bit_counts(self, rng):
        version = ObjectVersion("key", "1", 3 * PAGE, PAGE, "p")
        data = rng.randbytes(PAGE)
        value = bytearray(b"".join(version.encode(1, data)))
        assert len(value) == HEADER_BYTES + PAGE
        assert version.decode(1, memoryview(value)) == data
        for at in [*range(8 * HEADER_BYTES), *(rng.randrange(8 * len(value)) for _ in range(500))]:
            value[at // 8] ^= 1 << at % 8
            assert version.decode(1, memoryview(value)) is None, f"bit {at}"
            value[at // 8] ^= 1 << at % 8

    def test_versions_and_objects_have_names_of_their_own(self):
        settings = [("key", "1", 100, PAGE), ("key", "2", 100, PAGE), ("key1", "", 100, PAGE), ("ke", "y1", 100, PAGE),
                    ("key", "1", 101, PAGE), ("key", "1", 100, 2 * PAGE)]  # fmt: skip
        versions = [ObjectVersion(*each, "prefix") for each in settings]
        assert len({version.name(0) for version in versions}) == len(settings)
        assert len({version.header(0)[24:] for version in versions}) == len(settings)
        assert all(b"key" not in version.header(0) + version.name(0) for version in versions), "keys are not sent"

    def test_the_format_stays(self):
        """What older programs have put there is read, or the number of the format changes."""
        version = ObjectVersion("key", "validator", 10, PAGE, "p")
        assert VERSION == 1
        assert version.name(0) == b"p:3389607ff4cfb810892f11137dbbac66:0"
        assert version.header(0)[:24].hex() == "5063587401004800" + "0a000000" + "00100000" + "0000000000000000"
        assert checksum(b"0123456789") == checksum(bytearray(b"0123456789")) == checksum(memoryview(b"0123456789"))
