"""Which figures the report of a choice by ADG has, and the numbers in them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.report import figures
from adg_plugin.report.facets import Facets
from adg_plugin.report.figures import Figure

_POINTS = 6_000  # of the plane


def all_figures(
    table: pa.Table,
    vectors: npt.NDArray[np.float16],
    facets: Facets,
    manifest: dict[str, Any],
    medians: tuple[float, float],
    composition: dict[str, Any],
    sampled: Collection[str],
    rng: np.random.Generator,
) -> list[Figure]:
    """Return the figures, in their order on the page.

    Args:
        table: of scores, N rows.
        vectors: (N, H) of the prompts.
        facets: of the same rows.
        manifest: of the run.
        medians: of dispersion and anisotropy.
        composition: by facet, its values and their rows.
        sampled: facets of which a sample is known.
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
    of_prompts, *of_references = lengths(facets, chosen)
    per_answer = table["answer_tokens"].to_numpy() // np.maximum(1, table["num_answers"].to_numpy())
    found += [of_prompts, figures.distribution("answer_tokens", "tokens per answer", per_answer, chosen)]
    found += of_references
    if "agreement" in table.column_names:
        agreement = table["agreement"].to_numpy()
        known = ~np.isnan(agreement)
        found.append(
            figures.distribution(
                "agreement", "agreement with the reference", agreement[known], chosen[known], upper=100
            )
        )
    return [*found, *compositions(composition, sampled)]


def lengths(facets: Facets, chosen: npt.NDArray[np.bool_]) -> list[Figure]:
    """Return the lengths of the prompts, and of the reference responses where there are any."""
    found = [figures.distribution("prompt_tokens", "prompt tokens", facets.prompt_tokens, chosen)]
    if facets.reference_words.any():
        found.append(figures.distribution("reference_words", "words of the reference", facets.reference_words, chosen))
    return found


def compositions(composition: dict[str, Any], sampled: Collection[str]) -> list[Figure]:
    """Return what pool and choice are made of, a figure for each facet."""
    return [figures.composition(name, values, sampled=name in sampled) for name, values in composition.items()]


def _map(
    vectors: npt.NDArray[np.float16],
    bins: npt.NDArray[np.integer],
    score: npt.NDArray[np.float64],
    chosen: npt.NDArray[np.bool_],
    instructions: list[str],
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
