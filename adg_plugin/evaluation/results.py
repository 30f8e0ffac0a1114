"""What an evaluation found, and where it is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.evaluation.protocol import Average
from adg_plugin.store.files import read_json, write_json, writing
from adg_plugin.store.reader import CONFIG, MANIFEST, MARKER

FOLDER = "eval"
_ANCESTORS = 3  # RUN/model/checkpoint-100 is the deepest that training writes
_UNTOLD = re.compile(
    r"adapter|checkpoint-\d+|final|merged|model"
)  # folder names that do not tell one model from another


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
    row_values: tuple[float, ...] = field(default=(), repr=False)

    def summary(self) -> dict[str, Any]:
        """Return the result without the values of single questions, for JSON."""
        about = asdict(self)
        del about["row_values"]
        return about


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
        seconds: wall-clock time, loading included.
    """

    model: Mapping[str, Any]
    tasks: tuple[TaskResult, ...]
    averages: tuple[Average, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float

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
            "model": dict(self.model),
            "tasks": [task.summary() for task in self.tasks],
            "averages": [asdict(average) for average in self.averages],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "seconds": self.seconds,
        }


def write_results(path: Path, found: Evaluation, *, command: str = "") -> None:
    """Write the results as JSON, whole or not at all, over those that were there.

    Raises:
        StoreError: the path cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**found.summary(), **({"command": command} if command else {})})


def results_path(model: str, *, run: Path | None = None, name: str | None = None) -> Path:
    """Return where the results of a model are kept: `eval/NAME.json` in its run folder, else here.

    Args:
        model: a folder or a hub name.
        run: the run folder; None: the one that the model's folder lies in or beside, if there is a single one.
        name: NAME; None: one that is made from the model's.

    Raises:
        StoreError: `run` is no run folder of a finished selection.
    """
    if run is not None and not _is_finished_run(run):
        raise StoreError(
            f"--run is {str(run)!r}: no run folder of a finished selection; give one, or leave --run out for ./{FOLDER}"
        )
    folder = run or run_folder_of(model) or Path()
    return folder / FOLDER / f"{name or label(model)}.json"


def run_folder_of(model: str) -> Path | None:
    """Return the finished run folder that a model's folder lies in, or the only one beside it or a folder around it."""
    place = Path(model)
    if not place.is_dir():
        return None
    around = list(place.absolute().parents)[:_ANCESTORS]
    for folder in (place.absolute(), *around):
        if _is_finished_run(folder):
            return _shown(folder, place)
    for folder in around:
        beside = [child for child in folder.iterdir() if child.is_dir() and _is_finished_run(child)]
        if beside:
            return _shown(beside[0], place) if len(beside) == 1 else None
    return None


def label(model: str) -> str:
    """Return a file name, without its ending, for a model: `runs/demo/model` -> `demo-model`, `org/name` -> `org-name`.

    Of a folder, the last name that tells it from others, and what follows.
    """
    place = Path(model)
    if place.is_dir():
        names = [part for part in place.absolute().parts if part != place.anchor and part != "/"]
        first = len(names) - 1
        while first > 0 and _UNTOLD.fullmatch(names[first]):
            first -= 1
        model = "-".join(names[first:])
    return re.sub(r"[^\w.]+", "-", model).strip("-.") or "model"


def _is_finished_run(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file() or not (folder / CONFIG).is_file():
        return False
    try:  # a model's folder has a config.json too
        return MARKER in (read_json(folder / CONFIG, fix="give another --run") or {})
    except StoreError:
        return False


def _shown(folder: Path, place: Path) -> Path:
    """Return the folder as the user would write it."""
    if place.is_absolute():
        return folder
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
