"""Pools, tiny saved models and selections over them; every run here takes a fraction of a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from paths import HELPERS, ROOT
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from adg_plugin import Selection, select

SETTINGS: dict[str, Any] = {"budget": 10, "num_samples": 3, "max_new_tokens": 6}
BAD = "~"  # in `spoil`ed models a row that holds this sign gives NaN


def pool_rows(count: int, *, start: int = 0, **extra: Any) -> list[dict[str, Any]]:
    """Return rows of two topics with ids of their own."""
    texts = ("What is {} times {}?", "Write {} lines about the sea, with {} words each.")
    return [
        {"id": f"row-{n}", "instruction": texts[n % 2].format(n, n % 7), "output": str(n), **extra}
        for n in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save(folder: Path, change: Callable[[PreTrainedModel], None] | None = None, **settings: Any) -> Path:
    """Write a tiny model, after `change` has altered its weights, with its tokenizer."""
    model = tiny_model("llama", **settings)
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def spoil(model: PreTrainedModel) -> None:
    model.model.embed_tokens.weight[tiny_tokenizer().convert_tokens_to_ids(BAD)] = float("nan")


def break_altogether(model: PreTrainedModel) -> None:
    model.model.norm.weight.fill_(float("nan"))


def fall_silent(model: PreTrainedModel) -> None:
    """Let every answer end at once: one direction is large in every state, and only EOS looks at it."""
    model.model.embed_tokens.weight[:, 0] = 1000
    model.lm_head.weight.zero_()
    model.lm_head.weight[2, 0] = 100


def choose(pool: Any, model: Path, run: Path, **settings: Any) -> Selection:
    config = {**SETTINGS, **settings}
    return select(pool, model=str(model), config=config, output_dir=run, show_progress=False)


def parts(run: Path) -> dict[str, tuple[int, bytes]]:
    """Return name, time and bytes of every part file."""
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted((run / "answers").glob("*.parquet"))}


def scores(run: Path) -> dict[str, tuple[float, bool]]:
    """Return score and choice of each row."""
    import pyarrow.parquet as pq

    table = pq.read_table(run / "scores.parquet", columns=["id", "score", "chosen"])
    return {row["id"]: (row["score"], row["chosen"]) for row in table.to_pylist()}


def command(*arguments: str | Path, code: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start the `adg` command, or other code, in a process of its own."""
    start = "from adg_plugin.cli import main; main()" if code is None else code
    path = os.pathsep.join([str(ROOT), str(HELPERS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen([sys.executable, "-c", start, *map(str, arguments)], **{**pipes, **options})
