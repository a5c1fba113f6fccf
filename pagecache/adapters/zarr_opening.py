"""Opening the wrapped store: once, by its first user, from whatever thread or event loop.

Zarr's stores open themselves when they are read first, but not when they are listed or asked for existence, and two threads
that do so at once collide ("store is already open").
"""

import asyncio
from concurrent.futures import Future

from pagecache._core import Mutex
from pagecache.adapters.zarr_source import StoreSource
from pagecache.adapters.zarr_steps import Step, Steps


class OpenCancelled(Exception):
    """The thread that was opening the store gave up: another one has to."""


class Opening:
    """Opens the store of a source when it is needed. Context: any thread, any event loop."""

    def __init__(self, source: StoreSource):
        self._source = source
        self._lock = Mutex()
        self._under_way: Future[None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the store is open."""
        return bool(self._source.store._is_open)

    def steps(self) -> Steps[None]:
        """Open the store, or wait for a thread that does. Raises what opening raises."""
        while not self.is_done:
            mine: Future[None] = Future()
            try:
                with self._lock.held():
                    if self._under_way is None or self._under_way.done():
                        self._under_way = mine
                    under_way = self._under_way
                if under_way is not mine:
                    yield Step(lambda future=under_way: _result_of(future), under_way.result)  # type: ignore[misc]
                    continue
                if not self.is_done:
                    yield Step(self._source.store._open, self._source.open_blocking)
                mine.set_result(None)
            except OpenCancelled:
                continue
            except ValueError as error:
                self._fail(mine, error)
                if not self.is_done:  # else the store was opened by others, past this
                    raise
            except BaseException as error:
                self._fail(mine, error)
                raise

    @staticmethod
    def _fail(mine: Future[None], error: BaseException) -> None:
        if not mine.done():
            mine.set_exception(error if isinstance(error, Exception) else OpenCancelled())


async def _result_of(future: Future[None]) -> None:
    await asyncio.shield(asyncio.wrap_future(future))
