"""Threads that Python's `threading` did not start, as those of native code; tests tell them what to do, step by step."""

import _thread
import queue

from support import PATIENCE_S


class NativeThread:
    """A thread that calls what it is given, one after the other. A context manager."""

    def __init__(self):
        self._calls = queue.SimpleQueue()
        self._results = queue.SimpleQueue()
        _thread.start_new_thread(self._run, ())

    def _run(self):
        while (call := self._calls.get()) is not None:
            try:
                self._results.put((call(), None))
            except BaseException as error:
                self._results.put((None, error))

    def begin(self, function, *arguments):
        """Let the thread call a function, and go on."""
        self._calls.put(lambda: function(*arguments))

    def result(self):
        """Return what the call that began first returned, or raise what it raised."""
        result, error = self._results.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return result

    def __call__(self, function, *arguments):
        """Call a function in the thread and wait for its result."""
        self.begin(function, *arguments)
        return self.result()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._calls.put(None)


class PythonThread(NativeThread):
    """The same, of a thread that `threading` has started."""

    def __init__(self):
        import threading

        self._calls = queue.SimpleQueue()
        self._results = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()
