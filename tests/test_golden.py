"""Scores of answers that are given, against reference values that were computed elsewhere."""

import json
from pathlib import Path

import pytest

from adg_plugin.answers import score_answers
from adg_plugin.config import ADGConfig

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "adg_smollm2.jsonl"

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not GOLDEN.is_file(), reason="the reference values are not beside the project"),
]


@pytest.mark.parametrize(("pooling", "column"), [("answer", "paper"), ("reference", "reference")])
def test_scores_are_the_reference_values(pooling, column, tmp_path):
    config = ADGConfig(model="demo", dtype="float32", device="cpu", pooling=pooling)
    counts = score_answers(config, GOLDEN, tmp_path / "scores.jsonl")
    expected = {row["id"]: row[column] for row in map(json.loads, GOLDEN.read_text().splitlines())}
    assert (counts.scored, counts.rejected) == (len(expected), 0)
    names = {"dispersion": "D", "anisotropy": "I", "score": "score"}
    for row in map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines()):
        found = {golden: row[ours] for ours, golden in names.items()}
        assert found == pytest.approx(expected[row["id"]], abs=1e-5), row["id"]
