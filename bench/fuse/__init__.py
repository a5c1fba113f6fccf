"""A mount beside one that passes everything through."""
