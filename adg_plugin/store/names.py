"""Names of the files and folders within a run folder."""

from __future__ import annotations

CONFIG, PROMPTS, ANSWERS = "config.json", "prompts.parquet", "answers"
STAGED = "prompts.json"  # about the pool in prompts.parquet
SAMPLES = "samples"  # answers that are still to be embedded
MEASURES = "measures"  # what other selectors than ADG want to know of each row
INDEX = "index.parquet"  # which part of the answers holds each row
SCORES, SELECTED, REJECTED, MANIFEST = "scores.parquet", "selected.jsonl", "rejected.jsonl", "manifest.json"
REPORT = "report.html"
LOCK = ".lock"
HOLDER = ".lock.json"  # not in the lock file itself: versions of filelock differ in whether they empty it
