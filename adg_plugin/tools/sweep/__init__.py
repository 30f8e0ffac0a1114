"""`adg sweep`: how the choice moves with the settings."""
