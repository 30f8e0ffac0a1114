"""Which figures the report of a choice has, and the numbers in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.report import figures
from adg_plugin.report.facets import Facets
from adg_plugin.report.figures import Figure, Flags, Floats, amount, short, tips
from adg_plugin.selectors.base import Selector
from adg_plugin.selectors.columns import part_names

_POINTS = 6_000  # of the plane
_STEPS = 2_000  # points of a line
_PARTS = {"domain": ["dispersion", "anisotropy"], "range": ["#0f9d8a", "#c2621b"]}
_ZOOM = {"name": "zoom", "select": "interval", "bind": "scales"}


def adg_figures(
    table: pa.Table,
    vectors: npt.NDArray[np.float16],
    facets: Facets,
    manifest: dict[str, Any],
    rng: np.random.Generator,
) -> list[Figure]:
    """Return the figures of a choice by ADG, in their order on the page.

    Args:
        table: of scores, N rows.
        vectors: (N, H) of the prompts.
        facets: of the same rows.
        rng: picks the points of the plane.
    """
    names = ("score", "chosen", "rank_in_bin", "bin_quota")
    score, chosen, rank, quota = (table[name].to_numpy() for name in names)
    # Of the other subsets the edge is elsewhere, or there are two.
    cuts = score[chosen & (rank == quota)] if manifest["config"]["subset"] == "top" else score[:0]
    of_prompts, *of_references = _lengths(facets, chosen)
    per_answer = table["answer_tokens"].to_numpy() // np.maximum(1, table["num_answers"].to_numpy())
    found = [
        _plane(table, rng),
        figures.scores(score, chosen, cuts),
        _shares(manifest["score"]),
        _bins(table, vectors, facets.instructions),
        of_prompts,
        figures.distribution("answer_tokens", "tokens per answer", per_answer, chosen),
        *of_references,
    ]
    if "agreement" in table.column_names:
        agreement = table["agreement"].to_numpy()
        known = ~np.isnan(agreement)
        title = "agreement with the reference"
        found.append(figures.distribution("agreement", title, agreement[known], chosen[known], upper=100))
    return found


def _lengths(facets: Facets, chosen: Flags) -> list[Figure]:
    """Return the lengths of the prompts, and of the reference responses where there are any."""
    found = [figures.distribution("prompt_tokens", "prompt tokens", facets.prompt_tokens, chosen)]
    if facets.reference_words.any():
        found.append(figures.distribution("reference_words", "words of the reference", facets.reference_words, chosen))
    return found


def _plane(table: pa.Table, rng: np.random.Generator) -> Figure:
    """Return the plane of dispersion and anisotropy, a point for each row, or for each of a sample of many."""
    shown = table.take(pa.array(np.sort(rng.permutation(len(table))[:_POINTS])))
    points = [
        {
            "id": row["id"],
            "D": short(row["dispersion"]),
            "I": short(row["anisotropy"]),
            "score": short(row["score"]),
            "row": "chosen" if row["chosen"] else "left",
        }
        for row in shown.to_pylist()
    ]
    encoding = {
        "x": amount("D", title="dispersion D", scale={"zero": False}),
        "y": amount("I", title="anisotropy I", scale={"zero": False}),
        "color": figures.OF_GROUPS,
        "order": {"field": "row", "sort": "descending"},  # the chosen ones on top
        "tooltip": tips("id", "D", "I", "score", "row"),
    }
    mark = {"type": "point", "filled": True, "size": 22, "opacity": 0.65}
    medians = [
        figures.rule(axis, float(np.median(table[name].to_numpy())))
        for axis, name in (("x", "dispersion"), ("y", "anisotropy"))
    ]
    spec = figures.chart(380, points, layer=[{"mark": mark, "encoding": encoding, "params": [_ZOOM]}, *medians])
    note = (
        "Right: answers far apart. Up: in many directions. Dashed lines are the medians and part the four quadrants. "
        "Drag and scroll to zoom; click a point to see its row."
        + (f" {len(points):,} of {len(table):,} rows, at random." if len(points) < len(table) else "")
    )
    return Figure("plane", "Dispersion and anisotropy", note, spec, wide=True)


def _shares(score: dict[str, Any]) -> Figure:
    """Return how much of the score's variance each part accounts for, and its rank correlation with the score."""
    values = [
        {"part": part, "what": what, "value": short(score[name][part])}
        for what, name in (("share of variance", "share_of_variance"), ("rank correlation", "spearman"))
        for part in ("dispersion", "anisotropy")
    ]
    colour = {"field": "part", "type": "nominal", "legend": figures.LEGEND, "scale": _PARTS}
    spec = figures.pairs(180, values, "what", "part", amount("value", title=None), colour)
    note = "Which part the score follows. Near 100 % for one and a negative correlation for the other deserve a look."
    return Figure("shares", "What the score is made of", note, spec)


def _bins(table: pa.Table, vectors: Floats, instructions: list[str]) -> Figure:
    """Return the bins' mean prompt vectors on their two main directions, each with its best row."""
    bins, score, chosen = (table[name].to_numpy() for name in ("bin", "score", "chosen"))
    count = int(bins.max()) + 1
    sizes, taken = np.bincount(bins, minlength=count), np.bincount(bins[chosen], minlength=count)
    rows_of = np.split(np.argsort(bins, kind="stable"), np.cumsum(sizes)[:-1])
    filled = np.flatnonzero(sizes)
    means = np.zeros((count, vectors.shape[1]))
    for bin_ in filled:
        means[bin_] = vectors[rows_of[bin_]].astype(np.float64).mean(0)
    weights = np.sqrt(sizes)[:, None]
    centred = (means - np.average(means, axis=0, weights=sizes)) * weights
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    places = np.zeros((count, 2))
    places[:, : len(axes)] = (centred / np.maximum(weights, 1)) @ axes.T
    values = [
        {
            "x": short(places[bin_, 0]),
            "y": short(places[bin_, 1]),
            "bin": int(bin_),
            "rows": int(sizes[bin_]),
            "chosen": int(taken[bin_]),
            "share": short(taken[bin_] / sizes[bin_]),
            "row": instructions[rows_of[bin_][score[rows_of[bin_]].argmax()]][:100],
        }
        for bin_ in filled
    ]
    axis = {"labels": False, "ticks": False, "title": None, "grid": False}
    place = {"axis": axis, "scale": {"zero": False, "padding": 20}}
    legend = {"title": "share chosen", "orient": "top", "format": ".0%"}
    encoding = {
        "x": amount("x", **place),
        "y": amount("y", **place),
        "size": amount("rows", legend=None, scale={"rangeMax": 600}),
        "color": amount("share", scale={"scheme": "viridis"}, legend=legend),
        "tooltip": tips("bin", "rows", "chosen", "row"),
    }
    spec = figures.chart(300, values, mark={"type": "circle", "opacity": 0.8}, params=[_ZOOM], encoding=encoding)
    note = "Each circle is a bin of prompts, its size the rows, its colour the share of them that was chosen."
    return Figure("bins", "Bins", note, spec)


def method_figures(table: pa.Table, facets: Facets, chooser: Selector) -> list[Figure]:
    """Return the figures of a choice by another method, in their order on the page.

    A number that is the same everywhere has none.

    Args:
        table: of scores, N rows.
        facets: of the same rows.
    """
    chosen, rank, score = (table[name].to_numpy() for name in ("chosen", "rank", "score"))
    found = []
    # Random numbers say nothing of the rows, and a method that goes step by step scores only what it chose.
    if not chooser.random_scores and not np.isnan(score).any() and np.ptp(score) > 0:
        cut = score[chosen].min()
        note = f"Chosen and left rows by score. The cut is at {cut:.4g} (dashed), the lowest score that was chosen."
        found.append(figures.scores(score, chosen, np.array([cut]), note))
    for name in part_names(table):  # of `reference_tokens` the words of the reference tell the same
        values, title = table[name].to_numpy().astype(np.float64), chooser.part_meanings.get(name, name)
        known = ~np.isnan(values)
        if name == "reference_tokens" or not known.any() or np.ptp(values[known]) == 0:
            continue
        if known.all():
            found.append(figures.distribution(name, title, values, chosen))
        else:
            found.append(_steps(name, title, rank[known], values[known]))
    return [*found, *_lengths(facets, chosen)]


def _steps(name: str, title: str, rank: Floats, values: Floats) -> Figure:
    """Return a number of the chosen rows in the order of choice; `rank` and `values` are (M,), of rows that have it."""
    order = np.argsort(rank, kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(_STEPS, len(order))).astype(np.int64))]
    points = [{"rank": int(rank[row]), "value": short(values[row])} for row in order]
    encoding = {
        "x": amount("rank", title="rank"),
        "y": amount("value", title=name, scale={"zero": False}),
        "tooltip": tips("rank", "value"),
    }
    spec = figures.chart(200, points, mark={"type": "line", "color": figures.CHOSEN}, encoding=encoding)
    return Figure(name, figures.heading(title), "Chosen rows in the order of choice.", spec)
