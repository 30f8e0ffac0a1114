"""TRL: the trainer, the callback, `trl sft` on a run folder, and `adg run` with a TRL recipe."""
