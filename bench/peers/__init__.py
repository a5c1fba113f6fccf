"""Reads that hit, through this library and through what people use instead of it, in one interleaved run.

    python -m bench peers --write    # docs/peers.md, docs/peers.svg, docs/peers.png

`peer` says what a peer is, `catalogue` lists them all; `timing` measures, `report` and `chart` show.
"""
