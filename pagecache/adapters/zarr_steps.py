"""One text for what is waited for with and without an event loop: a generator yields `Step`s, and is driven in either way.

The generator says what is asked and what follows from the answer; `awaited` carries its steps out as coroutines,
`blocked` as calls that block. What a step raises is raised in the generator, cancellation and signals as well.
"""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, TypeVar

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
