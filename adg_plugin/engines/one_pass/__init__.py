"""The engine that samples and embeds in one pass."""
