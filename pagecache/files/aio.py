"""Reads for asyncio: a hit returns without a trip through the loop, a miss never blocks it."""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

from pagecache.files.prefetch import Prefetch
from pagecache.requests import workers
from pagecache.stores.abandoned import Call
from pagecache.stores.base import BackingStore, StoreHints

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class ReadInode(Protocol):
    """What reads for asyncio need to know of an object: an `Inode`."""

    hints: StoreHints

    @property
    def store(self) -> BackingStore | None:
        """What serves it, if it is open."""
        ...


async def in_worker(function: Callable[[*_Arguments], _Result], *args: *_Arguments) -> _Result:
    """Run a blocking call in a worker and await its result. Cancelling ends the request that the call waits for, where a
    store's requests can be ended; else the call is left to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()
    call = Call()

    def settle(end: Callable[[], None]) -> None:
        if not future.cancelled():
            end()

    def task() -> None:
        try:
            end = functools.partial(future.set_result, call.run(function, *args))
        except BaseException as failed:
            end = functools.partial(future.set_exception, failed)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: there is nothing left to report to
            loop.call_soon_threadsafe(settle, end)

    workers.caller_pool.run(task)
    try:
        return await future
    except asyncio.CancelledError:
        call.abandon()
        raise


async def blocking(
    in_background: bool, loop: object, function: Callable[[*_Arguments], _Result], *args: *_Arguments
) -> _Result:
    """Await a blocking call: in a worker, or here, if only the caller's thread may make it.

    in_background: whether any thread may. loop: what the call may wait for: in this one's thread it is never made.
    Context: a call that is made here holds up the loop.
    """
    if in_background or asyncio.get_running_loop() is loop:
        return await in_worker(function, *args)
    return function(*args)


async def read(inode: ReadInode, function: Callable[[*_Arguments], _Result], *args: *_Arguments) -> _Result:
    """Await a read of an object that misses: in a worker, or here, where only the reader's thread may enter its store.

    A store that waits for an event loop names it as its `loop`. Context: as `blocking`.
    """
    return await blocking(inode.hints.background_reads, getattr(inode.store, "loop", None), function, *args)


async def finished(prefetch: Prefetch) -> None:
    """Await the end of a prefetch without a thread that waits. Raises the OSError that a part of it met."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not future.cancelled():
            future.set_result(None)

    def tell(_: Prefetch) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle)

    prefetch.add_done_callback(tell)
    try:
        await future
    except asyncio.CancelledError:
        prefetch.cancel()
        raise
    prefetch.wait()
