"""Files and trees of a mount, exercised at random, have every byte and name that they must have, in the source as well."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.fuse_mount import FEW_KINDS, KINDS, MAPS_DIRECT_FILES, PATIENCE_S, STRESS, mounted, needs_fuse

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fsx
from mount_fsx import MountExerciser
from mount_tree import seen_tree

pytestmark = [pytest.mark.stress, needs_fuse()]
__all__ = ["mounted"]
NR_FILE_OPERATIONS = 200_000 if STRESS else 1500
NR_TREE_OPERATIONS = 2000 if STRESS else 150
NR_PROCESSES = 4
SECONDS = 1500 if STRESS else PATIENCE_S
TREE = Path(__file__).resolve().parent / "mount_tree.py"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["64KiB", "4MiB"])
def test_one_file(mounted, tmp_path, seed, kind, size):
    """With and without shared maps; a cache that holds a quarter of the file, and one that holds it all."""
    maps = kind == "kernel_cache" or MAPS_DIRECT_FILES
    with mounted(*KINDS[kind], "--size", size) as mount:
        exerciser = MountExerciser(mount.path, mounted.source, seed, maps=maps, log_path=tmp_path / "log")
        exerciser.run(NR_FILE_OPERATIONS // (2 if STRESS else 1))
        exerciser.close()
        assert len(exerciser.log) >= NR_FILE_OPERATIONS // 2
    exerciser.compare_source("in the source after unmounting")
    assert sorted(os.listdir(mounted.source)) == sorted(exerciser.names)


def test_a_stale_byte_is_found(mounted, tmp_path, seed, capsys):
    """The exerciser itself: a byte that others have changed in the source is named, with the operation that it replaces."""
    with mounted() as mount:
        exerciser = MountExerciser(mount.path, mounted.source, seed, maps=False, log_path=tmp_path / "log")
        exerciser.replay([("write", 0, 8192), ("write", 4096, 100), ("fsync", 0, 0)])
        with open(mounted.source / exerciser.names[0], "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), exerciser.pattern.bytes(1, 4096, 100), 4096)
        with pytest.raises(fsx.MismatchError, match=r"byte at 4096 .* by operation 1; it should be .* by operation 2"):
            exerciser.replay([("fsync", 0, 0)])
        exerciser.close_files()
    assert "operation 4 failed" in capsys.readouterr().out


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_trees_of_several_processes(mounted, rng, kind):
    """Each in a directory of its own, beside one where they get into each other's way."""
    with mounted(*KINDS[kind], "--size", "2MiB") as mount:
        (mount.path / "shared").mkdir()
        seeds = [rng.randrange(1 << 32) for _ in range(NR_PROCESSES)]
        workers = []
        for number, seed in enumerate(seeds):
            (mount.path / str(number)).mkdir()
            words = [mount.path / str(number), mount.path / "shared", seed, NR_TREE_OPERATIONS]
            command = [sys.executable, "-P", str(TREE), *map(str, words)]
            workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        answers = [worker.communicate(timeout=SECONDS) for worker in workers]
        for seed, worker, (_, complaint) in zip(seeds, workers, answers, strict=True):
            assert worker.returncode == 0, f"seed {seed}: {complaint.decode()[-3000:]}"
        models = [pickle.loads(output) for output, _ in answers]
        for number, model in enumerate(models):
            compare(mount.path / str(number), model)
        shared = seen_tree(mount.path / "shared", {})
    for number, model in enumerate(models):
        compare(mounted.source / str(number), model)
    assert seen_tree(mounted.source / "shared", {}) == shared
    assert sorted(os.listdir(mounted.source)) == [*map(str, range(NR_PROCESSES)), "shared"]


def test_the_model_is_that_of_a_file_system(tmp_path, seed):
    """Beside the mount: what fails there is no fault of the model's."""
    for name in ("own", "shared"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-P", str(TREE), str(tmp_path / "own"), str(tmp_path / "shared"), str(seed), "300"]
    model = pickle.loads(subprocess.run(command, capture_output=True, check=True, timeout=SECONDS).stdout)
    compare(tmp_path / "own", model)
    assert len(model) > 10
    (tmp_path / "own/one-more").touch()
    with pytest.raises(AssertionError):
        compare(tmp_path / "own", model)


def compare(directory, model):
    """Compare a tree with its model, and name what differs."""
    found = seen_tree(directory, model)
    assert sorted(found) == sorted(model)
    wrong = [name for name in model if found[name] != model[name]]
    assert not wrong, {name: (shown(found[name]), shown(model[name])) for name in wrong[:10]}


def shown(entry):
    """Return an entry without its bytes."""
    return (*entry[:2], len(entry[2]), *entry[3:]) if isinstance(entry, tuple) and entry[0] == "file" else entry
