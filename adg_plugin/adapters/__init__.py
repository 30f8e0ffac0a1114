"""Thin adapters to training frameworks, at the edge: nothing imports them but the command line."""
