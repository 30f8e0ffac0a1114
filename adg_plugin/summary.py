"""What a finished run chose and why, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adg_plugin.store import RunFolder, RunReader

_EXAMPLES = 5


def print_summary(run_dir: Path, console: Console, examples: int = _EXAMPLES) -> None:
    """Print counts, the parts of the score, and the rows at both ends of the choice.

    Raises:
        StoreError: not a run folder, or one without a result.
    """
    run = RunFolder.read(run_dir)
    manifest = run.manifest()
    if manifest is None:
        console.print(f"{run_dir} is not complete yet: run adg select on it", highlight=False, markup=False)
        return
    rows, score = manifest["rows"], manifest["score"]
    rejected = sum(rows["rejected"].values())
    reasons = ", ".join(f"{name} {count}" for name, count in rows["rejected"].items())
    console.print(
        f"[bold]{rows['selected']}[/] of {rows['scored']} scored rows chosen from {rows['bins']} bins; "
        f"pool {rows['pool']}, rejected {rejected}" + (f" ({reasons})" if reasons else ""),
        highlight=False,
    )
    parts = Table("part", "5 %", "median", "95 %", "corr. with score", "share of variance", box=None, pad_edge=False)
    for name in ("dispersion", "anisotropy"):
        at = score[name]
        parts.add_row(
            name,
            *(f"{at[p]:.3f}" for p in ("p5", "p50", "p95")),
            f"{score['pearson'][name]:+.2f}",
            f"{score['share_of_variance'][name]:.0%}",
        )
    console.print(parts)
    _print_examples(run, console, examples)


def _print_examples(run: RunReader, console: Console, examples: int) -> None:
    scores = run.scores()
    order = np.argsort(-scores["score"].to_numpy(), kind="stable")
    chosen = scores["chosen"].to_numpy()[order]
    best, left = order[chosen][:examples], order[~chosen][-examples:]
    table = Table("chosen", "score", "D", "I", "bin", "rank/quota", "why", "instruction", box=None, pad_edge=False)
    for heading, picked in (("yes", best), ("no", left)):
        rows = scores.take(picked).to_pylist()
        texts = {r.prompt.id: r.prompt.instruction for r in run.staged_rows([r["id"] for r in rows])}
        for row in rows:
            table.add_row(heading, *_cells(row), Text(_shortened(texts[row["id"]])))
    console.print(table)


def _cells(row: dict[str, Any]) -> Sequence[str]:
    return (
        f"{row['score']:.3f}",
        f"{row['dispersion']:.3f}",
        f"{row['anisotropy']:.3f}",
        str(row["bin"]),
        f"{row['rank_in_bin']}/{row['bin_quota']}",
        row["reason"],
    )


def _shortened(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
