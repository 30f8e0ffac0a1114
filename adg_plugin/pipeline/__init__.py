"""The order of a selection: stage the pool, sample, choose, write."""
