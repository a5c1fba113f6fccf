"""Between pages and stores: what an object's store is known to be, how requests are made, and where their bytes go."""
