"""One text for what is waited for with and without an event loop: a generator yields `Step`s, and is driven in either way.

The generator says what is asked and what follows from the answer; `awaited` carries its steps out as coroutines,
`blocked` as calls that block. What a step raises is raised in the generator, cancellation and signals as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pagecache.stores import attempts as tries
from pagecache.stores.attempts import NO_ATTEMPTS, Attempts, limited, time_limit_error

_Result = TypeVar("_Result")


class Step(NamedTuple):
    """Something to be waited for: what begins a coroutine, and what does the same and blocks."""

    coroutine: Callable[[], Awaitable[Any]]
    blocking: Callable[[], Any]


Steps = Generator[Step, Any, _Result]


async def awaited(steps: Steps[_Result]) -> _Result:
    """Return what a generator returns, whose steps are awaited."""
    try:
        step = next(steps)
        while True:
            try:
                result = await step.coroutine()
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as ended:
        returned: _Result = ended.value
        return returned
    finally:
        steps.close()


def blocked(steps: Steps[_Result]) -> _Result:
    """Return what a generator returns, whose steps block."""
    try:
        step = next(steps)
        while True:
            try:
                result = step.blocking()
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as ended:
        returned: _Result = ended.value
        return returned
    finally:
        steps.close()


def only(step: Step) -> Steps[Any]:
    """Return the result of a single step."""
    return (yield step)


def attempted(
    attempts: Attempts,
    name: str,
    begin: Callable[[], Steps[_Result]],
    in_time: Callable[[Callable[[], Any]], Any],
) -> Steps[_Result]:
    """Return what the steps of a request return, which are begun anew after an error that can pass, as often as they may
    be; as `Attempts.run`.

    name: of what is asked for. begin: makes the steps of a try. in_time: makes a call that blocks, within a time limit.
    """
    if attempts == NO_ATTEMPTS:
        return (yield from begin())
    number = 0
    while True:
        try:
            return (yield from _limited_steps(attempts.timeout_s, begin(), in_time))
        except Exception as error:
            pause_s = attempts.pause_s(name, error, number)
            if pause_s is None:
                raise
        yield Step(partial(asyncio.sleep, pause_s), partial(tries.pause, pause_s))
        number += 1


def _limited_steps(
    timeout_s: float | None, steps: Steps[_Result], in_time: Callable[[Callable[[], Any]], Any]
) -> Steps[_Result]:
    """Return what steps return, which all together take so many seconds at most. Raises TimeLimitError."""
    ends = float("inf") if timeout_s is None else time.monotonic() + timeout_s

    async def in_loop(step: Step) -> Any:
        try:
            async with asyncio.timeout(None if timeout_s is None else ends - time.monotonic()) as limit:
                return await step.coroutine()
        except TimeoutError:
            if limit.expired():
                raise time_limit_error(timeout_s) from None
            raise

    def block(step: Step) -> Any:
        with limited(timeout_s, ends):
            return in_time(step.blocking)

    try:
        step = next(steps)
        while True:
            try:
                result = yield Step(partial(in_loop, step), partial(block, step))
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as ended:
        returned: _Result = ended.value
        return returned
    finally:
        steps.close()
