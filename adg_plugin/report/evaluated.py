"""What the page shows of the evaluations in a run folder, and which of them do not compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.store.files import read_json
from adg_plugin.store.names import SELECTED

FOLDER = "eval"  # in the run folder
_FIX = "run adg eval again, or delete it"


def read_evaluations(run: Path, manifest: Mapping[str, Any] | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what the page shows of each file of results, by name, and warnings.

    Args:
        manifest: of the present selection; None: there is none.
    """
    found, warnings = [], []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            found.append(_evaluation(path, manifest))
        except StoreError as err:
            warnings.append(str(err))
    return found, [*warnings, *_unlike(found)]


def _unlike(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a warning on the tasks that were put in unlike ways: their figures do not compare."""
    by_difference: dict[tuple[str, ...], tuple[set[str], set[str]]] = {}
    for name in sorted({task["task"] for one in evaluations for task in one["tasks"]}):
        put = [(one, task) for one in evaluations for task in one["tasks"] if task["task"] == name]
        ways = {
            "chat template": {one["chat_template"] for one, _ in put},
            "limit": {one["limit"] for one, _ in put},
            "shots": {task["shots"] for _, task in put},
        }
        differing = tuple(word for word, values in ways.items() if len(values) > 1)
        if not differing and len({task["digest"] for _, task in put}) > 1:
            differing = ("questions, examples or metric",)
        if differing:
            tasks, names = by_difference.setdefault(differing, (set(), set()))
            tasks.add(name)
            names.update(one["name"] for one, _ in put)
    return [
        f"evaluations {', '.join(sorted(names))}: their figures of {', '.join(sorted(tasks))} do not compare, they "
        f"differ in {', '.join(differing)}"
        for differing, (tasks, names) in by_difference.items()
    ]


def _evaluation(path: Path, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the page shows of a file of results.

    Raises:
        StoreError: it is no such file, or cannot be read.
    """
    try:
        found = read_json(path, fix=_FIX)
        if found is None:
            raise StoreError(f"{path} cannot be read: {_FIX}")  # a link to nothing
        model, settings, selection = found["model"], found["settings"], found.get("selection")
        earlier = False  # also where nobody knows
        if selection and manifest is not None:
            earlier = bool(selection["selected"] != manifest["files"][SELECTED]["blake2b"])
        return {
            "name": path.stem,
            "file": f"{FOLDER}/{path.name}",
            "model": str(model["name"]),
            "base": model.get("base"),
            "adapter": model.get("adapter"),
            "dtype": model.get("dtype"),
            "load_in_4bit": bool(model.get("load_in_4bit")),
            "when": found.get("created"),
            "harness": found["versions"].get("lm_eval"),
            "limit": settings.get("limit"),
            "chat_template": bool(settings.get("chat_template")),
            "of_earlier_selection": earlier,
            "tasks": [_task(task) for task in found["tasks"]],
            "averages": [
                {"name": str(of["name"]), "value": _number(of["value"]), "missing": [*map(str, of["missing"])]}
                for of in found["averages"]
            ],
            "left_out": {str(task): str(reason) for task, reason in found["left_out"].items()},
            "notes": [str(note) for note in found["notes"]],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise StoreError(f"{path} holds no results of adg eval: {_FIX}") from err


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    rows, of = int(task["rows"]), int(task["rows_in_task"])
    return {
        "task": str(task["task"]),
        "digest": task.get("digest"),
        "shots": None if task["shots"] is None else int(task["shots"]),
        "metric": str(task["metric"]),
        "value": _number(task["value"]),
        "stderr": _number(task["stderr"]),
        "rows": rows,
        "rows_in_task": of,
        "limited": rows < of,
    }


def _number(value: float | None) -> float | None:
    """Return a number, or None for what a browser's JSON has no name for: NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(value)
