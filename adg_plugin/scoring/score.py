"""Stored geometry -> scores, bins, the choice and their table. Never touches a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.groups import Filters, ScoreSettings
from adg_plugin.data.cells import Reason
from adg_plugin.data.filters import DISAGREES, details, least_agreeing, underspecified
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.scoring.geometry import Balance, balance, combine, parts, percentiles
from adg_plugin.scoring.quota import Choice, choose, resolve_budget
from adg_plugin.store import Geometry, Rejection, RunReader

Floats = npt.NDArray[np.float64]
Assign = Callable[[npt.NDArray[np.floating], int | None, int], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Scored:
    """The choice over all eligible rows, in the order of their ids."""

    geometry: Geometry  # of these rows
    dispersion: Floats
    anisotropy: Floats
    scores: Floats
    bins: npt.NDArray[np.int32]
    choice: Choice
    balance: Balance
    warnings: tuple[str, ...]

    def chosen_ids(self) -> list[str]:
        """Return the chosen ids, best score first, ties by id."""
        rows = np.flatnonzero(self.choice.chosen)
        return [str(i) for i in self.geometry.ids[rows[np.argsort(-self.scores[rows], kind="stable")]]]

    def table(self) -> pa.Table:
        """Return what scores.parquet holds."""
        num_answers = np.empty(len(self.geometry), dtype=np.int32)
        for group in self.geometry.grams:
            num_answers[group.rows] = group.grams.shape[1]
        columns = {
            "id": pa.array(self.geometry.ids, pa.string()),
            "dispersion": self.dispersion,
            "anisotropy": self.anisotropy,
            "score": self.scores,
            "bin": self.bins,
            "rank_in_bin": self.choice.rank.astype(np.int32),
            "bin_quota": self.choice.quota.astype(np.int32),
            "chosen": self.choice.chosen,
            "reason": pa.array(self.choice.reason, pa.string()),
            "num_answers": num_answers,
            "answer_tokens": self.geometry.answer_tokens,
        }
        if not np.isnan(self.geometry.agreement).all():
            columns["agreement"] = self.geometry.agreement
        return pa.table(columns)


def eligible(run: RunReader, filters: Filters) -> Geometry:
    """Return the rows that pass the filters on sampled answers, with reasons; a StoreError without a sound pool."""
    geometry = run.geometry()
    if filters.underspecified:
        lacking = underspecified(run.answer_texts())
        rejected = np.array([id in lacking for id in geometry.ids], bool)
        rejections = [Rejection(id, Reason.UNDERSPECIFIED, lacking[id]) for id in map(str, geometry.ids[rejected])]
        geometry = geometry.without(rejected, rejections)
    if filters.asks_agreement:
        rejected = least_agreeing(geometry.agreement, filters)
        rows = zip(geometry.ids[rejected], details(geometry.agreement[rejected], filters), strict=True)
        geometry = geometry.without(rejected, [Rejection(str(id), DISAGREES, detail) for id, detail in rows])
    return geometry


def score_rows(geometry: Geometry, config: ScoreSettings) -> tuple[Floats, Floats, Floats]:
    """Return dispersion, anisotropy and score of each row, (N,) each."""
    dispersion, anisotropy = np.empty(len(geometry)), np.empty(len(geometry))
    for group in geometry.grams:
        found = parts(group.grams)
        dispersion[group.rows], anisotropy[group.rows] = found.dispersion, found.anisotropy
    return dispersion, anisotropy, combine(dispersion, anisotropy, config.score, config.weight)


def choose_rows(geometry: Geometry, config: ScoreSettings, pool_rows: int, assign: Assign = assign_bins) -> Scored:
    """Return the choice among the rows of `geometry`.

    Args:
        geometry: of the eligible rows, at least one.
        pool_rows: rows of the pool after exact duplicates, for a budget that is a fraction.
        assign: gives the bins; another than the default may remember them.
    """
    dispersion, anisotropy, scores = score_rows(geometry, config)
    budget, warning = resolve_budget(config.budget, pool_rows, len(geometry))
    bins = assign(geometry.prompt_vectors, config.bins, config.seed)
    choice = choose(geometry.ids, scores, bins, budget, config.subset)
    about = balance(dispersion, anisotropy, scores, config.score, config.weight)
    warnings = [warning] if warning else []
    if config.filters.asks_agreement and np.isnan(geometry.agreement).all():
        warnings.append("no row has an answer of its own, so the filter on agreement rejects nothing")
    return Scored(geometry, dispersion, anisotropy, scores, bins, choice, about, (*warnings, *about.warnings))


def score_summary(scored: Scored, form: str) -> dict[str, Any]:
    """Return how the parts and the score are distributed, and how much each part counts, for the manifest."""
    about, agreement = scored.balance, percentiles(scored.geometry.agreement)
    return {
        "form": form,
        "dispersion": percentiles(scored.dispersion),
        "anisotropy": percentiles(scored.anisotropy),
        "score": percentiles(scored.scores),
        "pearson": {"dispersion": about.pearson_dispersion, "anisotropy": about.pearson_anisotropy},
        "spearman": {"dispersion": about.spearman_dispersion, "anisotropy": about.spearman_anisotropy},
        "share_of_variance": {"dispersion": about.share_dispersion, "anisotropy": about.share_anisotropy},
        **({"agreement": agreement} if agreement else {}),
    }
