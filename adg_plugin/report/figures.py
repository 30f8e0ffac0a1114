"""The figures of a report as Vega-Lite specifications with their data, for the page and for static files alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]
Spec = dict[str, Any]

POOL, CHOSEN = "#8b95a5", "#2f6fed"  # both are told apart on white and on black, and by readers who see no red
_GROUPS = {"domain": ["left", "chosen"], "range": [POOL, CHOSEN]}
_SHARES = {"domain": ["pool", "chosen"], "range": [POOL, CHOSEN]}
_HISTOGRAM_BARS = 50
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded from there

LEGEND = {"title": None, "orient": "top"}
OF_GROUPS: Spec = {"field": "row", "type": "nominal", "scale": _GROUPS, "legend": LEGEND}
_OF_SHARES: Spec = {"field": "of", "type": "nominal", "scale": _SHARES, "legend": LEGEND}
_PERCENT = {"title": "share of rows", "axis": {"format": ".0%"}}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and what to see in it."""

    name: str  # of its files
    title: str  # of its section
    note: str  # a sentence for readers
    spec: Spec  # Vega-Lite, data included
    wide: bool = False  # takes the page's whole width
    section: str = ""  # of the page that it stands in; "": with the other figures


def chart(height: int, values: Sequence[dict[str, Any]], **rest: Any) -> Spec:
    """Return a specification as wide as its place, of a height in pixels, with the data in it."""
    return {"$schema": _SCHEMA, "width": "container", "height": height, "data": {"values": list(values)}, **rest}


def amount(field: str, **more: Any) -> Spec:
    """Return how a number of the data is shown."""
    return {"field": field, "type": "quantitative", **more}


def tips(*names: str) -> list[Spec]:
    """Return the fields that are shown where the mouse points."""
    return [{"field": name} for name in names]


def rule(axis: str, at: float) -> Spec:
    """Return a dashed line across an axis, as a layer."""
    mark = {"type": "rule", "strokeDash": [4, 4], "color": "#7a8290"}
    return {"data": {"values": [{"at": at}]}, "mark": mark, "encoding": {axis: amount("at", scale={"zero": False})}}


def pairs(height: int, bars: Sequence[dict[str, Any]], what: str, of: str, length: Spec, colour: Spec) -> Spec:
    """Return bars from left to right, for each `what` one of each `of` side by side, as `colour` has them."""
    encoding = {
        "y": {"field": what, "type": "nominal", "title": None, "sort": list(dict.fromkeys(bar[what] for bar in bars))},
        "yOffset": {"field": of, "sort": colour["scale"]["domain"]},
        "x": length,
        "color": colour,
        "tooltip": tips(*bars[0]),
    }
    return chart(height, bars, mark={"type": "bar"}, encoding=encoding)


def scores(score: Floats, chosen: Flags, cuts: Floats, note: str | None = None) -> Figure:
    """Return the distribution of the score among chosen and left rows, with the cuts of the bins.

    Args:
        score: (N,).
        chosen: (N,).
        cuts: (B,) the lowest chosen score of each bin that has one; may be empty.
        note: default: on the cuts of bins.
    """
    edges = np.histogram_bin_edges(score, bins=_HISTOGRAM_BARS)
    values = []
    for name, rows in (("left", ~chosen), ("chosen", chosen)):
        counts = np.histogram(score[rows], edges)[0]
        values += [
            {"from": short(a), "to": short(b), "rows": int(n), "row": name}
            for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
            if n
        ]
    encoding = {
        "x": amount("from", bin={"binned": True}, title="score"),
        "x2": {"field": "to"},
        "y": amount("rows", stack=True),
        "color": OF_GROUPS,
        "tooltip": tips("from", "to", "row", "rows"),
    }
    layers: list[Spec] = [{"mark": {"type": "bar", "binSpacing": 0}, "encoding": encoding}]
    if len(cuts):
        low, middle, high = (float(v) for v in np.percentile(cuts, (5, 50, 95)))
        layers.append(rule("x", middle))
        most = f"{middle:.3f} in the median (dashed), {low:.3f} to {high:.3f} in most"
        note = note or f"Each bin has a cut of its own: {most}."
    note = note or "Chosen and left rows by score."
    return Figure("scores", "Scores and cut", note, chart(220, values, layer=layers))


def composition(name: str, values: Sequence[dict[str, Any]], *, sampled: bool = False) -> Figure:
    """Return the make-up of chosen rows against the pool's: one pair of bars per value of a column.

    Args:
        name: of the column.
        sampled: only some rows were looked at.
        values: `value`, `pool`, `chosen` (rows) of each, most frequent first.
    """
    total = {which: max(1, sum(value[which] for value in values)) for which in ("pool", "chosen")}
    bars = [
        {"value": value["value"], "of": which, "share": short(value[which] / total[which]), "rows": value[which]}
        for value in values
        for which in ("pool", "chosen")
    ]
    spec = pairs(max(60, 30 * len(values)), bars, "value", "of", amount("share", **_PERCENT), _OF_SHARES)
    samples = "; random samples of both" if sampled else ""
    return Figure(name, name.capitalize(), f"Rows by {name}, chosen against pool{samples}.", spec)


def distribution(
    name: str, title: str, values: npt.NDArray[np.integer] | Floats, chosen: Flags, *, upper: float = 99
) -> Figure:
    """Return the distribution of a number among the chosen rows and in the pool.

    Args:
        title: of the number.
        values: (N,).
        chosen: (N,).
        upper: percentile beyond which nothing is shown: lengths have long tails.
    """
    # As many as the chosen rows can fill without being all noise.
    count = int(np.clip(2 * int(chosen.sum()) ** (1 / 3), 6, 30))
    edges = np.histogram_bin_edges(values[values <= np.percentile(values, upper)], bins=count)
    bars = []
    for which, rows in (("pool", np.ones_like(chosen)), ("chosen", chosen)):
        counts = np.histogram(values[rows], edges)[0] / max(1, int(rows.sum()))
        middles = (edges[:-1] + edges[1:]) / 2
        bars += [{"at": short(at), "share": short(n), "of": which} for at, n in zip(middles, counts, strict=True)]
    encoding = {"x": amount("at", title=title), "y": amount("share", **_PERCENT), "color": _OF_SHARES}
    spec = chart(200, bars, mark={"type": "line", "interpolate": "step"}, encoding=encoding)
    beyond = f"; the highest {100 - upper:.0f} % are not shown" if upper < 100 else ""
    return Figure(name, heading(title), f"Chosen rows against the pool by {title}{beyond}.", spec)


def heading(title: str) -> str:
    """Return a title that begins with a capital letter."""
    return title[:1].upper() + title[1:]  # `capitalize` would make "nll" of "NLL"


def short(value: Any) -> float:
    """Return a number of five digits."""
    return float(f"{float(value):.5g}")
