"""Open files, and the objects that they are open on."""
