"""Selectors that look at no model: at random, and by the length of the reference answer."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from adg_plugin.selectors.candidates import Candidates, Picked, highest

_TEXTS_AT_ONCE = 1000


def pick_random(candidates: Candidates, budget: int, seed: int) -> Picked:
    """Return rows drawn uniformly without replacement.

    Each row's number comes of the seed and its id alone, so the choice depends on neither the pool's order nor on what
    else is in it: of a smaller pool, those that are in it stay.
    """
    drawn = [hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=8).digest() for id in candidates.ids]
    scores = np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.float64) / 2.0**64
    return Picked(highest(scores, budget), scores)


def pick_longest(candidates: Candidates, budget: int, tokenizer: Any) -> Picked:
    """Return the rows with the longest reference answers, in tokens of the model that will be trained.

    Source: Zhao et al. 2024, arXiv 2402.04833.
    """
    lengths = np.zeros(len(candidates), dtype=np.int32)
    for start in range(0, len(candidates), _TEXTS_AT_ONCE):
        texts = list(candidates.references[start : start + _TEXTS_AT_ONCE])
        found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths[start : start + len(texts)] = [len(ids) for ids in found]
    scores = lengths.astype(np.float64)
    return Picked(highest(scores, budget), scores, {"reference_tokens": lengths})
