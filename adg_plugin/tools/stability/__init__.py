"""`adg stability`: how much of a choice is sampling noise."""
