"""Selectors that ask no model: at random, by the length of the reference answer, and by compression."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from adg_plugin.console import SamplingProgress
from adg_plugin.selectors.candidates import Candidates, Picked, highest, of_chosen
from adg_plugin.selectors.zip.checkpoint import kept_steps
from adg_plugin.selectors.zip.greedy import Steps, zip_order

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


def pick_zip(candidates: Candidates, budget: int, folder: Path, *, show: bool = False) -> Picked:
    """Return the rows whose instructions and reference responses together compress worst; see `zip_order`.

    Args:
        candidates: with instructions and references.
        budget: rows to choose.
        folder: where whole steps are kept, for an interrupted choice or another budget to go on from.
        show: report progress on stderr.

    Raises:
        StoreError: the steps cannot be written.
    """
    pairs = zip(candidates.instructions, candidates.references, strict=True)
    texts = [f"{asked}\n{answer}".encode() for asked, answer in pairs]
    rows = min(budget, len(texts))
    with kept_steps(folder, texts) as kept:
        done = 0 if kept.begun is None else min(rows, len(kept.begun.order))
        with SamplingProgress(rows, done, verb="choosing", show=show) as progress:

            def chosen(rows: int) -> None:
                for _ in range(rows - progress.done):
                    progress.add(0, rejected=False)

            def advance(steps: Steps) -> None:
                chosen(len(steps.order))
                kept.add(steps)

            order, ratios = zip_order(texts, budget, begun=kept.begun, advance=advance)
            chosen(len(order))
    places = np.arange(len(order), 0, -1)
    columns = {"set_compression_ratio": of_chosen(len(texts), order, ratios)}
    return Picked(order, of_chosen(len(texts), order, places), columns)
