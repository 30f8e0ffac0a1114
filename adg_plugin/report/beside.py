"""What lies beside a selection in its run folder: choices of other methods, and evaluations of trained models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adg_plugin.compare_facts import COMPARE, read_comparison
from adg_plugin.errors import StoreError
from adg_plugin.evaluation.results import FOLDER
from adg_plugin.report.figures import CHOSEN, Figure, chart
from adg_plugin.store import RunReader
from adg_plugin.store.files import read_json

# Of compare.json, all that the page cannot do without.
_NEEDED = (
    "budget", "rows", "methods", "costs", "names", "jaccard", "by_chance", "chosen_by", "alone", "lengths",
    "lengths_of_pool", "bins", "coverage",
)  # fmt: skip
_PALE, _DEEP, _INK = "#eaf0fd", "#17408f", "#1d232d"  # the cells are the same on white and on black
_LIGHT_TEXT_FROM = 0.45  # there, dark and white text have the same contrast, 4 to 1
_NAME_PIXELS = 110  # of an axis label; a phone has 390 in all


@dataclass(frozen=True, slots=True)
class Beside:
    """What was found beside the selection.

    Attributes:
        comparison: compare.json with the number of `chosen` rows in the place of the ids; None: no methods were
            compared on this pool.
        evaluations: of each file of results, by name.
        figures: of the comparison.
        warnings: sentences on files that cannot be used.
    """

    comparison: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    figures: tuple[Figure, ...]
    warnings: list[str]


def read_beside(run: RunReader) -> Beside:
    """Return what lies beside the selection; a file that cannot be used is a warning, and no reason to fail."""
    warnings: list[str] = []
    comparison = None
    try:
        comparison = _comparison(run)
    except StoreError as err:
        warnings.append(str(err))
    evaluations = []
    for path in sorted((run.path / FOLDER).glob("*.json")):
        try:
            evaluations.append(_evaluation(path))
        except StoreError as err:
            warnings.append(str(err))
    several = comparison if comparison and len(comparison["names"]) > 1 else None
    return Beside(comparison, evaluations, (overlaps(several),) if several else (), warnings)


def _comparison(run: RunReader) -> dict[str, Any] | None:
    found = read_comparison(run)
    if found is None:
        return None
    if missing := [key for key in _NEEDED if key not in found]:
        raise StoreError(f"{run.path / COMPARE} has no {', '.join(missing)}: delete it and run adg compare again")
    methods = [
        {**{key: value for key, value in one.items() if key != "ids"}, "chosen": len(one["ids"])}
        for one in found["methods"]
    ]
    return {**found, "methods": methods}


def overlaps(comparison: dict[str, Any]) -> Figure:
    """Return the heat map of what each two choices share.

    Args:
        comparison: `names` of M methods, the (M, M) `jaccard` of their choices, and `by_chance`.
    """
    names, jaccard = comparison["names"], comparison["jaccard"]
    cells = [
        {"method": one, "other": other, "jaccard": float(f"{value:.5g}"), "percent": f"{100 * value:.0f}"}
        for one, row in zip(names, jaccard, strict=True)
        for other, value in zip(names, row, strict=True)
    ]
    axis = {"labelLimit": _NAME_PIXELS, "grid": False}
    place = {
        "x": {"field": "other", "type": "nominal", "title": None, "sort": names, "axis": {**axis, "labelAngle": -40}},
        "y": {"field": "method", "type": "nominal", "title": None, "sort": names, "axis": axis},
        "tooltip": [{"field": name} for name in ("method", "other", "jaccard")],
    }
    shade = {
        "field": "jaccard",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [_PALE, CHOSEN, _DEEP], "interpolate": "rgb"},
        "legend": None,
    }
    ink = {"condition": {"test": f"datum.jaccard >= {_LIGHT_TEXT_FROM}", "value": "white"}, "value": _INK}
    text = {"text": {"field": "percent"}, "color": ink}
    layers = [
        {"mark": {"type": "rect"}, "encoding": {**place, "color": shade}},
        {"mark": {"type": "text", "fontSize": 11}, "encoding": {**place, **text}},
    ]
    note = (
        "Rows that both methods chose, in percent of those that at least one of them chose (Jaccard). "
        f"By chance, two choices share about {comparison['by_chance']['jaccard']:.0%}."
    )
    spec = chart(max(90, 28 * len(names)), cells, layer=layers)
    return Figure("overlap of methods", "Overlap of the choices", note, spec, wide=True, section="comparison")


def _evaluation(path: Path) -> dict[str, Any]:
    """Return what the page shows of a file of results.

    Raises:
        StoreError: it is no such file, or cannot be read.
    """
    fix = "run adg eval again, or delete it"
    try:
        found = read_json(path, fix=fix)
        if found is None:
            raise StoreError(f"{path} cannot be read: {fix}")  # a link to nothing
        model, settings = found["model"], found["settings"]
        about = {
            "file": f"{FOLDER}/{path.name}",
            "model": str(model["name"]),
            "base": model.get("base"),
            "dtype": model.get("dtype"),
            "when": str(found.get("created") or _written(path)),
            "harness": found["versions"].get("lm_eval"),
            "limit": settings.get("limit"),
            "tasks": [_task(task) for task in found["tasks"]],
            "averages": [_average(average) for average in found["averages"]],
            "left_out": {str(task): str(reason) for task, reason in found["left_out"].items()},
            "notes": [str(note) for note in found["notes"]],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise StoreError(f"{path} holds no results of adg eval: {fix}") from err
    return about


def _written(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _task(task: dict[str, Any]) -> dict[str, Any]:
    rows, of = int(task["rows"]), int(task["rows_in_task"])
    return {
        "task": str(task["task"]),
        "shots": None if task["shots"] is None else int(task["shots"]),
        "metric": str(task["metric"]),
        "value": _number(task["value"]),
        "stderr": _number(task["stderr"]),
        "rows": rows,
        "rows_in_task": of,
        "limited": rows < of,
    }


def _average(average: dict[str, Any]) -> dict[str, Any]:
    missing = [str(task) for task in average["missing"]]
    return {"name": str(average["name"]), "value": _number(average["value"]), "missing": missing}


def _number(value: float | None) -> float | None:
    """Return a number, or None for what a browser's JSON has no name for: NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(value)
