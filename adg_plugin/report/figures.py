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
_PARTS = {"domain": ["dispersion", "anisotropy"], "range": ["#0f9d8a", "#c2621b"]}
_LEGEND = {"title": None, "orient": "top"}
_ZOOM = {"name": "zoom", "select": "interval", "bind": "scales"}
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded from there


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and what to see in it.

    Attributes:
        name: of its files.
        title: of its section.
        note: a sentence for readers.
        spec: Vega-Lite, data included.
        wide: takes the page's whole width.
        section: of the page that it stands in; "": with the other figures.
    """

    name: str
    title: str
    note: str
    spec: Spec
    wide: bool = False
    section: str = ""


def described(figure: Figure) -> Spec:
    """Return the specification with the figure's title and note as what screen readers say of it."""
    return {"description": f"{figure.title}. {figure.note}", **figure.spec}


def chart(height: int, values: Sequence[dict[str, Any]], **rest: Any) -> Spec:
    """Return a specification as wide as its place, of a height in pixels, with the data in it."""
    return {"$schema": _SCHEMA, "width": "container", "height": height, "data": {"values": list(values)}, **rest}


def plane(
    ids: Sequence[str],
    dispersion: Floats,
    anisotropy: Floats,
    score: Floats,
    chosen: Flags,
    medians: tuple[float, float],
    rows: int,
) -> Figure:
    """Return the plane of dispersion and anisotropy, a point for each given row.

    Args:
        ids: (M,) of the rows shown, a sample where there are many; `dispersion`, `anisotropy`, `score` and `chosen`
            are (M,), too.
        medians: of dispersion and anisotropy over all rows; they part the quadrants.
        rows: scored, N.
    """
    points = [
        {"id": id, "D": _short(d), "I": _short(i), "score": _short(s), "row": "chosen" if c else "left"}
        for id, d, i, s, c in zip(ids, dispersion, anisotropy, score, chosen, strict=True)
    ]
    encoding = {
        "x": {"field": "D", "type": "quantitative", "title": "dispersion D", "scale": {"zero": False}},
        "y": {"field": "I", "type": "quantitative", "title": "anisotropy I", "scale": {"zero": False}},
        "color": {"field": "row", "type": "nominal", "scale": _GROUPS, "legend": _LEGEND},
        "order": {"field": "row", "sort": "descending"},  # the chosen ones on top
        "tooltip": [{"field": name} for name in ("id", "D", "I", "score", "row")],
    }
    mark = {"type": "point", "filled": True, "size": 22, "opacity": 0.65}
    dots = {"mark": mark, "encoding": encoding, "params": [_ZOOM]}
    spec = chart(380, points, layer=[dots, _rule("x", medians[0]), _rule("y", medians[1])])
    note = (
        "Right: answers far apart. Up: in many directions. Dashed lines are the medians and part the four quadrants. "
        "Drag and scroll to zoom; click a point to see its row."
        + (f" {len(points):,} of {rows:,} rows, at random." if len(points) < rows else "")
    )
    return Figure("plane", "Dispersion and anisotropy", note, spec, wide=True)


def _rule(axis: str, at: float) -> Spec:
    mark = {"type": "rule", "strokeDash": [4, 4], "color": "#7a8290"}
    place = {"field": "at", "type": "quantitative", "scale": {"zero": False}}
    return {"data": {"values": [{"at": at}]}, "mark": mark, "encoding": {axis: place}}


def scores(score: Floats, chosen: Flags, cuts: Floats) -> Figure:
    """Return the distribution of the score among chosen and left rows, with the cuts of the bins.

    Args:
        score: (N,).
        chosen: (N,).
        cuts: (B,) the lowest chosen score of each bin that has one; may be empty.
    """
    edges = np.histogram_bin_edges(score, bins=_HISTOGRAM_BARS)
    values = []
    for name, rows in (("left", ~chosen), ("chosen", chosen)):
        counts = np.histogram(score[rows], edges)[0]
        values += [
            {"from": _short(a), "to": _short(b), "rows": int(n), "row": name}
            for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
            if n
        ]
    encoding = {
        "x": {"field": "from", "type": "quantitative", "bin": {"binned": True}, "title": "score"},
        "x2": {"field": "to"},
        "y": {"field": "rows", "type": "quantitative", "stack": True},
        "color": {"field": "row", "type": "nominal", "scale": _GROUPS, "legend": _LEGEND},
        "tooltip": [{"field": name} for name in ("from", "to", "row", "rows")],
    }
    layers: list[Spec] = [{"mark": {"type": "bar", "binSpacing": 0}, "encoding": encoding}]
    note = "Chosen and left rows by score."
    if len(cuts):
        low, middle, high = (float(v) for v in np.percentile(cuts, (5, 50, 95)))
        layers.append(_rule("x", middle))
        note = f"Each bin has a cut of its own: {middle:.3f} in the median (dashed), {low:.3f} to {high:.3f} in most."
    return Figure("scores", "Scores and cut", note, chart(220, values, layer=layers))


def shares(of_variance: dict[str, float], correlation: dict[str, float]) -> Figure:
    """Return how much of the score's variance each part accounts for, and its rank correlation with the score."""
    values = [
        {"part": part, "what": what, "value": _short(table[part])}
        for what, table in (("share of variance", of_variance), ("rank correlation", correlation))
        for part in ("dispersion", "anisotropy")
    ]
    spec = chart(
        180,
        values,
        mark={"type": "bar"},
        encoding={
            "y": {"field": "what", "type": "nominal", "title": None, "sort": ["share of variance", "rank correlation"]},
            "yOffset": {"field": "part", "sort": ["dispersion", "anisotropy"]},
            "x": {"field": "value", "type": "quantitative", "title": None},
            "color": {"field": "part", "type": "nominal", "legend": _LEGEND, "scale": _PARTS},
            "tooltip": [{"field": name} for name in ("part", "what", "value")],
        },
    )
    note = "Which part the score follows. Near 100 % for one and a negative correlation for the other deserve a look."
    return Figure("shares", "What the score is made of", note, spec)


def bins_map(
    places: Floats, rows: npt.NDArray[np.integer], chosen: npt.NDArray[np.integer], texts: Sequence[str]
) -> Figure:
    """Return the bins on the two main directions of their prompt vectors.

    Args:
        places: (B, 2).
        rows: (B,) of each bin.
        chosen: (B,) of these.
        texts: (B,) the beginning of an instruction of each.
    """
    values = []
    for bin_, ((x, y), n, c, text) in enumerate(zip(places, rows, chosen, texts, strict=True)):
        if n:
            counts = {"bin": bin_, "rows": int(n), "chosen": int(c), "share": _short(c / n)}
            values.append({"x": _short(x), "y": _short(y), **counts, "row": text})
    axis = {"labels": False, "ticks": False, "title": None, "grid": False}
    place = {"type": "quantitative", "axis": axis, "scale": {"zero": False, "padding": 20}}
    spec = chart(
        300,
        values,
        mark={"type": "circle", "opacity": 0.8},
        params=[_ZOOM],
        encoding={
            "x": {"field": "x", **place},
            "y": {"field": "y", **place},
            "size": {"field": "rows", "type": "quantitative", "legend": None, "scale": {"rangeMax": 600}},
            "color": {
                "field": "share",
                "type": "quantitative",
                "scale": {"scheme": "viridis"},
                "legend": {"title": "share chosen", "orient": "top", "format": ".0%"},
            },
            "tooltip": [{"field": name} for name in ("bin", "rows", "chosen", "row")],
        },
    )
    note = "Each circle is a bin of prompts, its size the rows, its colour the share of them that was chosen."
    return Figure("bins", "Bins", note, spec)


def composition(name: str, values: Sequence[dict[str, Any]], *, sampled: bool = False) -> Figure:
    """Return the make-up of chosen rows against the pool's: one pair of bars per value of a column.

    Args:
        name: of the column.
        sampled: only some rows were looked at.
        values: `value`, `pool`, `chosen` (rows) of each, most frequent first.
    """
    total = {which: max(1, sum(value[which] for value in values)) for which in ("pool", "chosen")}
    bars = [
        {"value": value["value"], "of": which, "share": _short(value[which] / total[which]), "rows": value[which]}
        for value in values
        for which in ("pool", "chosen")
    ]
    spec = chart(
        max(60, 30 * len(values)),
        bars,
        mark={"type": "bar"},
        encoding={
            "y": {"field": "value", "type": "nominal", "title": None, "sort": [v["value"] for v in values]},
            "yOffset": {"field": "of", "sort": ["pool", "chosen"]},
            "x": {"field": "share", "type": "quantitative", "title": "share of rows", "axis": {"format": ".0%"}},
            "color": {"field": "of", "type": "nominal", "scale": _SHARES, "legend": _LEGEND},
            "tooltip": [{"field": name} for name in ("value", "of", "share", "rows")],
        },
    )
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
        bars += [{"at": _short(at), "share": _short(n), "of": which} for at, n in zip(middles, counts, strict=True)]
    spec = chart(
        200,
        bars,
        mark={"type": "line", "interpolate": "step"},
        encoding={
            "x": {"field": "at", "type": "quantitative", "title": title},
            "y": {"field": "share", "type": "quantitative", "title": "share of rows", "axis": {"format": ".0%"}},
            "color": {"field": "of", "type": "nominal", "scale": _SHARES, "legend": _LEGEND},
        },
    )
    beyond = f"; the highest {100 - upper:.0f} % are not shown" if upper < 100 else ""
    return Figure(name, title.capitalize(), f"Chosen rows against the pool by {title}{beyond}.", spec)


def _short(value: Any) -> float:
    return float(f"{float(value):.5g}")
