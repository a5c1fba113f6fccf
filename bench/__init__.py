"""The benchmarks. `python -m bench` lists them; each says what it measures, and against what."""
