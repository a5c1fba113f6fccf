"""The exerciser runs clean for a while; and it finds, explains and replays a fault when there is one."""

import os
import sys
from pathlib import Path

import pytest

import pagecache

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fsx

NR_OPERATIONS = 1_000_000 if os.environ.get("PAGECACHE_STRESS") == "1" else 1500


@pytest.mark.stress
@pytest.mark.parametrize("store", ["memory", "file", "direct"])
def test_runs_clean(frames, store, seed, tmp_path):
    if store == "direct":
        try:
            (tmp_path / "probe").touch()
            pagecache.FileStore(tmp_path / "probe", "r+b", direct=True).close()
        except OSError as error:
            pytest.skip(f"no direct access here: {error}")
    exerciser = fsx.Exerciser(frames, store, seed, directory=tmp_path, log_path=tmp_path / "log")
    exerciser.run(NR_OPERATIONS)
    exerciser.close()
    assert len(exerciser.log) == NR_OPERATIONS


def test_stale_byte_names_its_operation_and_the_log_replays(tmp_path, seed, capsys, monkeypatch):
    exerciser = fsx.Exerciser(64, "memory", seed, log_path=tmp_path / "log")
    exerciser.replay([("write", 0, 8192), ("write", 4096, 100), ("fsync", 0, 0)])
    with pytest.raises(fsx.MismatchError, match=r"byte at 4096 .* by operation 1; it should be .* by operation 2"):
        monkeypatch.setattr(exerciser.source, "writev", lambda offset, buffers: sum(map(len, buffers)))
        stale = exerciser.pattern.bytes(1, 4096, 100)
        exerciser.source._data[4096:4196] = stale
        exerciser.replay([("drop_caches", 0, 0), ("read", 4000, 300)])
    assert "replay with" in capsys.readouterr().out
    description, operations = fsx.read_log(tmp_path / "log")
    assert (description["store"], description["frames"]) == ("memory", "64")
    assert [name for name, _, _ in operations] == ["write", "write", "fsync", "drop_caches", "read"]
    exerciser.cache.close()
    again = fsx.Exerciser(64, "memory", seed, log_path=tmp_path / "log2")
    again.replay(operations)
    again.close()


def test_log_is_made_by_its_seed_alone(tmp_path, seed):
    logs = []
    for frames in (64, 512):
        exerciser = fsx.Exerciser(frames, "memory", seed, log_path=tmp_path / "log")
        exerciser.run(300)
        exerciser.close()
        logs.append(exerciser.log)
    assert logs[0] == logs[1]
