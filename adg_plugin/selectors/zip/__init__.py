"""ZIP: the greedy choice of rows that compress least."""
