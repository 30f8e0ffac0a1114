"""What an evaluation found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self

from adg_plugin.tools.evaluation.protocol import Average, averages


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
    parts: Mapping[str, float] = field(default_factory=dict)
    asked: str | None = None
    source: str | None = None
    digest: str | None = None
    row_values: tuple[float, ...] = field(default=(), repr=False)

    def summary(self) -> dict[str, Any]:
        """Return the result without the values of single questions, for JSON."""
        about = asdict(self)
        del about["row_values"]
        return about

    @classmethod
    def parse(cls, about: Mapping[str, Any], row_values: tuple[float, ...] = ()) -> Self:
        """Return the result that `summary` was made of.

        Raises:
            KeyError, TypeError: it is no such summary.
        """
        names = [each.name for each in fields(cls) if each.name != "row_values"]
        return cls(**{name: about[name] for name in names}, row_values=row_values)


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
        return {
            "created": self.created,
            "model": dict(self.model),
            "tasks": [task.summary() for task in self.tasks],
            "averages": [asdict(average) for average in self.averages],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "seconds": self.seconds,
            "selection": None if self.selection is None else dict(self.selection),
        }

    @classmethod
    def parse(cls, about: Mapping[str, Any], row_values: Mapping[str, tuple[float, ...]]) -> Self:
        """Return the evaluation that `summary` was made of.

        Args:
            about: the summary.
            row_values: of single questions, by task; a task may be missing.

        Raises:
            KeyError, TypeError, AttributeError: it is no such summary.
        """
        return cls(
            model=about["model"],
            tasks=tuple(TaskResult.parse(task, row_values.get(task["task"], ())) for task in about["tasks"]),
            averages=tuple(Average(one["name"], one["value"], tuple(one["missing"])) for one in about["averages"]),
            left_out=about["left_out"],
            notes=tuple(about["notes"]),
            settings=about["settings"],
            versions=about["versions"],
            seconds=about["seconds"],
            selection=about["selection"],
            created=about["created"],
        )


def papers_averages(tasks: Iterable[TaskResult]) -> tuple[Average, ...]:
    """Return the averages over the paper's benchmarks; a task file of the user's with such a name is none of them."""
    return averages({task.task: task.value for task in tasks if task.source is None})
