"""A finished run folder -> one HTML file that shows what was chosen and why, static figures, and JSON."""
