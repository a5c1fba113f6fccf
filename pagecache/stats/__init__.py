"""What the caches of a process count, hold and do, and how others ask."""

from pagecache.stats.numbers import FileStats, Stats
from pagecache.stats.server import serve_stats

__all__ = ["FileStats", "Stats", "serve_stats"]
