"""One pass through a model's layers: attention over shared prompts, sampling, hidden states, memory."""
