"""Selectors to compare ADG with: each chooses from the whole pool, under the same budget, and names its source."""
