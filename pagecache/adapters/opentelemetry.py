"""OpenTelemetry: `instrument(cache)`, and a meter observes the numbers of a cache as `pagecache.hits` and so on.

Numbers are read when the meter's reader collects; reads and writes pay nothing for it.
"""

# mypy: disable-error-code=import-not-found

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pagecache._core import Mutex
from pagecache.adapters.metrics import METRICS, Caches, Metric, WatchedCaches
from pagecache.extras import needs

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

PREFIX = "pagecache."


_instrumented: "weakref.WeakKeyDictionary[Any, tuple[WatchedCaches, list[Any]]]" = weakref.WeakKeyDictionary()  # by meter
_global_meters: "list[Meter]" = []  # one at most
_lock = Mutex()


def instrument(caches: Caches = None, meter: "Meter | None" = None) -> list[Any]:
    """Let a meter observe caches, beside those that it observes already: one observable instrument for each number.

    caches: a cache, several by name (the attribute `cache`), or None for the process's default cache. meter: None: of the
    global meter provider. Returns the instruments, which a meter has no way to take back.
    Raises ValueError for a name that is another cache's.
    Context: observed from any thread; caches are not kept alive, and closed ones are passed over.
    """
    with _lock.held():
        meter = _global_meter() if meter is None else meter
        if meter not in _instrumented:
            watched = WatchedCaches(caches)
            _instrumented[meter] = watched, [_instrument_of(meter, metric, watched) for metric in METRICS]
        watched, instruments = _instrumented[meter]
        watched.add(caches)
        return list(instruments)


def _global_meter() -> "Meter":
    """Return the global provider's meter, always the same: as long as there is no provider, each is another one."""
    if not _global_meters:
        with needs("metrics", __name__):
            from opentelemetry.metrics import get_meter

        import pagecache

        _global_meters.append(get_meter("pagecache", pagecache.__version__))
    return _global_meters[0]


def _instrument_of(meter: "Meter", metric: Metric, watched: WatchedCaches) -> Any:
    make = meter.create_observable_counter if metric.is_counter else meter.create_observable_up_down_counter
    return make(PREFIX + metric.name, callbacks=[_observer(metric, watched)], unit=metric.unit, description=metric.text)


def _observer(metric: Metric, watched: WatchedCaches) -> Callable[[Any], Iterable[Any]]:
    with needs("metrics", __name__):
        from opentelemetry.metrics import Observation

    return lambda _: [Observation(metric.read(stats), {"cache": name}) for name, stats in watched.stats()]
