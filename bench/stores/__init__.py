"""How fast objects come in from stores, and go out to them."""
