"""Models that judge rows in memory, without a run folder."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np

from adg_plugin.data.prompts import Rendered
from adg_plugin.engines.judges.judge import judged


def judge(model, inputs=lambda row: [row]):
    """A judge whose rows are its inputs, or have those that `inputs` gives."""
    return SimpleNamespace(load=lambda: model, key=key, inputs=lambda rows: map(inputs, rows))


def key(row) -> bytes:
    return row.id.encode().ljust(16)


def findings(model, rows, inputs=lambda row: [row]):
    """What a model finds of each row, by id."""
    found = {finding.id: finding for some in judged(judge(model, inputs), rows) for finding in some}
    assert {id: finding.key for id, finding in found.items()} == {row.id: key(row) for row in rows}
    return found


def questions(lengths, seed=0):
    draw = random.Random(seed)
    return [
        Rendered(f"q{n}", np.array([draw.randrange(4, 200) for _ in range(length)], np.int32), (1, 2), "")
        for n, length in enumerate(lengths)
    ]
