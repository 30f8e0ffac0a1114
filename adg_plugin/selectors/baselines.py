"""What any selector has to beat: rows at random, and the rows with the longest reference responses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa

from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Picked

_TEXTS_AT_ONCE = 1000


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


class Longest(Selector):
    """The longest reference responses, in tokens of the model that will be trained. Source: arXiv 2402.04833."""

    reads = ("reference",)
    score_meaning = "tokens of the reference response"
    part_meanings: ClassVar[Mapping[str, str]] = {"reference_tokens": "tokens of the reference response"}

    def pick(self, rows: Candidates, budget: int, task: Task) -> Picked:
        """Return the rows with the most tokens."""
        assert task.source is not None
        lengths = np.zeros(len(rows), dtype=np.int32)
        for start in range(0, len(rows), _TEXTS_AT_ONCE):
            texts = list(rows.references[start : start + _TEXTS_AT_ONCE])
            found = task.source.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            lengths[start : start + len(texts)] = [len(ids) for ids in found]
        return Picked.best(lengths.astype(np.float64), budget, {"reference_tokens": lengths})
