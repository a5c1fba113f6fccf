"""Libraries that read through the cache beside the same libraries alone."""
