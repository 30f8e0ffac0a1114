"""Evaluations and comparisons that a report shows."""

from __future__ import annotations

import json
import shutil

from adg_plugin.tools.evaluation.results import Evaluation, TaskResult
from adg_plugin.tools.evaluation.tasks import averages

INJECTION = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>" + "unbreakable" * 15
ROWS, BUDGET = 40, 10
METHODS = ("adg", "random", "longest")
HEAD = (
    "method", "chosen", "scored", "rejected", "bins of 4", "fullest bin", "prompt", "reference", "alone", "choosing",
    "model",
)  # fmt: skip
NOTHING = "–"


def evaluation(name, *, value=0.25, limit=None, versions=None, selection=None, **model):
    asked = 1319 if limit is None else limit
    tasks = (
        TaskResult("gsm8k", 8, "exact_match,strict-match", value, 0.0125, asked, 1319, 9.0, {}, digest="d"),
        TaskResult("mine", None, "acc,none", 0.5, None, 2000, 2000, 1.0, {"acc,none": 0.5}),
    )
    return Evaluation(
        model={"name": name, "base": "a/base", "adapter": name, "dtype": "bfloat16", **model},
        tasks=tasks,
        averages=averages({"gsm8k": value, "bbh": 0.75}),
        left_out={"mbpp": "it runs code"},
        notes=("a note",),
        settings={"limit": limit, "chat_template": limit is not None},
        versions={"lm_eval": "0.4.11"} if versions is None else versions,
        seconds=10.0,
        selection=selection,
        created="2026-01-02T03:04:05+00:00",
    )


def comparison_of(run):
    return json.loads((run / "compare.json").read_text())


def cells(shown, table):
    """Return the texts of the rows of a table."""
    rows = shown.locator(f"{table} tbody tr").all()
    return [[cell.text_content() for cell in row.locator("td").all()] for row in rows]


def copied(run, folder):
    return shutil.copytree(run, folder / "run")
