"""compare.json of a run folder -> what the report shows of the choices of several methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.report.figures import CHOSEN, Figure, amount, chart, short, tips
from adg_plugin.selectors.registry import choice_settings
from adg_plugin.store import RunReader
from adg_plugin.store.files import read_json

COMPARE = "compare.json"  # in the run folder
_PALE, _DEEP, _INK = "#eaf0fd", "#17408f", "#1d232d"  # the cells are the same on white and on black
_LIGHT_TEXT_FROM = 0.45  # there, dark and white text have the same contrast, 4 to 1
_NAME_PIXELS = 110  # of an axis label; a phone has 390 in all
_FIX = "delete it and run adg compare again"


def format_chance(jaccard: Sequence[Sequence[float]]) -> str:
    """Return in words what two different choices would share by chance (M, M): they may choose among other rows."""
    found = [value for at, row in enumerate(jaccard) for value in row[at + 1 :]] or [row[0] for row in jaccard]
    least, most = (f"{value:.0%}" for value in (min(found, default=0.0), max(found, default=0.0)))
    return least if least == most else f"{least} to {most}"


def read_comparison(run: RunReader) -> dict[str, Any] | None:
    """Return compare.json of a run folder, or None where there is none, or it is about another pool than is staged.

    Raises:
        StoreError: it cannot be read.
    """
    found = read_json(run.path / COMPARE, fix=_FIX)
    return found if found is not None and found.get("pool_digest") == run.staged_digest() else None


def read_compared(run: RunReader, manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return compare.json with the number of `chosen` rows in the place of the ids, or None where there is none.

    With a selection, `selection` says how the comparison stands to it: `is_earlier`, and `differing`, the settings of
    the choice that differ: by key, the value when `compared` and that of the `selection`.

    Args:
        run: the run folder; a comparison on another pool than is staged does not count.
        manifest: of the finished selection in it; None: there is none.

    Raises:
        StoreError: the file cannot be read, or is not as `adg compare` writes it.
    """
    found = read_comparison(run)
    if found is None:
        return None
    path = run.path / COMPARE
    try:
        return {**_checked(found), "selection": None if manifest is None else _beside(found, manifest)}
    except KeyError as err:
        raise StoreError(f"{path} has no {err.args[0]}: {_FIX}") from err
    except (TypeError, ValueError, AttributeError) as err:
        raise StoreError(f"{path} is not as adg compare writes it ({err}): {_FIX}") from err


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the contents, after a look at all that the page cannot do without.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: something is missing, or is something else.
    """
    methods, names = [_method(one) for one in found["methods"]], [str(name) for name in found["names"]]
    if names != [one["name"] for one in methods if one["error"] is None]:
        raise ValueError("names are not those of the methods that chose")
    datetime.fromisoformat(found["created"])

    def of_each(values: Sequence[Any], convert: Callable[[Any], Any] = int) -> list[Any]:
        if len(values) != len(names):
            raise ValueError(f"{len(values)} values for {len(names)} methods")
        return [convert(value) for value in values]

    def matrix(rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        return of_each(rows, lambda row: of_each(row, _number))

    def coverage(value: dict[str, Any]) -> dict[str, Any]:
        name, chosen = value["value"], of_each(value["chosen"])
        return {"value": name if name is None else str(name), "pool": int(value["pool"]), "chosen": chosen}

    bins = found["bins"]
    return {
        **found,
        "budget": int(found["budget"]),
        "rows": {key: int(found["rows"][key]) for key in ("pool", "candidates")},
        "methods": methods,
        "costs": {
            name: {**cost, "rows": int(cost["rows"]), "seconds": _number(cost["seconds"]), "is_whole": cost["is_whole"]}
            for name, cost in found["costs"].items()
        },
        "names": names,
        "jaccard": matrix(found["jaccard"]),
        "by_chance": {**found["by_chance"], "jaccard": matrix(found["by_chance"]["jaccard"])},
        "chosen_by": {key: int(found["chosen_by"][key]) for key in ("all", "none")},
        "alone": of_each(found["alone"]),
        "lengths": of_each(found["lengths"], _medians),
        "lengths_of_pool": _medians(found["lengths_of_pool"]),
        "bins": None
        if bins is None
        else {
            **bins,
            "total": int(bins["total"]),
            "reached": of_each(bins["reached"]),
            "largest_share": of_each(bins["largest_share"], _number),
            "without_a_bin": of_each(bins["without_a_bin"]),
        },
        "coverage": [
            {"kind": str(of["kind"]), "values": [coverage(value) for value in of["values"]]} for of in found["coverage"]
        ],
        "config": {**found["config"]},
        "recipe": {**found["recipe"]},
        "versions": {**found["versions"]},
    }


def _method(one: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in one.items() if key != "ids"},
        "name": str(one["name"]),
        "scored": int(one["scored"]),
        "rejected": {str(reason): int(rows) for reason, rows in one["rejected"].items()},
        "seconds": _number(one["seconds"]),
        # Comparisons of before there could be two costs hold one, or None.
        "asked": [one["asked"]] if isinstance(one["asked"], str) else [str(name) for name in one["asked"] or ()],
        "warnings": [str(text) for text in one["warnings"]],
        "error": one["error"] if one["error"] is None else str(one["error"]),
        "chosen": len(one["ids"]),
    }


def _number(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} for a number")  # no browser's JSON has a name for it
    return float(value)


def _medians(of: dict[str, Any]) -> dict[str, Any]:
    lengths = ("prompt_tokens", "reference_words")
    return {**of, **{name: {**of[name], "p50": _number(of[name]["p50"])} for name in lengths}}


def _beside(found: dict[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    compared, selection = (_of_choice(about["config"]) for about in (found, manifest))
    differing = {
        key: {"compared": compared.get(key), "selection": selection.get(key)}
        for key in dict.fromkeys([*compared, *selection])
        if compared.get(key) != selection.get(key)
    }
    earlier = datetime.fromisoformat(found["created"]) < datetime.fromisoformat(manifest["created"])
    return {"is_earlier": earlier, "differing": differing}


def _of_choice(config: Mapping[str, Any]) -> dict[str, Any]:
    filters = {f"filters.{key}": value for key, value in (config.get("filters") or {}).items()}
    return {**{key: config.get(key) for key in choice_settings()}, **filters}


def overlaps(comparison: dict[str, Any]) -> Figure:
    """Return the heat map of what each two choices share.

    Args:
        comparison: `names` of M methods, the (M, M) `jaccard` of their choices, and `by_chance`.
    """
    names, jaccard = comparison["names"], comparison["jaccard"]
    cells = [
        {"method": one, "other": other, "jaccard": short(value), "percent": f"{100 * value:.0f}"}
        for one, row in zip(names, jaccard, strict=True)
        for other, value in zip(names, row, strict=True)
    ]
    axis = {"labelLimit": _NAME_PIXELS, "grid": False}
    place = {
        "x": {"field": "other", "type": "nominal", "title": None, "sort": names, "axis": {**axis, "labelAngle": -40}},
        "y": {"field": "method", "type": "nominal", "title": None, "sort": names, "axis": axis},
        "tooltip": tips("method", "other", "jaccard"),
    }
    scale = {"domain": [0, 1], "range": [_PALE, CHOSEN, _DEEP], "interpolate": "rgb"}
    shade = amount("jaccard", scale=scale, legend=None)
    ink = {"condition": {"test": f"datum.jaccard >= {_LIGHT_TEXT_FROM}", "value": "white"}, "value": _INK}
    layers = [
        {"mark": {"type": "rect"}, "encoding": {**place, "color": shade}},
        {"mark": {"type": "text", "fontSize": 11}, "encoding": {**place, "text": {"field": "percent"}, "color": ink}},
    ]
    note = (
        "Rows that both methods chose, in percent of those that at least one of them chose (Jaccard). "
        f"By chance, two choices share about {format_chance(comparison['by_chance']['jaccard'])}."
    )
    spec = chart(max(90, 28 * len(names)), cells, layer=layers)
    return Figure("overlap of methods", "Overlap of the choices", note, spec, wide=True, section="comparison")
