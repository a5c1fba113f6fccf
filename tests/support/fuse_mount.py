"""Mounts for tests: each is served by a process of its own, which a hang cannot outlive."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pagecache._core import Mutex

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
MOUNT_SECONDS_MAX = 1000 if STRESS else 100  # then the process is killed, and all users of the mount get ENOTCONN
PATIENCE_S = 60
ANSWERS = "PAGECACHE_MOUNT_ANSWERS"
KINDS = {  # what caches; what answers requests that need nothing but an open file: the engine, or Python
    "direct_io": ("--size", "4MiB"),
    "kernel_cache": ("--size", "4MiB", "--kernel-cache"),
    "by_python": ("--size", "4MiB", f"{ANSWERS}=python"),
}
FEW_KINDS = list(KINDS) if STRESS else ["direct_io"]  # for tests that take long
MAPS_DIRECT_FILES = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 6)  # shared, with direct_io
SERVE = Path(__file__).resolve().parent / "fuse_serve.py"
AS_USER = Path(__file__).resolve().parent / "fuse_as_user.py"
NOBODY = 65534
ENVIRONMENT = re.compile(r"[A-Z_]+=")


def needs_fuse():
    """Return the mark that skips tests where nothing can be mounted."""
    reason = None
    if not os.path.exists("/dev/fuse") or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        reason = "there is no /dev/fuse that this user can open"
    elif shutil.which("fusermount3") is None:
        reason = "fusermount3 is not installed"
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def needs_program(name):
    """Return the mark that skips tests without a program."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def end_with_parent():
    """Have the kernel end this process, by SIGTERM, when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Interposed:
    """A lock before which something else comes once, which takes the lock itself."""

    def __init__(self, before):
        self._before = before
        self._lock = Mutex()

    def held(self):
        before, self._before = self._before, None
        if before is not None:
            before()
        return self._lock.held()


def is_mounted(path):
    """Whether something is mounted on a path, whichever user may look into it."""
    with open("/proc/self/mountinfo") as file:
        return any(line.split()[4] == str(path) for line in file)


class Mount:
    """A source mounted while the block runs. words: of the command line, and NAME=VALUE for the environment. serve: run
    tests/fuse_serve.py with them. uid: of another user, who mounts."""

    def __init__(self, source, *words, serve=False, uid=None):
        self.source = source
        self._directory = Path(tempfile.mkdtemp(prefix="pagecache-mount-"))
        self.path = self._directory / "mnt"
        self.path.mkdir()
        if uid is not None:
            os.chown(self.path, uid, uid)
            self._directory.chmod(0o755)
        program = [str(SERVE)] if serve else ["-m", "pagecache", "mount"] if uid is None else [str(AS_USER), str(uid)]
        self._environment = dict(word.split("=", 1) for word in map(str, words) if ENVIRONMENT.match(word))
        words = [word for word in map(str, words) if not ENVIRONMENT.match(word)]
        self._command = [sys.executable, "-P", *program, str(source), str(self.path), *words]
        self.output = ""
        self.returncode = None

    def __enter__(self):
        self._log = open(self._directory / "log", "w+")
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=end_with_parent, env={**os.environ, **self._environment},
        )  # fmt: skip
        self._guard = threading.Timer(MOUNT_SECONDS_MAX, self.process.kill)
        self._guard.daemon = True
        self._guard.start()
        deadline = time.monotonic() + PATIENCE_S
        while not is_mounted(self.path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._give_up()
                raise AssertionError(f"not mounted: {self.output}")
            time.sleep(0.01)
        return self

    def unmount(self):
        """Unmount as a user does, and wait for the process. Returns its exit status."""
        subprocess.run(["fusermount3", "-u", str(self.path)], check=True, capture_output=True, timeout=PATIENCE_S)
        return self.wait()

    def interrupt(self, number=signal.SIGINT):
        """End the process by a signal, and wait for it. Returns its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        """Wait until the process has ended."""
        self.returncode = self.process.wait(PATIENCE_S)
        return self.returncode

    def kill(self):
        """End the process as no user would, and take what is left of the mount away."""
        self.process.kill()
        self.wait()
        self._detach()

    def _detach(self):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], capture_output=True, timeout=PATIENCE_S)

    def _give_up(self):
        self._guard.cancel()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE_S)
        self._detach()
        self._log.seek(0)
        self.output = self._log.read()
        self._log.close()
        if not is_mounted(self.path):
            shutil.rmtree(self._directory, ignore_errors=True)

    def __exit__(self, kind, *rest):
        try:
            if kind is None and self.process.poll() is None:
                assert self.unmount() == 0
        finally:
            self._give_up()
        if kind is None:
            assert "Traceback" not in self.output, self.output


@pytest.fixture
def mounted(tmp_path):
    """A factory of mounts: `with mounted(*words) as mount`; the source is tmp_path / "source", unless given."""
    default = tmp_path / "source"
    default.mkdir()

    def make(*words, source=default, **options):
        return Mount(source, *words, **options)

    make.source = default
    return make
