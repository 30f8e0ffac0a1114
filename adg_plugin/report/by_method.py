"""The figures of a choice by another method than ADG."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.report import figures
from adg_plugin.report.drawn import compositions, lengths
from adg_plugin.report.facets import Facets
from adg_plugin.report.figures import Figure, Floats
from adg_plugin.selectors.base import Selector
from adg_plugin.selectors.columns import part_names

_STEPS = 2_000  # points of a line
_LENGTHS = ("reference_tokens",)  # of which the words of the reference tell the same


def method_figures(
    table: pa.Table, facets: Facets, chooser: Selector, composition: dict[str, Any], sampled: Collection[str]
) -> list[Figure]:
    """Return the figures, in their order on the page; a number that is the same everywhere has none.

    Args:
        table: of scores, N rows.
        facets: of the same rows.
        chooser: the selector.
        composition: by facet, its values and their rows.
        sampled: facets of which a sample is known.
    """
    chosen, rank = table["chosen"].to_numpy(), table["rank"].to_numpy()
    found = []
    score = table["score"].to_numpy()
    # Random numbers say nothing of the rows, and a method that goes step by step scores only what it chose.
    if not chooser.random_scores and not np.isnan(score).any() and np.ptp(score) > 0:
        found.append(_scores(score, chosen))
    for name in part_names(table):
        values, title = table[name].to_numpy().astype(np.float64), chooser.part_meanings.get(name, name)
        known = ~np.isnan(values)
        if name in _LENGTHS or not known.any() or np.ptp(values[known]) == 0:
            continue
        if known.all():
            found.append(replace(figures.distribution(name, title, values, chosen), title=_heading(title)))
        else:
            found.append(_steps(name, title, rank[known], values[known]))
    return [*found, *lengths(facets, chosen), *compositions(composition, sampled)]


def _scores(score: Floats, chosen: npt.NDArray[np.bool_]) -> Figure:
    cut = score[chosen].min()
    note = f"Chosen and left rows by score. The cut is at {cut:.4g} (dashed), the lowest score that was chosen."
    return replace(figures.scores(score, chosen, np.array([cut])), note=note)


def _steps(name: str, title: str, rank: Floats, values: Floats) -> Figure:
    """Return a number of the chosen rows in the order of choice.

    Args:
        name: of the figure.
        title: of the number.
        rank: (M,) of the rows that have it.
        values: (M,).
    """
    order = np.argsort(rank, kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(_STEPS, len(order))).astype(np.int64))]
    points = [{"rank": int(rank[row]), "value": float(f"{values[row]:.5g}")} for row in order]
    spec = figures.chart(
        200,
        points,
        mark={"type": "line", "color": figures.CHOSEN},
        encoding={
            "x": {"field": "rank", "type": "quantitative", "title": "rank"},
            "y": {"field": "value", "type": "quantitative", "title": name, "scale": {"zero": False}},
            "tooltip": [{"field": "rank"}, {"field": "value"}],
        },
    )
    return Figure(name, _heading(title), "Chosen rows in the order of choice.", spec)


def _heading(title: str) -> str:
    return title[:1].upper() + title[1:]  # `capitalize` would make "nll" of "NLL"
