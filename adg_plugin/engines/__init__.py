"""Engines: what draws answers and turns them into vectors."""
