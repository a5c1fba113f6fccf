"""What the eviction policies miss on access traces, beside reference simulators: `make eviction` (docs/eviction.md)."""
