"""`adg estimate`: what a selection will take, from a few rows."""
