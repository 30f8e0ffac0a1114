"""The model: found, loaded, known again by its weights, borrowed from a trainer."""
