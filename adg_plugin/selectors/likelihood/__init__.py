"""Selectors that rank rows by how likely a model finds their answers."""
