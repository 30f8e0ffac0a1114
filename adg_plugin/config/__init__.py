"""What a user may write: one schema of settings, their groups, the files they come from, the messages."""
