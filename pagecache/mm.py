"""Address spaces of a process: memory areas, faults, the mmap object."""
