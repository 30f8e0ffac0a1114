"""compare.json of a run folder -> what the report shows of the choices of several methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.report.figures import CHOSEN, Figure, chart
from adg_plugin.report.side_files import COMPARE, format_chance, read_comparison
from adg_plugin.selectors.registry import choice_settings
from adg_plugin.store import RunReader

_PALE, _DEEP, _INK = "#eaf0fd", "#17408f", "#1d232d"  # the cells are the same on white and on black
_LIGHT_TEXT_FROM = 0.45  # there, dark and white text have the same contrast, 4 to 1
_NAME_PIXELS = 110  # of an axis label; a phone has 390 in all
_LENGTHS = ("prompt_tokens", "reference_words")
_FIX = "delete it and run adg compare again"


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
        about = _checked(found)
        beside = None if manifest is None else _beside(found, manifest)
    except KeyError as err:
        raise StoreError(f"{path} has no {err.args[0]}: {_FIX}") from err
    except (TypeError, ValueError, AttributeError) as err:
        raise StoreError(f"{path} is not as adg compare writes it ({err}): {_FIX}") from err
    return {**about, "selection": beside}


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the contents, after a look at all that the page cannot do without.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: something is missing, or is something else.
    """
    methods, names = [_method(one) for one in found["methods"]], [str(name) for name in found["names"]]
    if names != [one["name"] for one in methods if one["error"] is None]:
        raise ValueError("names are not those of the methods that chose")
    datetime.fromisoformat(found["created"])
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
        "jaccard": _matrix(found["jaccard"], names),
        "by_chance": {**found["by_chance"], "jaccard": _matrix(found["by_chance"]["jaccard"], names)},
        "chosen_by": {key: int(found["chosen_by"][key]) for key in ("all", "none")},
        "alone": [int(rows) for rows in _of_each(found["alone"], names)],
        "lengths": [_medians(of) for of in _of_each(found["lengths"], names)],
        "lengths_of_pool": _medians(found["lengths_of_pool"]),
        "bins": None if found["bins"] is None else _bins(found["bins"], names),
        "coverage": [
            {"kind": str(of["kind"]), "values": [_value(value, names) for value in of["values"]]}
            for of in found["coverage"]
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


def _of_each(values: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values for {len(names)} methods")
    return values


def _matrix(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> list[list[float]]:
    return [[_number(value) for value in _of_each(row, names)] for row in _of_each(rows, names)]


def _number(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} for a number")  # no browser's JSON has a name for it
    return float(value)


def _medians(of: dict[str, Any]) -> dict[str, Any]:
    return {**of, **{name: {**of[name], "p50": _number(of[name]["p50"])} for name in _LENGTHS}}


def _bins(bins: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        **bins,
        "total": int(bins["total"]),
        "reached": [int(count) for count in _of_each(bins["reached"], names)],
        "largest_share": [_number(share) for share in _of_each(bins["largest_share"], names)],
        "without_a_bin": [int(rows) for rows in _of_each(bins["without_a_bin"], names)],
    }


def _value(value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    name = value["value"]
    chosen = [int(rows) for rows in _of_each(value["chosen"], names)]
    return {"value": name if name is None else str(name), "pool": int(value["pool"]), "chosen": chosen}


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
        f"By chance, two choices share about {format_chance(comparison['by_chance']['jaccard'])}."
    )
    spec = chart(max(90, 28 * len(names)), cells, layer=layers)
    return Figure("overlap of methods", "Overlap of the choices", note, spec, wide=True, section="comparison")
