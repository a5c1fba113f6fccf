"""Many processes that read the same objects: peers, a second level, and what a large cluster would do."""
