"""The engine's lookups in C beside other libraries' and a bare radix walk, in one interleaved run.

    python -m bench anchors --write    # docs/anchors.md

Each anchor is a C or C++ file here, compiled by `build` when the library it needs is installed.
"""
