"""`adg export`: the chosen rows in the format of another tool."""
