"""Reads for asyncio: a hit returns without a trip through the loop, a miss never blocks it."""

import asyncio
from collections.abc import Callable
from typing import Any

from pagecache import workers


async def in_worker(function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking call in a worker and await its result. Cancelling leaves the call to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

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
            result = function(*args)
        except BaseException as failed:
            error = failed
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    workers.shared_pool.run(task)
    return await future
