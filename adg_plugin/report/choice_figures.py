"""Which figures the report of a choice has, and the numbers in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.report import figures
from adg_plugin.report.facets import Facets
from adg_plugin.report.figures import Figure, Flags, Floats
from adg_plugin.selectors.base import Selector
from adg_plugin.selectors.columns import part_names

_POINTS = 6_000  # of the plane
_STEPS = 2_000  # points of a line


def adg_figures(
    table: pa.Table,
    vectors: npt.NDArray[np.float16],
    facets: Facets,
    manifest: dict[str, Any],
    medians: tuple[float, float],
    rng: np.random.Generator,
) -> list[Figure]:
    """Return the figures of a choice by ADG, in their order on the page.

    Args:
        table: of scores, N rows.
        vectors: (N, H) of the prompts.
        facets: of the same rows.
        medians: of dispersion and anisotropy.
        rng: picks the points of the plane.
    """
    ids = table["id"].to_pylist()
    names = ("dispersion", "anisotropy", "score", "chosen", "bin", "rank_in_bin", "bin_quota")
    dispersion, anisotropy, score, chosen, bins, rank, quota = (table[name].to_numpy() for name in names)
    shown = np.sort(rng.permutation(len(table))[:_POINTS])
    # Of the other subsets the edge is elsewhere, or there are two.
    cuts = score[chosen & (rank == quota)] if manifest["config"]["subset"] == "top" else score[:0]
    found = [
        figures.plane(
            [ids[row] for row in shown],
            dispersion[shown],
            anisotropy[shown],
            score[shown],
            chosen[shown],
            medians,
            len(table),
        ),
        figures.scores(score, chosen, cuts),
        figures.shares(manifest["score"]["share_of_variance"], manifest["score"]["spearman"]),
        _map(vectors, bins, score, chosen, facets.instructions),
    ]
    of_prompts, *of_references = _lengths(facets, chosen)
    per_answer = table["answer_tokens"].to_numpy() // np.maximum(1, table["num_answers"].to_numpy())
    found += [of_prompts, figures.distribution("answer_tokens", "tokens per answer", per_answer, chosen)]
    found += of_references
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


def _map(
    vectors: Floats, bins: npt.NDArray[np.integer], score: Floats, chosen: Flags, instructions: list[str]
) -> Figure:
    """Return the bins' mean prompt vectors on their two main directions."""
    count = int(bins.max()) + 1
    sizes = np.bincount(bins, minlength=count)
    order = np.argsort(bins, kind="stable")
    starts = np.cumsum(sizes) - sizes
    means = np.zeros((count, vectors.shape[1]))
    best = [0] * count
    for bin_ in np.flatnonzero(sizes):
        rows_of = order[starts[bin_] : starts[bin_] + sizes[bin_]]
        means[bin_] = vectors[rows_of].astype(np.float64).mean(0)
        best[bin_] = int(rows_of[score[rows_of].argmax()])
    weights = np.sqrt(sizes)[:, None]
    centred = (means - np.average(means, axis=0, weights=sizes)) * weights
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    places = np.zeros((count, 2))
    places[:, : len(axes)] = (centred / np.maximum(weights, 1)) @ axes.T
    texts = [instructions[row][:100] for row in best]
    return figures.bins_map(places, sizes, np.bincount(bins[chosen], minlength=count), texts)


def method_figures(table: pa.Table, facets: Facets, chooser: Selector) -> list[Figure]:
    """Return the figures of a choice by another method, in their order on the page.

    A number that is the same everywhere has none.

    Args:
        table: of scores, N rows.
        facets: of the same rows.
    """
    chosen, rank = table["chosen"].to_numpy(), table["rank"].to_numpy()
    found = []
    score = table["score"].to_numpy()
    # Random numbers say nothing of the rows, and a method that goes step by step scores only what it chose.
    if not chooser.random_scores and not np.isnan(score).any() and np.ptp(score) > 0:
        cut = score[chosen].min()
        note = f"Chosen and left rows by score. The cut is at {cut:.4g} (dashed), the lowest score that was chosen."
        found.append(replace(figures.scores(score, chosen, np.array([cut])), note=note))
    for name in part_names(table):  # of `reference_tokens` the words of the reference tell the same
        values, title = table[name].to_numpy().astype(np.float64), chooser.part_meanings.get(name, name)
        known = ~np.isnan(values)
        if name == "reference_tokens" or not known.any() or np.ptp(values[known]) == 0:
            continue
        if known.all():
            found.append(replace(figures.distribution(name, title, values, chosen), title=_heading(title)))
        else:
            found.append(_steps(name, title, rank[known], values[known]))
    return [*found, *_lengths(facets, chosen)]


def _steps(name: str, title: str, rank: Floats, values: Floats) -> Figure:
    """Return a number of the chosen rows in the order of choice; `rank` and `values` are (M,), of rows that have it."""
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
