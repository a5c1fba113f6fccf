"""What calls do on a mount is what they do on the file system below: tables of cases, as root and as a user."""

import errno
import shutil
import tempfile
from pathlib import Path

import pytest
from support import fuse_tables
from support.fuse_mount import FEW_KINDS, KINDS, STRESS, Mount, needs_fuse
from support.fuse_users import as_user, needs_root

pytestmark = [needs_root, needs_fuse()]
PART = 1 if STRESS else 16  # every so many cases is run


@pytest.fixture(scope="module", params=FEW_KINDS)
def places(request):
    """A mount by root for all users, its source, and a directory beside that."""
    base = Path(tempfile.mkdtemp(prefix="pagecache-source-"))
    base.chmod(0o755)
    (base / "source").mkdir()
    (base / "beside").mkdir()
    with Mount(base / "source", "--allow-other", *KINDS[request.param]) as mount:
        mount.path.parent.chmod(0o755)
        yield mount.path, base / "source", base / "beside"
    shutil.rmtree(base)


@pytest.mark.parametrize("who", ["root", "nobody"])
@pytest.mark.parametrize("table", fuse_tables.TABLES, ids=lambda table: table.__name__)
def test_as_below(places, rng, table, who):
    mounted, source, beside = places
    cases = list(table())
    offset = rng.randrange(PART)
    cases = cases[offset::PART]
    name = f"{table.__name__}-{who}"
    somebody = {"root": lambda act: act(), "nobody": lambda act: as_user(act, groups=[fuse_tables.GROUP], umask=0o027)}[who]
    found = {}
    for place in (mounted, beside):
        (place / name).mkdir()
        (place / name).chmod(0o755)
        found[place] = fuse_tables.run(str(place / name), cases, somebody)
    wrong = []
    for number, (title, _, _) in enumerate(cases):
        ours, theirs = found[mounted][number], found[beside][number]
        if ours != theirs:
            wrong.append(f"{title}: {shown(ours)} instead of {shown(theirs)}")
    assert not wrong, f"{len(wrong)} of {len(cases)} cases:\n" + "\n".join(wrong[:40])
    for number, (title, _, _) in enumerate(cases):
        at_source = fuse_tables.seen(f"{source}/{name}/{number}")
        assert fuse_tables.seen(f"{mounted}/{name}/{number}") == at_source, title


def shown(outcome):
    """Return an outcome as a message shows it."""
    number, files = outcome
    return f"{errno.errorcode.get(number, number)} {files}"


def test_cases_are_many_and_tell_apart(tmp_path):
    """A table that has nothing to compare would pass."""
    total = 0
    for table in fuse_tables.TABLES:
        cases = list(table())[::20]
        total += len(list(table()))
        base = tmp_path / table.__name__
        base.mkdir()
        tmp_path.chmod(0o755)
        outcomes = fuse_tables.run(str(base), cases, lambda act: act())
        assert len({repr(outcome) for outcome in outcomes}) > len(cases) // 4, table
        shutil.rmtree(base)
    assert total > 2000
