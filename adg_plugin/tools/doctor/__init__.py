"""Whether everything is there that a selection needs; each module finds out, `cli` prints."""
