"""A file of label vectors is read before any model is asked, and what is wrong with it is told with its way out."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import SETTINGS, choose, pool_rows, save, write_jsonl

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import DataError
from adg_plugin.selectors.mig.columns import read_label_vectors
from adg_plugin.tools.compare.compare import compare

FIX = "give a .parquet or .jsonl with columns label and vector"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048)


def refusal(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read_label_vectors(path)
    return str(caught.value)


def test_a_file_that_cannot_be_read_is_told_with_reason_and_way_out(tmp_path):
    assert refusal("nope.parquet") == f"label_vectors is 'nope.parquet': no such file; {FIX}"
    assert refusal("nope.txt") == f"label_vectors is 'nope.txt': {FIX}"
    for name in ("bad.parquet", "bad.jsonl"):
        (tmp_path / name).write_text("not {a table", encoding="utf-8")
        told = refusal(tmp_path / name)
        assert re.fullmatch(rf"label_vectors is '.*{name}': cannot be read \([^\n]+\); {re.escape(FIX)}", told), told


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (([1.0, 0.0], [0.0, 0.0]), "row 2 is 'b', a vector of length 0.0: give one that is finite and not zero"),
        (([1.0, 0.0], [1e308, 1e308]), "row 2 is 'b', a vector of length inf: give one that is finite and not zero"),
        (([1.0, 0.0], [math.nan, 1.0]), "row 2 is 'b', a vector of length nan: give one that is finite and not zero"),
        (([1.0, 0.0], [1.0]), "row 2 is 'b' with 1 numbers, and row 1 has 2: give all of them one width"),
        ((1.0, 2.0), "row 1 is 'a': use a text and a list of numbers"),
    ],
)
def test_vectors_that_can_link_nothing_are_told_by_row(vectors, said, tmp_path):
    rows = [{"label": label, "vector": vector} for label, vector in zip("ab", vectors, strict=True)]
    path = tmp_path / "vectors.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert refusal(path) == f"label_vectors is {str(path)!r}: {said}"


@pytest.mark.tiny
def test_mig_reads_it_before_the_tagger_is_asked(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "adg_plugin.selectors.mig.tagger.Tagger.ask", lambda *_, **__: pytest.fail("the tagger was asked")
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^label_vectors is 'nope\.parquet': no such file; "):
        choose(pool_rows(6), model, tmp_path / "run", method="mig", tagger=str(model), label_vectors="nope.parquet")


@pytest.mark.tiny
def test_compare_reads_it_before_anything_is_written(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12, labels=["a"]))
    config = ADGConfig.parse({**SETTINGS, "model": str(model), "datasets": [str(pool)]})
    with pytest.raises(DataError) as caught:
        compare(config, ["adg", "mig:label_vectors=nope.parquet"], tmp_path / "run", show_progress=False)
    assert str(caught.value) == f"label_vectors is 'nope.parquet': no such file; {FIX}"
    assert not (tmp_path / "run").exists()
