"""Rows sampled uniformly at random, which any selector has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Picked


class Random(Selector):
    """A uniform sample without replacement.

    Each row's number comes of the seed and its id alone, so the choice depends on neither the pool's order nor on what
    else is in it: of a smaller pool, those that are in it stay.
    """

    needs_reference = "turn"
    random_scores = True
    settings = ("seed",)
    score_meaning = "drawn uniformly at random"

    def pick(self, rows: Candidates, budget: int, task: Task) -> Picked:
        """Return the rows with the highest numbers."""
        seed = task.config.seed
        drawn = [hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=8).digest() for id in rows.ids]
        return Picked.best(np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.float64) / 2.0**64, budget)

    def cut(self, table: pa.Table, at: int, budget: int) -> Iterator[str]:
        """Yield that another seed decides otherwise."""
        done = "leave it out" if table["chosen"][at].as_py() else "choose it"
        yield f"the rows are drawn uniformly at random: another seed may {done}"
