"""The engine's lookups in C beside other libraries' and a bare radix walk, in one interleaved run.

    PYTHONPATH=build/lib-release:bench python -P -m anchors --write    # docs/anchors.md

Each anchor is a C or C++ file here, compiled by `build` when the library it needs is installed.
"""
