"""Adapters to other libraries, each optional: a module here imports its own library and no other."""
