"""Axolotl: the plugin behind an `adg:` block, and the process that it selects in."""
