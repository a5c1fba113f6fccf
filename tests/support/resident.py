"""What of a segment is in memory, as the system counts it."""

import re
import sys

import pytest

KIB = 1024


def resident_bytes(segment):
    """Return the bytes of a segment's region that are in this process's memory: Pss of /proc/self/smaps."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc/self/smaps")
    first, end = segment.base_address, segment.base_address + segment.mapped_bytes
    total, is_inside = 0, False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if area:
                is_inside = first <= int(area[1], 16) and int(area[2], 16) <= end
            elif is_inside and line.startswith("Pss:"):
                total += int(line.split()[1]) * KIB
    return total
