"""MIG through the whole way from a pool to the chosen rows: labels, quality, bins, label vectors."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_runs import choose, pool_rows, read_jsonl, write_jsonl

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import DataError

pytestmark = pytest.mark.tiny

NO_VECTORS = "mig has no label vectors: labels with similar meaning are treated as unrelated"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pool.jsonl", pool_rows(40))


def test_mig_takes_labels_of_the_rows_and_rejects_what_it_cannot_read(model, tmp_path):
    rows = [{**row, "labels": [f"topic {n % 4}"], "quality": 1 + n % 3} for n, row in enumerate(pool_rows(24))]
    rows[5]["labels"] = {"topic": 1}
    rows[6]["quality"] = "good"
    rows[7]["quality"] = "2.0"  # as CSV has it
    rows[8]["labels"] = '["topic 0"]'
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    chosen = choose(pool, model, tmp_path / "run", method="mig", budget=4)
    topics = {row["labels"][0] for row in read_jsonl(chosen.path)}
    assert topics == {f"topic {n}" for n in range(4)}
    assert all(row["quality"] == 3 for row in read_jsonl(chosen.path))
    assert chosen.manifest["warnings"] == [NO_VECTORS]
    rejected = {row["id"]: (row["reason"], row["detail"]) for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    fix = "use a list of texts or of whole numbers, or one text with commas between the labels"
    assert rejected == {
        "row-5": ("bad_labels", f"column 'labels' is {{'topic': 1}}: {fix}"),
        "row-6": ("bad_labels", "column 'quality' is 'good': use a number of 0 or more"),
    }


def test_mig_counts_the_rows_without_labels_or_quality(model, tmp_path):
    rows = [{**row, "labels": [f"topic {n % 2}"], "quality": 1 + n % 3} for n, row in enumerate(pool_rows(12))]
    for row in rows[2:]:
        row["labels"] = []
    del rows[3]["quality"]
    chosen = choose(rows, model, tmp_path / "run", method="mig", budget=6)
    assert set(chosen.ids[:2]) == {"row-0", "row-1"}
    assert chosen.manifest["warnings"] == [
        "2 of 12 rows have labels in column 'labels': the rest come last by quality",
        "1 of 12 rows have no quality in column 'quality' (field_quality): theirs is 1",
        NO_VECTORS,
    ]
    misspelt = choose(rows, model, tmp_path / "run", method="mig", budget=6, field_quality="qualty")
    assert misspelt.manifest["warnings"][1] == "no row has column 'qualty' (field_quality): all qualities are 1"


def test_labels_that_no_row_can_be_read_from_are_no_reason_for_bins(model, tmp_path):
    rows = [{**row, "labels": 0.5} for row in pool_rows(12)]
    choose(rows, model, tmp_path / "run", bins=3)  # so that there are bins
    with pytest.raises(DataError, match=r"none of the 12 .* \(bad_labels 12\)"):
        choose(rows, model, tmp_path / "run", method="mig")
    told = {row["detail"] for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert all(text.startswith("column 'labels' is 0.5: use a list of texts") for text in told)


def test_compare_draws_nothing_for_labels_that_are_there_and_cannot_be_read(model, tmp_path):
    from adg_plugin.tools.compare.compare import compare

    pool = write_jsonl(tmp_path / "pool.jsonl", [{**row, "labels": 0.5} for row in pool_rows(12)])
    config = ADGConfig(model=str(model), datasets=[str(pool)], budget=4)
    found = compare(config, ["mig", "random"], tmp_path / "run", show_progress=False)
    assert (found.methods[0].asked, found.costs) == ((), {})
    assert found.methods[0].error == "none of the 12 rows can be chosen (bad_labels 12)"


def test_rows_without_a_bin_are_counted_where_bins_are_labels(model, tmp_path):
    choose(pool_rows(8, quality=1), model, tmp_path / "run", bins=2, budget=2)
    chosen = choose(pool_rows(12, quality=1), model, tmp_path / "run", method="mig", bins=2, budget=10)
    assert chosen.manifest["warnings"][1:] == [
        "4 of 12 rows have no bin, for want of answers in this run folder: they come last by quality"
    ]
    assert set(chosen.ids[:8]) == {f"row-{n}" for n in range(8)}


def test_whole_numbers_are_labels(model, tmp_path):
    rows = [{**row, "labels": n % 3, "quality": 1} for n, row in enumerate(pool_rows(12))]
    chosen = choose(rows, model, tmp_path / "run", method="mig", budget=3)
    assert {row["labels"] for row in chosen.rows()} == {0, 1, 2}


def test_mig_links_labels_by_the_vectors_of_a_file(model, tmp_path):
    """Two names of one topic count once where they are linked: the third row then brings more than the second."""
    names = ("boats", "ships", "bread")
    rows = [
        {**row, "labels": [name], "quality": worth}
        for row, name, worth in zip(pool_rows(3), names, (3, 1.2, 1), strict=True)
    ]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    vectors = write_jsonl(
        tmp_path / "vectors.jsonl",
        [
            {"label": "boats", "vector": [1.0, 0.0]},
            {"label": "Ships", "vector": [0.99, 0.1]},
            {"label": "bread", "vector": [0.0, 1.0]},
        ],
    )
    alone = choose(pool, model, tmp_path / "alone", method="mig", budget=2)
    assert alone.ids == ("row-0", "row-1")
    assert alone.manifest["warnings"] == [NO_VECTORS]
    linked = choose(pool, model, tmp_path / "linked", method="mig", budget=2, label_vectors=str(vectors))
    assert linked.ids == ("row-0", "row-2")
    assert linked.manifest["warnings"] == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": "a"}], "no column 'vector'; give a .parquet or .jsonl with columns label and vector"),
        ([{"label": "a", "vector": []}], "row 1 is 'a': use a text and a list of numbers"),
        (
            [{"label": "topic", "vector": [0.0, 0.0]}],
            "label_vectors is .*: row 1 is 'topic', a vector of length 0.0: give",
        ),
        (
            [
                {"label": "Topic", "vector": [1.0]},
                {"label": "b", "vector": [1.0]},
                {"label": "topic ", "vector": [2.0]},
            ],
            "row 3 is 'topic ', which is label 'Topic' of row 1 but for case and white space: keep one of them",
        ),
    ],
)
def test_label_vectors_that_cannot_be_used_are_named(rows, message, model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", [{**row, "labels": ["topic"]} for row in pool_rows(4)])
    vectors = write_jsonl(tmp_path / "vectors.jsonl", rows)
    with pytest.raises(DataError, match=message):
        choose(pool, model, tmp_path / "run", method="mig", label_vectors=str(vectors))


def test_mig_without_labels_takes_bins_and_says_so(pool, model, tmp_path):
    with pytest.raises(DataError, match="method is 'mig', and no row has labels in column 'labels'"):
        choose(pool, model, tmp_path / "run", method="mig")
    choose(pool, model, tmp_path / "run", bins=5)
    chosen = choose(pool, model, tmp_path / "run", method="mig", bins=5, budget=5)
    assert chosen.manifest["warnings"] == [
        "no row has labels in column 'labels', so bins of the prompts serve as labels: give each row labels "
        "(field_labels, or tagger) for what MIG is",
        "no row has column 'quality' (field_quality): all qualities are 1",
    ]
    bins = {row["id"]: row["bin"] for row in _adg_table(pool, model, tmp_path)}
    assert len({bins[id] for id in chosen.ids}) == 5


def _adg_table(pool: Path, model: Path, tmp_path: Path) -> list[dict[str, object]]:
    choose(pool, model, tmp_path / "run", bins=5)
    return pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
