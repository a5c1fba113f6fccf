"""OpenTelemetry: `instrument(cache)`, and a meter observes the numbers of a cache as `pagecache.hits` and so on.

Numbers are read when the meter's reader collects; reads and writes pay nothing for it.
"""

# mypy: disable-error-code=import-not-found

from collections.abc import Callable, Iterable
from typing import Any

from pagecache.adapters.metrics import METRICS, Caches, Metric, WatchedCaches

PREFIX = "pagecache."


def instrument(caches: Caches = None, meter: Any = None) -> list[Any]:
    """Make observable instruments of a meter, one for each number.

    caches: a cache, several by name (the attribute `cache`), or None for the process's default cache. meter: None: of the
    global meter provider. Returns the instruments. A meter has no way to take them back: call this once for each meter.
    Context: observed from any thread; caches are not kept alive, and closed ones are passed over.
    """
    if meter is None:
        from opentelemetry.metrics import get_meter

        import pagecache

        meter = get_meter("pagecache", pagecache.__version__)
    watched = WatchedCaches(caches)
    return [_instrument_of(meter, metric, watched) for metric in METRICS]


def _instrument_of(meter: Any, metric: Metric, watched: WatchedCaches) -> Any:
    make = meter.create_observable_counter if metric.is_counter else meter.create_observable_up_down_counter
    return make(PREFIX + metric.name, callbacks=[_observer(metric, watched)], unit=metric.unit, description=metric.text)


def _observer(metric: Metric, watched: WatchedCaches) -> Callable[[Any], Iterable[Any]]:
    from opentelemetry.metrics import Observation

    return lambda _: [Observation(metric.read(stats), {"cache": name}) for name, stats in watched.stats()]
