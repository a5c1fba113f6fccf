"""What many small objects cost: opening, reading and closing one, whole values of Zarr, a million of them."""
