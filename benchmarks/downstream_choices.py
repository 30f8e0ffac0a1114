"""What the downstream benchmark compares: a plan, methods, and the rows that each of them chooses."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downstream_runs import Training, read_rows, tokenizer_of

from adg_plugin import select
from adg_plugin.config.schema import ADGConfig

METHODS: dict[str, dict[str, Any]] = {
    "adg-raw": {"score": "raw"},
    "adg-rank": {"score": "rank"},
    "adg-residual": {"score": "residual"},
    "dispersion": {"weight": 0.0},
    "anisotropy": {"weight": 1.0},
    "random": {"method": "random"},
    "longest": {"method": "longest"},
    "ifd": {"method": "ifd"},
    "superfiltering": {"method": "superfiltering"},
    "zip": {"method": "zip"},
}
SEEDLESS = ("longest", "ifd", "superfiltering", "zip")  # choose the same rows under every seed


@dataclass(frozen=True)
class Plan:
    """What is compared. Runs of another plan are never mixed with these.

    Attributes:
        pool: digest of the pool's file, and of the file of other rows to evaluate on.
    """

    pool: str
    rows: int
    held_out: int
    row_tokens: int
    budget: int
    answer_tokens: int
    small_model: str
    training: Training


def split(work: Path, plan: Plan, pool: Path, extra: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Write the pool to choose from, and return the rows to evaluate on: short ones with an answer, at random."""
    tokenizer = tokenizer_of(plan.training.model)

    def length(row: dict[str, Any]) -> int:
        prompt = f"{row['instruction']}\n{row.get('input', '')}"
        return sum(len(tokenizer(text).input_ids) for text in (prompt, row["output"]))

    rows = [row for row in read_rows(pool) if row["output"].strip() and length(row) <= plan.row_tokens]
    rows.sort(key=lambda row: str(row["id"]))
    random.Random(0).shuffle(rows)
    chosen_from = rows[plan.held_out : plan.held_out + plan.rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen_from)
    path = work / "pool.jsonl"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    found = {"held_out": rows[: plan.held_out]}
    if extra is not None:
        found[extra.stem] = read_rows(extra)
    return found


def choose(work: Path, plan: Plan, method: str, seed: int) -> list[dict[str, Any]]:
    """Return the rows that a method chooses, from one run folder per seed that changes something."""
    seed = 0 if method in SEEDLESS else seed
    settings = {
        **({"small_model": plan.small_model} if method == "superfiltering" else {}),
        "model": plan.training.model,
        "datasets": [str(work / "pool.jsonl")],
        "budget": plan.budget,
        "max_new_tokens": plan.answer_tokens,
        "seed": seed,
        **METHODS[method],
    }
    return list(select(config=ADGConfig.parse(settings), output_dir=work / f"run-{seed}").rows())


def read_choices(path: Path, methods: Sequence[str]) -> dict[tuple[str, int], set[str]]:
    """Return the ids that each of the methods chose under each seed, from the file of an earlier run."""
    lines = read_rows(path)
    return {(line["method"], line["seed"]): set(line["ids"]) for line in lines if line["method"] in methods}


def rows_of(work: Path, method: str, ids: set[str]) -> list[dict[str, Any]]:
    """Return the rows that a method chose earlier.

    Raises:
        SystemExit: one is not in the pool.
    """
    rows = [row for row in read_rows(work / "pool.jsonl") if str(row["id"]) in ids]
    if missing := ids - {str(row["id"]) for row in rows}:
        sys.exit(f"error: --choices: row {min(missing)!r} of {method} is not in the pool: give the same --pool")
    return rows
