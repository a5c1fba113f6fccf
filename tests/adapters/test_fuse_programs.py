"""Foreign programs on a mount: fio, tar, rsync, cp, editors, git, compilers, make, venv, and SQLite's own.

What they leave is compared with the source afterwards.
"""

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import ROOT
from support.fuse_mount import FEW_KINDS, KINDS, STRESS, mounted, needs_fuse, needs_program

pytestmark = needs_fuse()
SECONDS = 900 if STRESS else 90
__all__ = ["mounted"]


@pytest.fixture(params=FEW_KINDS)
def kind(request):
    """The words that choose what caches: this cache alone, or the kernel too."""
    return KINDS[request.param]


def run(*words, cwd=None, **options):
    """Run a program that has to succeed; returns what it printed."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=SECONDS, **options
    )
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@needs_program("fio")
class TestFio:
    def test_random_writes_of_mixed_sizes_by_several_jobs(self, mounted, kind, tmp_path):
        size = "64m" if STRESS else "2m"
        with mounted(*kind, "--size", "16MiB" if STRESS else "2MiB") as mount:
            output = run(
                "fio", "--name=job", f"--directory={mount.path}", "--verify=crc32c", "--verify_fatal=1", "--ioengine=psync",
                "--rw=randwrite", f"--size={size}", "--bsrange=512-128k", "--bs_unaligned=1", "--numjobs=4",
                f"--loops={3 if STRESS else 1}", "--do_verify=1", "--verify_state_save=0", "--group_reporting",
                "--fsync=97", cwd=tmp_path,
            )  # fmt: skip
            assert "err= 0" in output

    def test_reads_and_writes_of_one_file_by_threads(self, mounted, tmp_path):
        with mounted("--size", "2MiB") as mount:
            output = run(
                "fio", "--name=job", f"--filename={mount.path}/one", "--verify=crc32c", "--verify_fatal=1",
                "--ioengine=psync", "--rw=randrw", "--thread", "--numjobs=4", f"--size={'32m' if STRESS else '1m'}",
                f"--offset_increment={'32m' if STRESS else '1m'}", "--bs=4k", "--verify_backlog=32",
                "--verify_state_save=0", "--group_reporting", cwd=tmp_path,
            )  # fmt: skip
            assert "err= 0" in output


@needs_program("tar")
class TestTar:
    def test_thousands_of_files_in_and_out(self, mounted, kind, tmp_path, rng):
        original, copy = tmp_path / "original", tmp_path / "copy"
        copy.mkdir()
        nr_files = 10_000 if STRESS else 150
        make_tree(original, nr_files, rng)
        run("tar", "-cf", tmp_path / "in.tar", "-C", original, ".")
        with mounted(*kind, "--size", "16MiB") as mount:
            run("tar", "-xpf", tmp_path / "in.tar", "-C", mount.path)
            run("tar", "-cf", tmp_path / "out.tar", "-C", mount.path, ".")
            run("diff", "-r", "--no-dereference", original, mount.path)
            run("tar", "-df", tmp_path / "in.tar", "-C", mount.path)  # contents, times, modes, owners
        run("tar", "-xpf", tmp_path / "out.tar", "-C", copy)
        run("diff", "-r", "--no-dereference", original, copy)
        run("tar", "-df", tmp_path / "in.tar", "-C", mounted.source)
        assert sum(len(files) for _, _, files in os.walk(mounted.source)) == nr_files


class TestCopies:
    """Trees with everything that a file can have, in, out, and in again."""

    @pytest.fixture
    def original(self, tmp_path, rng):
        """Such a tree."""
        root = tmp_path / "original"
        make_tree(root, 2000 if STRESS else 100, rng)
        with open(root / "sparse", "wb") as file:
            os.truncate(file.fileno(), 3 << 20)
            os.pwrite(file.fileno(), b"x", 1 << 20)
        os.mkfifo(root / "fifo")
        (root / "odd \n name \udcff").write_bytes(b"odd")
        (root / "read-only").write_bytes(b"x")
        (root / "read-only").chmod(0o444)
        (root / "closed").mkdir()
        (root / "closed/file").write_bytes(b"x")
        (root / "closed").chmod(0o550)
        os.setxattr(root / "sparse", "user.kind", b"sparse")
        for number, path in enumerate(root.rglob("*")):
            os.utime(path, ns=(10**18 + number, 10**18 + 7 * number + 3), follow_symlinks=False)
        return root

    @pytest.mark.parametrize("command", [
        pytest.param(("cp", "-a", "{from}/.", "{to}"), id="cp"),
        pytest.param(("rsync", "-aHX", "--sparse", "{from}/", "{to}/"), id="rsync", marks=needs_program("rsync")),
        pytest.param(("sh", "-c", "tar -C '{from}' --xattrs -Scf - . | tar -C '{to}' --xattrs -xpf -"), id="tar"),
    ])  # fmt: skip
    def test_in_and_out(self, mounted, kind, tmp_path, original, command):
        with mounted(*kind, "--size", "16MiB") as mount:
            for place in (mount.path / "in", tmp_path / "out"):
                place.mkdir()
            run(*(word.format(**{"from": original, "to": mount.path / "in"}) for word in command))
            run(*(word.format(**{"from": mount.path / "in", "to": tmp_path / "out"}) for word in command))
            seen = described(mount.path / "in")
            if command[0] == "rsync":  # which finds nothing more to do
                again = run(*command[:1], "-n", "--itemize-changes", *command[1:2], f"{original}/", f"{mount.path}/in/")
                assert again == ""
        expected = described(original)
        for found in (seen, described(mounted.source / "in"), described(tmp_path / "out")):
            assert found == expected
        assert (mounted.source / "in/sparse").stat().st_blocks * 512 < 1 << 20

    def test_removed_again(self, mounted, kind, original):
        with mounted(*kind) as mount:
            run("cp", "-a", original, mount.path / "tree")
            run("rm", "-r", mount.path / "tree")
        assert os.listdir(mounted.source) == []


def described(root):
    """Return all of a tree that a faithful copy has."""
    found, numbers = {}, {}
    for path in sorted(root.rglob("*")):
        status = os.lstat(path)
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = (path.read_bytes(), {name: os.getxattr(path, name) for name in os.listxattr(path)})
        link = numbers.setdefault(status.st_ino, len(numbers)) if status.st_nlink > 1 and not path.is_dir() else None
        size = None if path.is_dir() else status.st_size
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, link, content
        )  # fmt: skip
    return found


class TestEditors:
    """How programs save: in place, or under another name, with the old one kept as a backup."""

    @needs_program("vim")
    @pytest.mark.parametrize("settings", [
        "backupcopy=no", "backupcopy=yes", "backupcopy=auto backup", "nobackup nowritebackup", "backupcopy=no undofile",
    ])  # fmt: skip
    def test_vim(self, mounted, kind, settings):
        with mounted(*kind) as mount:
            path = mount.path / "text"
            path.write_text("old\n" * 1000)
            path.chmod(0o640)
            os.link(path, mount.path / "other-name")
            for word in ("old", "new"):
                run("vim", "-es", "-u", "NONE", "-c", f"set {settings}", "-c", f"%s/{word}/{word}er/", "-c", "wq", path)
                assert path.read_text() == f"{word}er\n" * 1000
                path.write_text("new\n" * 1000)
        assert (mounted.source / "text").read_text() == "new\n" * 1000
        assert (mounted.source / "text").stat().st_mode & 0o777 == 0o640
        assert not [name for name in os.listdir(mounted.source) if name.endswith(".swp")]

    @needs_program("ed")
    def test_ed_and_sed(self, mounted, kind):
        with mounted(*kind) as mount:
            path = mount.path / "text"
            path.write_text("old\n" * 1000)
            run("ed", "-s", path, input="1,$s/old/newer/\nw\nq\n")
            run("sed", "-i.bak", "s/newer/newest/", path)
            assert path.read_text() == "newest\n" * 1000
        assert sorted(os.listdir(mounted.source)) == ["text", "text.bak"]
        assert (mounted.source / "text.bak").read_text() == "newer\n" * 1000


class TestPython:
    def test_a_virtual_environment(self, mounted, kind):
        """With pip, which unpacks thousands of files, if there is time."""
        with mounted(*kind, "--size", "64MiB") as mount:
            place = mount.path / "venv"
            run(sys.executable, "-m", "venv", *([] if STRESS else ["--without-pip"]), place)
            (place / "script.py").write_text("import sys, json; print(json.dumps([sys.prefix]))")
            assert run(place / "bin/python", place / "script.py").strip() == f'["{place}"]'
            if STRESS:
                assert "pip" in run(place / "bin/python", "-m", "pip", "--version")
                run(place / "bin/python", "-m", "compileall", "-q", place / "lib")
            seen = described(place)
        assert described(mounted.source / "venv") == seen

    @needs_program("git")
    @needs_program("gcc")
    @needs_program("make")
    @pytest.mark.skipif(not STRESS, reason="builds this project: only under PAGECACHE_STRESS=1")
    def test_this_project_is_cloned_built_and_tested(self, mounted, kind):
        environment = {**git_environment(), "PAGECACHE_STRESS": "0"}
        done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, env=environment, check=False)
        if done.returncode:
            pytest.skip("the project is not in a repository here")
        head = done.stdout.decode().strip()
        venv = Path(sys.prefix)
        kept = [word for name in (".made", ".build", ".test") for word in ("-o", str(venv / name))]
        with mounted(*kind, "--size", "256MiB") as mount:
            clone = mount.path / "clone"
            run("git", "clone", "-q", ROOT, clone, env=environment)
            run("git", "checkout", "-q", head, cwd=clone, env=environment)
            words = ["make", *kept, "test", f"VENV={venv}", "TESTS=tests/engine/test_segment.py"]
            assert " passed" in run(*words, cwd=clone, env=environment)
            assert run("git", "status", "--porcelain", "--untracked-files=no", cwd=clone, env=environment) == ""
            run("git", "fsck", "--full", "--strict", cwd=clone, env=environment)
            seen = described(clone)
        assert described(mounted.source / "clone") == seen
        run("git", "fsck", "--full", "--strict", cwd=mounted.source / "clone", env=environment)


@needs_program("gcc")
class TestCompiler:
    def test_programs_are_made_and_run(self, mounted, kind):
        with mounted(*kind) as mount:
            for number in range(20 if STRESS else 3):
                text = f'#include <stdio.h>\nint main(void) {{ printf("%d\\n", {number}); return 0; }}\n'
                (mount.path / f"{number}.c").write_text(text)
                run("gcc", "-g", "-c", f"{number}.c", "-o", f"{number}.o", cwd=mount.path)
                run("gcc", f"{number}.o", "-o", "program", cwd=mount.path)  # over the one that has just run
                assert run(mount.path / "program") == f"{number}\n"
            run("ar", "rcs", "library.a", *(f"{number}.o" for number in range(3)), cwd=mount.path)
            assert run("ar", "t", "library.a", cwd=mount.path).split() == ["0.o", "1.o", "2.o"]
        assert run(mounted.source / "program") == f"{number}\n"


def make_tree(root, nr_files, rng):
    """Make files of many sizes in directories, some of them links."""
    for number in range(nr_files):
        directory = root / f"d{number % 37}" / f"e{number % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"file-{number}"
        if number % 29 == 28:
            path.symlink_to(f"file-{number - 1}")
        elif number % 31 == 30:
            os.link(root / f"d{(number - 1) % 37}" / f"e{(number - 1) % 5}" / f"file-{number - 1}", path)
        else:
            path.write_bytes(rng.randbytes(rng.choice((0, 1, 100, 4095, 4096, 4097, 20_000))))
            path.chmod(rng.choice((0o600, 0o644, 0o755)))


@needs_program("git")
@needs_program("gcc")
class TestGitAndBuild:
    def test_a_clone_of_this_project_and_a_build(self, mounted, kind, tmp_path):
        origin = tmp_path / "origin"
        make_repository(origin)
        with mounted(*kind, "--size", "64MiB") as mount:
            clone = mount.path / "clone"
            run("git", "clone", "-q", origin, clone, env=git_environment())
            assert run("git", "status", "--porcelain", cwd=clone, env=git_environment()) == ""
            run("git", "fsck", "--full", "--strict", cwd=clone, env=git_environment())
            build(clone)
            assert run("git", "status", "--porcelain", "--untracked-files=no", cwd=clone, env=git_environment()) == ""
            if STRESS:
                run("git", "gc", "-q", cwd=clone, env=git_environment())
                run("git", "fsck", "--full", cwd=clone, env=git_environment())
        run("diff", "-r", "-x", ".git", "-x", "build", origin, mounted.source / "clone")
        run("git", "fsck", "--full", cwd=mounted.source / "clone", env=git_environment())


def git_environment():
    """Return an environment in which git asks nothing and minds no owner."""
    nothing = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_COUNT": "2"}
    settings = {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
                "GIT_CONFIG_KEY_1": "core.fsync", "GIT_CONFIG_VALUE_1": "all"}  # fmt: skip
    people = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
              for what, value in (("NAME", "A"), ("EMAIL", "a@example.org"))}  # fmt: skip
    return {**os.environ, **nothing, **settings, **people}


def make_repository(path):
    """Make a repository of the sources of this project as they are, with a few commits."""
    path.mkdir()
    names = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
    for name in names:
        shutil.copy2(ROOT / name, path)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.c", *(() if STRESS else ("parts", "adapters", "[m-z]*.py")))
    shutil.copytree(ROOT / "pagecache", path / "pagecache", ignore=ignored)
    shutil.copytree(ROOT / "tests/engine/engine_threads", path / "tests/engine/engine_threads", ignore=ignored)
    run("git", "init", "-q", path, env=git_environment())
    for add in ("pagecache/core", "pagecache", ".") if STRESS else (".",):
        run("git", "add", add, cwd=path, env=git_environment())
        run("git", "commit", "-qm", f"Adds {add}", cwd=path, env=git_environment())


def build(clone):
    """Build with Cython and gcc in the clone: the engine itself if there is time, else a module over a part of it."""
    if STRESS:
        environment = {**os.environ, "PAGECACHE_MODE": "check", "CFLAGS": "-O0"}
        run(sys.executable, "setup.py", "-q", "build_mode", cwd=clone, env=environment)
        library = clone / "build" / "lib-check"
    else:
        library = clone / "build"
        library.mkdir()
        (library / "small.pyx").write_text("def double(int number):\n    return number * 2\n")
        run(sys.executable, "-m", "cython", "-3", "small.pyx", cwd=library)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        include = sysconfig.get_paths()["include"]
        run("gcc", "-O0", "-g", "-shared", "-fPIC", f"-I{include}", "small.c", "-o", f"small{suffix}", cwd=library)
    script = "import small; print(small.double(4))"
    if STRESS:
        script = "import pagecache; print(pagecache.PageCache('1MiB').size)"
    environment = {**os.environ, "PYTHONPATH": str(library)}
    assert run(sys.executable, "-P", "-c", script, env=environment).strip() == ("1048576" if STRESS else "8")


@needs_program("sqlite3")
class TestSqlite:
    def test_the_command_line_on_a_mounted_file(self, mounted, kind, tmp_path, seed):
        nr_rows = 50_000 if STRESS else 500
        with mounted(*kind, "--size", "2MiB") as mount:
            database = mount.path / "bank.db"
            script = transfers(nr_rows, random.Random(seed))
            run("sqlite3", "-bail", database, input=script)
            assert run("sqlite3", database, "PRAGMA integrity_check; SELECT sum(money) FROM account").split() == [
                "ok", str(nr_rows * 100)]  # fmt: skip
            run("sqlite3", "-bail", database, input="VACUUM;" + script.partition("--more")[2])
            assert run("sqlite3", database, "PRAGMA integrity_check").split() == ["ok"]
        source = mounted.source / "bank.db"
        assert run("sqlite3", source, "PRAGMA integrity_check; SELECT sum(money) FROM account").split() == [
            "ok", str(nr_rows * 100)]  # fmt: skip
        assert os.listdir(mounted.source) == ["bank.db"]

    def test_write_ahead_log_with_shared_memory(self, mounted):
        with mounted(*KINDS["kernel_cache"]) as mount:
            database = mount.path / "wal.db"
            run("sqlite3", "-bail", database, input="PRAGMA journal_mode=WAL; CREATE TABLE t(a);")
            for number in range(5):
                run("sqlite3", "-bail", database, input=f"INSERT INTO t VALUES ({number});")
            assert run("sqlite3", database, "PRAGMA integrity_check; SELECT count(*) FROM t").split() == ["ok", "5"]


def transfers(nr_rows, rng):
    """Return SQL that makes accounts and moves money between them, in many transactions."""
    lines = ["PRAGMA synchronous=FULL;", "CREATE TABLE account(id INTEGER PRIMARY KEY, money INT, note TEXT);", "BEGIN;"]
    lines += [f"INSERT INTO account VALUES ({number}, 100, '{rng.random()}');" for number in range(nr_rows)]
    lines += ["COMMIT;", "CREATE INDEX by_note ON account(note);", "--more"]
    for _ in range(300 if STRESS else 15):
        one, other = rng.sample(range(nr_rows), 2)
        lines += ["BEGIN;", f"UPDATE account SET money=money-7, note='{rng.random()}' WHERE id={one};",
                  f"UPDATE account SET money=money+7 WHERE id={other};", rng.choice(("COMMIT;", "ROLLBACK;"))]  # fmt: skip
    return "\n".join(lines)
