"""Engines: what samples answers and turns them into vectors."""
