"""What a finished run chose and why, on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adg_plugin.console import Text
from adg_plugin.errors import visible
from adg_plugin.report.rows import shortened
from adg_plugin.selectors.columns import by_rank, part_names, plain, shown
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder, RunReader

_WIDTH = 60  # characters of an instruction


def print_summary(run_dir: Path, console: Console, examples: int = 5) -> None:
    """Print counts, the parts of the score, and the rows at both ends of the choice.

    Raises:
        StoreError: not a run folder, or one without a result.
    """
    run = RunFolder.read(run_dir)
    manifest = run.manifest()
    if manifest is None:
        console.print(Text(f"{run_dir} is not complete yet: run adg select on it"))
        return
    rows, chooser = manifest["rows"], selector(manifest["config"].get("method", "adg"))
    rejected = sum(rows["rejected"].values())
    reasons = ", ".join(f"{name} {count}" for name, count in rows["rejected"].items())
    counts = (
        f" of {rows['scored']} scored rows chosen "
        + (f"from {rows['bins']} bins" if chooser.by_divergence else f"by {chooser.name}")
        + f"; pool {rows['pool']}, rejected {rejected}"
        + (f" ({reasons})" if reasons else "")
    )
    console.print(Text.assemble((str(rows["selected"]), "bold"), counts))
    if chooser.by_divergence:
        console.print(_parts(manifest["score"]))
    else:
        console.print(_percentiles(manifest["score"]))
    console.print(_ends(run, chooser.by_divergence, examples))


def _parts(score: dict[str, Any]) -> Table:
    """Return how dispersion and anisotropy are distributed, and how much of ADG's score each is."""
    parts = Table("part", "5 %", "median", "95 %", "corr. with score", "share of variance", box=None, pad_edge=False)
    for name in ("dispersion", "anisotropy"):
        at = score[name]
        parts.add_row(
            name,
            *(f"{at[p]:.3f}" for p in ("p5", "p50", "p95")),
            f"{score['pearson'][name]:+.2f}",
            f"{score['share_of_variance'][name]:.0%}",
        )
    return parts


def _percentiles(score: dict[str, Any]) -> Table:
    """Return how the score of another method and its parts are distributed."""
    parts = Table("part", "5 %", "median", "95 %", box=None, pad_edge=False)
    for name, at in score.items():
        if name != "form" and at:
            parts.add_row(name, *(shown(plain(at[p])) for p in ("p5", "p50", "p95")))
    return parts


def _ends(run: RunReader, by_divergence: bool, examples: int) -> Table:
    """Return the best of the chosen rows, and the last of those that were left."""
    scores = run.scores()
    names = ("score", *part_names(scores))
    if by_divergence:
        headings = ["score", "D", "I", "bin", "rank/quota", "why"]
        order = np.argsort(-scores["score"].to_numpy(), kind="stable")
    else:
        headings = ["rank", *(name.replace("_", " ") for name in names)]  # which fold at spaces
        order = by_rank(scores)
    table = Table("chosen", *headings, "instruction", box=None, pad_edge=False)
    chosen = scores["chosen"].to_numpy()[order]
    left = order[~chosen]
    for heading, picked in (("yes", order[chosen][:examples]), ("no", left[max(0, len(left) - examples) :])):
        rows = scores.take(picked).to_pylist()
        staged = run.staged_rows([row["id"] for row in rows])
        texts = {row.prompt.id: visible(" ".join(row.prompt.instruction.split())) for row in staged}
        for row in rows:
            if by_divergence:
                cells = [f"{row[name]:.3f}" for name in ("score", "dispersion", "anisotropy")]
                cells += [str(row["bin"]), f"{row['rank_in_bin']}/{row['bin_quota']}", row["reason"]]
            else:
                cells = ["" if row["rank"] is None else str(row["rank"]), *(shown(plain(row[name])) for name in names)]
            table.add_row(heading, *cells, Text(shortened(texts[row["id"]], _WIDTH)))
    return table
