"""Grades read off the next token's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from judging import findings, questions
from tiny_models import tiny_model, tiny_tokenizer

from adg_plugin.engines.judges.causal_lm import Grades

GRADE_IDS = [tiny_tokenizer().convert_tokens_to_ids(str(grade)) for grade in range(1, 7)]


def grades(model, rows, **options):
    return findings(Grades(model, GRADE_IDS, **options), rows)


@pytest.mark.tiny
def test_a_grade_is_the_mean_over_the_grades_own_tokens_whatever_else_is_in_the_batch():
    rows = questions([5, 40, 17, 3, 40, 29])
    model = tiny_model(dtype=torch.float64)
    together = grades(model, rows)
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.token_ids.tolist()])).logits[0, -1].tolist()
        weights = [np.exp(logits[token]) for token in GRADE_IDS]
        share = sum(weights) / sum(np.exp(logits))
        expected = sum(grade * weight for grade, weight in enumerate(weights, 1)) / sum(weights)
        assert together[row.id].values["score"] == pytest.approx(expected, abs=1e-9)
        assert together[row.id].values["share"] == pytest.approx(share, abs=1e-9)
        assert together[row.id].num_tokens == len(row.token_ids)
    alone = grades(model, rows[::-1], batch_tokens=1)
    assert {id: found.values["score"] for id, found in alone.items()} == pytest.approx(
        {id: found.values["score"] for id, found in together.items()}, abs=1e-9
    )
