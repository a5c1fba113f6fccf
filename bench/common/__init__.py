"""What the benchmarks share: a file of known bytes, offsets, stores with latency."""
