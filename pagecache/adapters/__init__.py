"""Adapters to other libraries, each optional: a module here imports its own library when it is used, and no other."""
