"""The rows with the longest reference responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Picked

_TEXTS_AT_ONCE = 1000


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
