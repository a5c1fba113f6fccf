"""The cache in the clothes of other libraries: one module each, which imports its library only when it is used."""
