"""SQLite through the cache beside plain SQLite."""
