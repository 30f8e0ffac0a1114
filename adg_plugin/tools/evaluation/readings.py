"""What the harness returns for a task -> its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adg_plugin.errors import DataError
from adg_plugin.tools.evaluation.results import TaskResult
from adg_plugin.tools.evaluation.tasks import LoadedTask


def read_results(task: LoadedTask, raw: Mapping[str, Any], seconds: float) -> list[TaskResult]:
    """Return the result of a task or a group from the harness's; of a group or tag without one, those of its tasks.

    Raises:
        DataError: a benchmark of the paper lacks the metric that the paper's figure is.
    """
    table = {**raw["results"], **raw.get("groups", {})}
    if _numbers(table.get(task.name, {})):
        return [_result(task, task.name, list(task.leaves), table[task.name], raw, seconds)]
    return [_result(task, leaf, [leaf], table[leaf], raw, seconds) for leaf in task.leaves if _numbers(table[leaf])]


def _result(
    task: LoadedTask, name: str, leaves: Sequence[str], entry: Mapping[str, Any], raw: Mapping[str, Any], seconds: float
) -> TaskResult:
    found = _numbers(entry)
    metric = task.metric or next(iter(found))
    if metric not in found:
        raise DataError(
            f"task {name} has no {metric}, the paper's figure of {task.name}, only {', '.join(found)}: name metric and "
            "filter in its file so, or give it another name"
        )
    what, _, chosen = metric.partition(",")
    counts = [raw["n-samples"][leaf] for leaf in leaves]
    return TaskResult(
        task=name,
        shots=task.shots if len(leaves) == len(task.leaves) else int(raw["n-shot"][name]),
        metric=metric,
        value=found[metric],
        stderr=_finite(entry.get(f"{what}_stderr,{chosen}")),
        rows=sum(count["effective"] for count in counts),
        rows_in_task=sum(count["original"] for count in counts),
        seconds=seconds,
        metrics=found,
        parts={leaf: raw["results"][leaf].get(metric) for leaf in leaves if name not in leaves},
        asked=None if name == task.name else task.name,
        source=task.source,
        digest=task.digest(name),
        row_values=_row_values([raw["samples"][leaf] for leaf in leaves], what, chosen),
    )


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in an entry of the harness's results, by their keys, in its order."""
    values = {key: _finite(value) for key, value in entry.items() if "," in key and "_stderr," not in key}
    return {key: value for key, value in values.items() if value is not None}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _row_values(parts: Sequence[Sequence[Mapping[str, Any]]], metric: str, chosen: str) -> tuple[float, ...]:
    """Return the metric's value for each question; nothing where it has none of a single question (a corpus's BLEU)."""
    samples = [s for part in parts for s in sorted(part, key=lambda s: int(s["doc_id"])) if s["filter"] == chosen]
    values = [_finite(sample.get(metric)) for sample in samples]
    return tuple(value for value in values if value is not None) if None not in values else ()
