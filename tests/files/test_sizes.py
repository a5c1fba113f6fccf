"""Sizes as people write them, and the memory that a share of it is a share of."""

import os

import numpy
import pytest

from pagecache import units

MIB = 1024 * 1024


class TestSizes:
    @pytest.mark.parametrize(
        "text, nbytes",
        [
            ("4096", 4096), ("4096B", 4096), ("64KiB", 64 * 1024), ("64K", 64 * 1024), ("64 kb", 64_000),
            ("512MiB", 512 * MIB), ("1.5 MiB", 3 * MIB // 2), ("1GiB", 1024 * MIB), ("2G", 2048 * MIB), ("1GB", 10**9),
            (" 1 TiB ", MIB * MIB), ("1tb", 10**12),
        ],
    )  # fmt: skip
    def test_text_is_read_with_its_unit(self, text, nbytes):
        assert units.parse_size(text) == nbytes

    @pytest.mark.parametrize("number", [8192, numpy.int64(8192), numpy.uint16(8192)])
    def test_number_is_bytes(self, number):
        assert units.parse_size(number) == 8192
        assert type(units.parse_size(number)) is int

    @pytest.mark.parametrize("text", ["", "MiB", "-1", "-5MiB", "1e6", "12 parsecs", "1 2", "nan", "0x10", "5%%", "1,5MiB"])
    def test_text_that_is_no_size_is_named(self, text):
        with pytest.raises(ValueError) as caught:
            units.parse_size(text)
        assert repr(text) in str(caught.value) or repr(text.split()[-1]) in str(caught.value)

    @pytest.mark.parametrize("value", [None, 1.5, True, b"1MiB", [4096], numpy.float64(4096)])
    def test_other_types_are_refused(self, value):
        with pytest.raises(TypeError, match="size must be"):
            units.parse_size(value)

    def test_more_than_all_memory_is_refused(self):
        with pytest.raises(ValueError, match="more than all memory"):
            units.parse_size("101%")

    def test_format_and_parse_agree(self):
        for nbytes in (1, 4096, 3 * MIB // 2, 5 * 1024 * MIB):
            assert units.parse_size(units.format_size(nbytes)) == nbytes


class TestMemoryLimit:
    """A share of memory is one of what this process may use: of the machine, or of a control group, whichever is less."""

    @pytest.fixture
    def limit_with(self, monkeypatch, tmp_path):
        def limit_with(files):
            for name, text in files.items():
                path = tmp_path / name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            monkeypatch.setattr(units, "Path", lambda path: tmp_path / str(path).lstrip("/"))
            return units.memory_limit()

        return limit_with

    @pytest.fixture
    def machine(self):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def test_without_groups_is_the_machine(self, limit_with, machine):
        assert limit_with({}) == machine

    def test_unlimited_groups_are_the_machine(self, limit_with, machine):
        files = {"/proc/self/cgroup": "0::/job\n", "/sys/fs/cgroup/memory.max": "max\n"}
        assert limit_with({**files, "/sys/fs/cgroup/job/memory.max": "max\n"}) == machine

    @pytest.mark.parametrize("where", ["", "/outer", "/outer/inner"])
    def test_version_2_group_or_any_above_it(self, limit_with, where):
        files = {"/proc/self/cgroup": "0::/outer/inner\n", f"/sys/fs/cgroup{where}/memory.max": f"{100 * MIB}\n"}
        assert limit_with(files) == 100 * MIB

    def test_version_1_group(self, limit_with):
        files = {"/proc/self/cgroup": "5:cpu:/a\n4:memory:/a/b\n"}
        files["/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes"] = f"{200 * MIB}\n"
        assert limit_with({**files, "/sys/fs/cgroup/a/memory.max": "5\n"}) == 200 * MIB

    def test_least_of_several(self, limit_with):
        files = {f"/sys/fs/cgroup{at}/memory.max": str(n * MIB) for at, n in (("", 900), ("/a", 300), ("/a/b", 500))}
        assert limit_with({**files, "/proc/self/cgroup": "0::/a/b\n"}) == 300 * MIB

    def test_percentage_is_of_the_limit(self, limit_with):
        limit_with({"/sys/fs/cgroup/memory.max": str(400 * MIB)})
        assert units.parse_size("25%") == 100 * MIB
        assert units.parse_size("0.5%") == 2 * MIB
