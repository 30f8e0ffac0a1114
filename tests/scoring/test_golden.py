"""Scores of answers that are given, against reference values that were computed elsewhere."""

import json

import pytest
from paths import FIXTURES, SHARED

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models import loading
from adg_plugin.tools.score_answers import score_answers

GOLDEN = SHARED / "golden" / "adg_smollm2.jsonl"
EMPTY = FIXTURES / "golden" / "empty_answers.jsonl"  # written by write.py there

pytestmark = pytest.mark.model


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the reference values are not beside the project")
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


def test_scores_of_rows_with_empty_missing_and_too_many_answers(tmp_path, monkeypatch):
    config = ADGConfig(model="demo", dtype="float32", device="cpu")
    backbone = loading.load_backbone(config)
    monkeypatch.setattr(loading, "load_backbone", lambda config: backbone)  # once is enough
    expected = [json.loads(line) for line in EMPTY.read_text(encoding="utf-8").splitlines()]
    for pooling in ("answer", "reference"):
        score_answers(config.updated(pooling=pooling), EMPTY, tmp_path / "scores.jsonl")
        found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
        golden = [row for row in expected if row[pooling] is not None]
        assert [row["id"] for row in found] == [row["id"] for row in golden]
        for ours, theirs in zip(found, golden, strict=True):
            told = {"D": ours["dispersion"], "I": ours["anisotropy"], "score": ours["score"]}
            assert told == pytest.approx(theirs[pooling], abs=1e-5), (pooling, ours["id"])
