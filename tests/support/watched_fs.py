"""A synchronous file system that notes who calls it, and whether two threads are ever inside one instance."""

import contextlib
import threading

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

PATIENCE_S = 0.004  # how long a call stays inside for another one to come


class WatchedFile(AbstractBufferedFile):
    """A file of it."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)


class WatchedFileSystem(AbstractFileSystem):
    """The objects of `objects`, which all instances share, and nothing else.

    threads: what has called an instance. most_inside: the most calls at once. fails: what the next call raises.
    """

    protocol = "watched"
    objects: dict = {}
    instances: list = []

    def __init__(self, number=0, **options):
        super().__init__(number=number, **options)
        self.threads = set()
        self.nr_inside = self.most_inside = self.nr_calls = 0
        self.fails = None
        self._changed = threading.Condition()
        self.instances.append(self)

    @contextlib.contextmanager
    def inside(self):
        """A call."""
        with self._changed:
            self.threads.add(threading.current_thread())
            self.nr_calls += 1
            self.nr_inside += 1
            self.most_inside = max(self.most_inside, self.nr_inside)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.nr_inside > 1, PATIENCE_S)
        try:
            if self.fails is not None:
                error, self.fails = self.fails, None
                raise error
            yield
        finally:
            with self._changed:
                self.nr_inside -= 1

    def info(self, path, **options):
        path = self._strip_protocol(path)
        with self.inside():
            if path not in self.objects:
                raise FileNotFoundError(path)
            data = self.objects[path]
            return {"name": path, "size": len(data), "type": "file", "etag": f"{len(data)}-{hash(data)}"}

    def ls(self, path, detail=True, **options):
        with self.inside():
            names = list(self.objects)
        return [self.info(name) for name in names] if detail else names

    def cat_file(self, path, start=None, end=None, **options):
        with self.inside():
            if self._strip_protocol(path) not in self.objects:
                raise FileNotFoundError(path)
            return self.objects[self._strip_protocol(path)][start:end]

    def pipe_file(self, path, value, **options):
        with self.inside():
            self.objects[self._strip_protocol(path)] = bytes(value)

    def _open(self, path, mode="rb", **options):
        return WatchedFile(self, path, mode, **options)


WATCHED = f"{WatchedFileSystem.__module__}.{WatchedFileSystem.__qualname__}"


@contextlib.contextmanager
def watched(objects):
    """The class, registered as the protocol "watched", with these objects; it is forgotten at the end."""
    fsspec.register_implementation("watched", WatchedFileSystem, clobber=True)
    WatchedFileSystem.objects = dict(objects)
    WatchedFileSystem.instances.clear()
    WatchedFileSystem.clear_instance_cache()
    try:
        yield WatchedFileSystem
    finally:
        WatchedFileSystem.objects = {}
        WatchedFileSystem.instances.clear()
        WatchedFileSystem.clear_instance_cache()
