"""Commands beside the selection, each in a folder of its own; none imports another."""
