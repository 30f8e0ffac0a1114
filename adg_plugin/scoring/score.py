"""Stored geometry -> scores, bins, the choice and their table. Never touches a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.filters import Filters
from adg_plugin.config.scores import ScoreSettings
from adg_plugin.data.filters.agreement import DISAGREES, details, least_agreeing
from adg_plugin.data.filters.underspecified import underspecified
from adg_plugin.data.layouts import Reason
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.scoring.geometry import Balance, balance, combine, parts
from adg_plugin.scoring.quota import Choice, choose, resolve_budget
from adg_plugin.store import Geometry, Rejection, RunReader

Floats = npt.NDArray[np.float64]
Assign = Callable[[npt.NDArray[np.floating], int | None, int], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Scored:
    """The choice over all eligible rows, in the order of their ids."""

    ids: npt.NDArray[np.object_]  # (N,)
    dispersion: Floats
    anisotropy: Floats
    scores: Floats
    bins: npt.NDArray[np.int32]
    choice: Choice
    num_answers: npt.NDArray[np.int32]
    answer_tokens: npt.NDArray[np.int32]
    agreement: npt.NDArray[np.float32]
    balance: Balance
    warnings: tuple[str, ...]

    def chosen_ids(self) -> list[str]:
        """Return the chosen ids, best score first, ties by id."""
        rows = np.flatnonzero(self.choice.chosen)
        return [str(i) for i in self.ids[rows[np.argsort(-self.scores[rows], kind="stable")]]]

    def table(self) -> pa.Table:
        """Return what scores.parquet holds."""
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "dispersion": self.dispersion,
            "anisotropy": self.anisotropy,
            "score": self.scores,
            "bin": self.bins,
            "rank_in_bin": self.choice.rank.astype(np.int32),
            "bin_quota": self.choice.quota.astype(np.int32),
            "chosen": self.choice.chosen,
            "reason": pa.array(self.choice.reason, pa.string()),
            "num_answers": self.num_answers,
            "answer_tokens": self.answer_tokens,
        }
        if not np.isnan(self.agreement).all():
            columns["agreement"] = self.agreement
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


def _nothing_to_agree_with(geometry: Geometry, config: ScoreSettings) -> str | None:
    if not config.filters.asks_agreement or not np.isnan(geometry.agreement).all():
        return None
    return "no row has an answer of its own, so the filter on agreement rejects nothing"


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
    num_answers = np.empty(len(geometry), dtype=np.int32)
    for group in geometry.grams:
        num_answers[group.rows] = group.grams.shape[1]
    found = [warning, _nothing_to_agree_with(geometry, config)]
    warnings = (*(sentence for sentence in found if sentence), *about.warnings)
    return Scored(
        geometry.ids,
        dispersion,
        anisotropy,
        scores,
        bins,
        choice,
        num_answers,
        geometry.answer_tokens,
        geometry.agreement,
        about,
        warnings,
    )
