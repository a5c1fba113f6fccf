"""The lock-free protocols, explored exhaustively: GenMC under the C11 memory model, spin for sleeping and waking.

Each model names the functions that it mirrors and the bugs that can be planted in it (-DBUG_...): it must be free of
errors, and every planted bug must be found. The checkers are not part of the repository: genmc is looked for on PATH and
in PAGECACHE_GENMC, spin on PATH.
"""

import os
import re
import shutil
import subprocess

import pytest
from support import ROOT

MODELS = ROOT / "docs" / "models"
C_MODELS = sorted(MODELS.glob("*.c"))
SPIN_MODELS = sorted(MODELS.glob("*.pml"))
VARIANTS = {"optimistic_read": ["-DNEW_PAGE=OTHER_PAGE"]}  # flags beside which a model must hold too
GENMC = os.environ.get("PAGECACHE_GENMC") or shutil.which("genmc")
TIMEOUT_S = 110
MIRRORED = r"\b(?:folio|filemap|mapping|rwsem|spin|dirty|errseq|stamp|own|read)_[a-z_]+"

needs_genmc = pytest.mark.skipif(GENMC is None, reason="needs genmc (on PATH, or named by PAGECACHE_GENMC)")
needs_spin = pytest.mark.skipif(not (shutil.which("spin") and shutil.which("cc")), reason="needs spin and a C compiler")


def head(model):
    """Return the comment at the top of a model."""
    return model.read_text().split("*/")[0]


def bugs(model):
    """Return the bugs that can be planted in a model."""
    return re.findall(r"BUG_[A-Z_]+", head(model).split("BUGS:")[1])


def planted(models):
    """Return a test parameter for each bug of each model."""
    return [pytest.param(model, bug, id=f"{model.stem}-{bug}") for model in models for bug in bugs(model)]


def by_name(model):
    """Name a model in the name of a test."""
    return model.stem


def genmc(model, *flags):
    """Explore a model; returns the exit status and what was printed."""
    command = [GENMC, "--disable-estimation", "--disable-ipr", "--", f"-I{ROOT / 'pagecache'}", *flags, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, done.stdout + done.stderr


def spin(model, directory, *flags):
    """Explore a model; returns whether it is free of errors, and what was printed."""
    subprocess.run(["spin", *flags, "-a", str(model)], cwd=directory, check=True, capture_output=True, timeout=TIMEOUT_S)
    subprocess.run(["cc", "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c"], cwd=directory, check=True, timeout=TIMEOUT_S)
    done = subprocess.run(
        ["./pan", "-m1000000"], cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert "max search depth too small" not in done.stdout
    return "errors: 0" in done.stdout, done.stdout


@pytest.mark.parametrize("model", C_MODELS + SPIN_MODELS, ids=by_name)
def test_what_a_model_mirrors_is_there(model):
    text = model.read_text()
    groups = re.findall(r"mirrors ([a-z_]+\.pxd: [^./]*(?:\.pxd: [^./]*)*)", text)
    assert groups, "the model does not say what it mirrors"
    for group in groups:
        for name, functions in re.findall(r"([a-z_]+\.pxd): ([^;.]+)", group):
            engine = (ROOT / "pagecache" / "core" / name).read_text()
            for function in re.findall(MIRRORED, functions):
                assert re.search(rf"^cdef inline .*\b{function}\(", engine, re.MULTILINE), f"{name} has no {function}"
    for bug in bugs(model):
        assert text.count(bug) > 1, f"{bug} is named and not in the model"


@needs_genmc
@pytest.mark.parametrize("model", C_MODELS, ids=by_name)
def test_protocol_holds(model):
    for flags in [[], *([flag] for flag in VARIANTS.get(model.stem, []))]:
        status, output = genmc(model, *flags)
        assert status == 0 and "No errors were detected" in output, output


@needs_genmc
@pytest.mark.parametrize("model, bug", planted(C_MODELS))
def test_planted_bug_is_found(model, bug):
    status, output = genmc(model, f"-D{bug}")
    assert status != 0
    assert re.search("Error: (Safety violation|Non-atomic race)", output), output


@needs_spin
@pytest.mark.parametrize("model", SPIN_MODELS, ids=by_name)
def test_no_thread_sleeps_for_ever(model, tmp_path):
    good, output = spin(model, tmp_path)
    assert good, output


@needs_spin
@pytest.mark.parametrize("model, bug", planted(SPIN_MODELS))
def test_planted_sleeper_is_found(model, bug, tmp_path):
    good, output = spin(model, tmp_path, f"-D{bug}")
    assert not good and re.search(r"pan:\d: (invalid end state|assertion violated)", output), output
