"""MIG: labels and grades of rows, and the greedy choice of the most information."""
