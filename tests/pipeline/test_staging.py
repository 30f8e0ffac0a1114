"""The walk of a row into the staged pool: in one loop, in the pool's order, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer

from adg_plugin.config.groups import Filters
from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.data import prompts
from adg_plugin.data.sources import Record
from adg_plugin.pipeline.stage import Pool, stage_pool
from adg_plugin.store import RunFolder, StagedRow, staging

KINDS = {
    "stays": {"instruction": "Why is the sky blue, {n}?", "output": "It is."},
    "bad_type": {"instruction": "Why, {n}?", "input": 3, "output": "It is."},
    "no_answer": {"instruction": "Say nothing, {n}."},
    "prompt_too_long": {"instruction": "long {n} " * 300, "output": "It is."},
    "too_many_words": {"instruction": "{n} one two three four five six seven", "output": "It is."},
}


def rows(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows of all kinds in turn, each with what becomes of it; one of each kind is there twice."""
    for number in range(count):
        reason = list(KINDS)[number % len(KINDS)]
        row = {key: value.format(n=number) if isinstance(value, str) else value for key, value in KINDS[reason].items()}
        yield reason, row
        if number == 11:
            yield "duplicate", dict(row)


def staged(run: RunFolder, records: Iterator[Record]) -> None:
    config = ADGConfig(filters=Filters(max_words=7), max_prompt_tokens=200)
    stage_pool(run, Pool(records, None, for_training=True), config, tiny_tokenizer(), {})


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_prompts_and_rejected_rows_lie_in_the_order_of_the_pool(tmp_path: Path, monkeypatch, batch: int):
    monkeypatch.setattr(prompts, "_BATCH_ROWS", batch)
    expected, pool = zip(*rows(60), strict=True)
    spec = DatasetSpec(path="p.jsonl")
    with RunFolder.open(tmp_path / "run") as run:
        staged(run, (Record(row, f"p.jsonl:{number}", spec) for number, row in enumerate(pool, 1)))
        found = pq.read_table(run.path / "prompts.parquet", columns=["where", "reason"]).to_pylist()
    assert [row["where"] for row in found] == [f"p.jsonl:{number}" for number in range(1, len(pool) + 1)]
    assert [row["reason"] or "stays" for row in found] == list(expected)


def test_no_more_than_a_batch_is_read_ahead_of_what_is_staged(tmp_path: Path, monkeypatch):
    """Also where nearly all rows are rejected: they do not wait for a row that stays."""
    monkeypatch.setattr(prompts, "_BATCH_ROWS", 8)
    ahead = [0, 0]  # records read and not staged: now, and at most

    def records() -> Iterator[Record]:
        spec = DatasetSpec(path="p.jsonl")
        for number in range(1, 200):
            row = {"instruction": f"Why, {number}?", "output": "So."} if number == 100 else {"instruction": ""}
            ahead[0] += 1
            ahead[1] = max(ahead)
            yield Record(row, f"p.jsonl:{number}", spec)

    stage = staging.stage

    def noting(path: Path, rows: Iterator[StagedRow | staging.Rejection], **options: Any) -> int:
        def taken() -> Iterator[StagedRow | staging.Rejection]:
            for row in rows:
                ahead[0] -= 1
                yield row

        return stage(path, taken(), **options)

    monkeypatch.setattr(staging, "stage", noting)
    with RunFolder.open(tmp_path / "run") as run:
        staged(run, records())
    assert ahead == [0, 8]
