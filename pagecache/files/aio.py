"""Reads for asyncio: a hit returns without a trip through the loop, a miss never blocks it."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from pagecache.files.prefetch import Prefetch
from pagecache.requests import workers
from pagecache.stores.abandoned import Call


async def in_worker(function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking call in a worker and await its result. Cancelling ends the request that the call waits for, where a
    store's requests can be ended; else the call is left to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    call = Call()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def task() -> None:
        result, error = None, None
        try:
            result = call.run(function, *args)
        except BaseException as failed:
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: there is nothing left to report to
            loop.call_soon_threadsafe(settle, result, error)

    workers.caller_pool.run(task)
    try:
        return await future
    except asyncio.CancelledError:
        call.abandon()
        raise


async def blocking(in_background: bool, loop: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Await a blocking call: in a worker, or here, if only the caller's thread may make it.

    in_background: whether any thread may. loop: what the call may wait for: in this one's thread it is never made.
    Context: a call that is made here holds up the loop.
    """
    if in_background or asyncio.get_running_loop() is loop:
        return await in_worker(function, *args)
    return function(*args)


async def read(inode: Any, function: Callable[..., Any], *args: Any) -> Any:
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
