"""Gram matrices -> D, I, score, bins, quota, stability; numpy only."""
