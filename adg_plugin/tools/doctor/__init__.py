"""Whether everything is there that a selection needs; each module finds out, `doctor_view` prints."""
