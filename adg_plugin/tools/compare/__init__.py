"""`adg compare`: several methods choose from one run folder."""
