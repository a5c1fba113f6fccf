"""Dask workers as processes of the test's own, so that it can kill them and start others whenever it likes.

(The nannies of a LocalCluster do not always replace a worker that is killed while another one is being replaced.)
"""

import contextlib
import os
import subprocess
import sys
import time


class DaskWorkers:
    """Worker processes of one scheduler; a context manager.

    address: the scheduler's. Each has one thread and no nanny, and the path of this process.
    """

    def __init__(self, address, nr):
        self.address = address
        self.processes = {}
        for _ in range(nr):
            self.start()

    def start(self):
        """Start one more."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # tasks pickle by name
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dask", "worker", self.address, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self.processes[process.pid] = process

    def kill(self, pid):
        """Kill one at once (SIGKILL)."""
        process = self.processes.pop(pid)
        process.kill()
        process.wait()

    def wait_for(self, client, patience_s):
        """Wait until the scheduler knows all those that live, and no other one."""
        deadline = time.monotonic() + patience_s
        while len(client.scheduler_info(n_workers=-1)["workers"]) != len(self.processes):
            assert time.monotonic() < deadline, "the workers do not come"
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
                continue
            process.kill()
            process.wait()
            raise AssertionError(f"worker {process.pid} hung when it had to end")
