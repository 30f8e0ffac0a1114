"""What an evaluation found, from what the harness returns for each task, and the files that hold it.

Beside `NAME.json` lies `NAME.rows.jsonl` with the value of each question, a line for each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from adg_plugin.errors import DataError, StoreError
from adg_plugin.store.files import make_folder, read_json, reading, replacing, write_json
from adg_plugin.tools.evaluation.tasks import Average, LoadedTask, averages

FIX = "give another --name, or --overwrite to replace it"


def now() -> str:
    """Return the time in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's result.

    Attributes:
        task: the harness's name.
        shots: worked examples before each question; None where the parts of a group differ.
        metric: the harness's key of `value`, `METRIC,FILTER`.
        value: in the metric's own unit: a share, mostly.
        stderr: standard error of `value`; None where the harness gives none.
        rows: how many questions were asked,
        rows_in_task: and how many there are.
        seconds: wall-clock time.
        metrics: all that the harness measured, by its keys.
        parts: `metric` of each task of a group; empty for a single task.
        asked: the name that was asked for, where it is that of a group or tag without a figure of its own.
        source: the user's task file that it came from; None: it is the harness's own.
        digest: of the task as it was put: questions, examples, metric; two results with one digest compare.
        row_values: (rows,) of `metric`, in the task's order, to compare two models question by question; empty where
            the metric has no value of its own for each question. Of a group, its tasks one after the other.
    """

    task: str
    shots: int | None
    metric: str
    value: float
    stderr: float | None
    rows: int
    rows_in_task: int
    seconds: float
    metrics: Mapping[str, float]
    parts: Mapping[str, float | None] = field(default_factory=dict)
    asked: str | None = None
    source: str | None = None
    digest: str | None = None
    row_values: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        model: what was evaluated: name, base, adapter, digest of the weights, dtype, device.
        tasks: in the order in which they were asked for.
        averages: the paper's, where one of its benchmarks was run.
        left_out: benchmarks of the preset that were not run, each with the reason.
        notes: sentences on what the figures do not say.
        settings: limit, seed and all else that a figure depends on.
        versions: of the packages that it depends on.
        seconds: wall-clock time, loading included; of all runs that the results are from.
        selection: that the results lie beside, as `selection_of` gives it; None: beside none.
        created: when the last of the results was found, in ISO 8601.
    """

    model: Mapping[str, Any]
    tasks: tuple[TaskResult, ...]
    averages: tuple[Average, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    selection: Mapping[str, Any] | None = None
    created: str = field(default_factory=now)

    def __getitem__(self, task: str) -> TaskResult:
        """Return the result of a task.

        Raises:
            KeyError: it was not run.
        """
        for result in self.tasks:
            if result.task == task:
                return result
        raise KeyError(task)

    def summary(self) -> dict[str, Any]:
        """Return all but the values of single questions, for JSON."""
        about = {"created": self.created, **asdict(self)}
        for task in about["tasks"]:
            del task["row_values"]
        return about


def write_results(path: Path, found: Evaluation, *, command: str = "") -> None:
    """Write the results, the values of single questions first, over those that were there.

    Raises:
        StoreError: a path cannot be written.
    """
    make_folder(path.parent)
    with replacing(rows_path(path)) as sink:
        for task in found.tasks:
            for number, value in enumerate(task.row_values):
                line = {"task": task.task, "question": number, "value": value}
                sink.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    write_json(path, {**found.summary(), **({"command": command} if command else {})})


def read_results(path: Path) -> Evaluation | None:
    """Return the results in a file with the values of single questions beside it, or None where there is no file.

    Raises:
        StoreError: it cannot be read, or is no file of results.
    """
    about = read_json(path, fix=FIX)
    if about is None:
        return None
    values: dict[str, list[float]] = {}
    try:
        if (rows := rows_path(path)).is_file():
            with reading(rows, fix=FIX), rows.open(encoding="utf-8") as lines:
                for row in map(json.loads, lines):
                    values.setdefault(row["task"], []).append(row["value"])
        tasks = [{**task, "row_values": values.get(task["task"], [])} for task in about["tasks"]]
        return TypeAdapter(Evaluation).validate_python({**about, "tasks": tasks})
    except (KeyError, TypeError, ValueError) as err:
        raise StoreError(f"{path} holds no results of adg eval: {FIX}") from err


def rows_path(path: Path) -> Path:
    """Return where the values of single questions are: NAME.json -> NAME.rows.jsonl."""
    return path.with_name(f"{path.stem}.rows.jsonl")


def papers_averages(tasks: Iterable[TaskResult]) -> tuple[Average, ...]:
    """Return the averages over the paper's benchmarks; a task file of the user's with such a name is none of them."""
    return averages({task.task: task.value for task in tasks if task.source is None})


def task_results(task: LoadedTask, raw: Mapping[str, Any], seconds: float) -> list[TaskResult]:
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
