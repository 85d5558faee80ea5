"""Transforms: a decoded image in, pixels of the wanted size out."""
