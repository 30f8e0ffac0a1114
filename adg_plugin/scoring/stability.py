"""How much of a selection is sampling noise: from the stored Gram matrices, without asking the model again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.scores import ScoreSettings
from adg_plugin.scoring.geometry import combine
from adg_plugin.scoring.jackknife import FEWEST, Calibrated, calibrated, score_variances
from adg_plugin.scoring.quota import choose
from adg_plugin.store import GramGroup, RunFolder, RunReader
from adg_plugin.store.finished import check_answers, finished

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]

_MOST_RUNS, _FEWEST_RUNS, _ROWS_OF_ALL_RUNS = 200, 8, 1_000_000
_MORE_ANSWERS = (1.6, 2.0)  # of K: 8 and 10 for 5


@dataclass(frozen=True, slots=True)
class Stability:
    """What to expect of another run with resampled answers, within the same bins: another `seed` moves these, too.

    Attributes:
        ids: (N,) scored rows, by ascending id.
        scores: (N,).
        errors: (N,) standard error of each score.
        again: (N,) how likely another run chooses the row.
        chosen: (N,) whether this one has.
        near: (N,) whether one standard error moves the score past one of the same bin that got the opposite decision.
        tied: whether the scores of each bin are equal: nothing within bins tells rows apart.
        overlap: share of the choice that another run is expected to share, and its 5 and 95 % points.
        chance: the same if scores were nothing but noise: what bins and budget alone make common.
        reliability: share of the scores' variance within bins that is not noise, 0 to 1.
        correlation: of the scores of two runs over the whole pool, expected.
        num_samples: K of most rows.
        overlap_with: the mean overlap of two runs of more answers, by their number.
        notes: sentences about what the figures rest on.
    """

    ids: npt.NDArray[np.object_]
    scores: Floats
    errors: Floats
    again: Floats
    chosen: Bools
    near: Bools
    tied: bool
    overlap: tuple[float, float, float]
    chance: float
    reliability: float
    correlation: float
    num_samples: int
    overlap_with: dict[int, float]
    notes: tuple[str, ...]

    def doubtful(self) -> list[int]:
        """Return the rows near the cut, those that another run most likely decides otherwise first."""
        otherwise = np.where(self.chosen, 1 - self.again, self.again)
        rows = np.flatnonzero(self.near)
        return [int(row) for row in rows[np.argsort(-otherwise[rows], kind="stable")]]

    def summary(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        mean, low, high = self.overlap
        return {
            "rows": len(self.ids),
            "chosen": int(self.chosen.sum()),
            "num_samples": self.num_samples,
            "expected_overlap": {"mean": mean, "p5": low, "p95": high},
            "overlap_by_chance": self.chance,
            "expected_overlap_with_more_answers": {str(k): value for k, value in self.overlap_with.items()},
            "reliability": self.reliability,
            "expected_correlation": self.correlation,
            "standard_error": {f"p{p}": float(np.percentile(self.errors, p)) for p in (5, 50, 95)},
            "score_standard_deviation": float(self.scores.std()),
            "rows_near_the_cut": int(self.near.sum()),
            "near_the_cut": [str(self.ids[row]) for row in self.doubtful()],
            "notes": list(self.notes),
        }


def stability(run_dir: str) -> Stability:
    """Return how stable the selection in a run folder is.

    Rows are taken to differ, within their bin, by a normal spread: that of the scores less that of the errors. Other
    runs are sampled from what this one says about each row, with fresh errors, and choose within the same bins.

    Raises:
        StoreError: not a run folder, one without a result, or one that lost answers since.
        ConfigError: another method than ADG chose.

    Source: Efron and Morris 1975 for the shrinkage; `adg_plugin.scoring.jackknife` for the errors.
    """
    run = RunFolder.read(run_dir)
    config = finished(run)
    config.refuse_other_methods("`adg stability` says how much of a choice is sampling noise")
    table = run.scores()
    chosen = table["chosen"].to_numpy(zero_copy_only=False)
    estimates = calibrated(scored_grams(run))
    return stability_of(estimates, table["id"].to_numpy(), table["bin"].to_numpy(), chosen, config)


def scored_grams(run: RunReader) -> tuple[GramGroup, ...]:
    """Return scored rows' Gram matrices, numbered as in `scores()` (filters drop rows); a StoreError if any is lost."""
    geometry = run.geometry(vectors=False)
    check_answers(run, geometry)
    scored = pc.is_in(pa.array(geometry.ids, pa.string()), value_set=run.scores()["id"]).to_numpy(zero_copy_only=False)
    if scored.all():
        return geometry.grams
    place = np.cumsum(scored) - 1
    kept = ((group, scored[group.rows]) for group in geometry.grams)
    return tuple(GramGroup(place[group.rows[stays]], group.grams[stays]) for group, stays in kept if stays.any())


def stability_of(
    estimates: Calibrated, ids: npt.NDArray[np.object_], bins: Ints, chosen: Bools, config: ScoreSettings
) -> Stability:
    """Return how stable a choice is.

    Args:
        estimates: of its N rows.
        ids: (N,) ascending.
        bins: (N,) bin of each row; numbers may be missing.
        chosen: (N,) the choice.
    """
    bins = np.unique(bins, return_inverse=True)[1]
    pool = estimates.of_pool
    scores = combine(pool.dispersion, pool.anisotropy, config.score, config.weight)
    errors = np.sqrt(error_variances(estimates, bins, config))
    within = _Within.of(scores, errors, bins)
    again, overlaps = _other_runs(within, ids, bins, chosen, config)
    low, high = np.percentile(overlaps, (5, 95))
    answers = int(np.bincount(estimates.num_answers).argmax())
    variance = float(scores.var())
    rows, taken, tied = np.bincount(bins), np.bincount(bins, chosen), _tied_bins(scores, bins)
    cut = (taken > 0) & (taken < rows)  # a bin of which all rows are chosen, or none, has nothing to decide
    more = {round(answers * factor): answers / round(answers * factor) for factor in _MORE_ANSWERS}
    return Stability(
        ids=ids,
        scores=scores,
        errors=errors,
        again=again,
        chosen=chosen,
        near=_near(scores, errors, bins, chosen),
        tied=bool(tied.all()),
        overlap=(float(overlaps.mean()), float(low), float(high)),
        chance=float(np.sum(taken**2 / rows) / chosen.sum()),
        reliability=within.reliability,
        correlation=max(0.0, 1 - float(np.square(errors).mean()) / variance) if variance > 0 else 0.0,
        num_samples=answers,
        overlap_with={k: _of_two_runs(within, ids, bins, chosen, config, share) for k, share in more.items()},
        notes=tuple(_notes(estimates, scores, tied[cut], config)),
    )


def _notes(estimates: Calibrated, scores: Floats, tied: Bools, config: ScoreSettings) -> Iterator[str]:
    if few := int(np.sum(estimates.num_answers < FEWEST)):
        yield (
            f"{few} of {len(estimates.num_answers)} rows have three answers: their error of anisotropy is that of "
            "simulated answers, whatever theirs are, and the shared part may be overstated"
        )
    if tied.any() and np.ptp(scores) == 0:
        yield "all scores are equal: the choice is by id"
    elif tied.any():
        yield f"all scores are equal in {int(tied.sum())} of {len(tied)} bins with a cut: the choice there is by id"
    if config.filters.looks_at_answers:
        yield (
            "the filters on agreement and underspecified look at the sampled answers, too: another run would also have "
            "other rows to choose from, and share less than this"
        )


def _tied_bins(scores: Floats, bins: Ints) -> Bools:
    order = np.lexsort((scores, bins))
    ends = np.cumsum(np.bincount(bins))
    ordered = scores[order]
    tied: Bools = ordered[np.r_[0, ends[:-1]]] == ordered[ends - 1]
    return tied


def error_variances(estimates: Calibrated, bins: Ints, config: ScoreSettings) -> Floats:
    """Return the variance of each score over resamples of its row's answers, (N,).

    A variance from five answers is itself mostly noise. So each is shrunk towards the mean of its bin, and that towards
    the mean of the pool, as far as what would be seen among equal rows explains their scatter.
    """
    found = score_variances(estimates.of_pool, config.score, config.weight)
    mean = float(found.mean())
    if mean == 0:
        return found
    equal = score_variances(estimates.of_equal_rows, config.score, config.weight)
    luck = float(equal.var() / np.square(equal.mean()))  # relative variance
    rows = np.bincount(bins)
    of_bins = np.bincount(bins, found) / rows
    scatter = float(np.average(np.square(of_bins - mean), weights=rows))
    by_luck = float(np.mean(luck * np.square(of_bins) / rows))
    level = (mean + max(0.0, 1 - by_luck / scatter if scatter > 0 else 0.0) * (of_bins - mean))[bins]
    ratio = found / np.maximum(level, 1e-3 * mean)
    ratio /= ratio.mean()
    scatter = float(ratio.var())
    own = max(0.0, (1 + scatter) / (1 + luck) - 1) / scatter if scatter > 0 else 0.0
    drawn: Floats = level * (1 + own * (ratio - 1))
    drawn *= mean / drawn.mean()
    return drawn


@dataclass(frozen=True, slots=True)
class _Within:
    """What this run says of each row's score, as if its bin's mean were known."""

    centre: Floats  # (N,) mean of the row's bin
    expected: Floats  # (N,) the score that many answers would give
    errors: Floats  # (N,) of this run
    reliability: float

    @classmethod
    def of(cls, scores: Floats, errors: Floats, bins: Ints) -> _Within:
        if len(scores) - len(np.unique(bins)) < 1:  # of bins with one row each, the rows compete with all others
            bins = np.zeros(len(scores), np.int64)
        centre = (np.bincount(bins, scores) / np.maximum(np.bincount(bins), 1))[bins]
        freedom = max(1, len(scores) - len(np.unique(bins)))
        variance = float(np.square(scores - centre).sum()) / freedom
        luck = float(np.square(errors).mean())
        reliability = max(0.0, 1 - luck / variance) if variance > 0 else 0.0
        return cls(centre, centre + reliability * (scores - centre), errors, reliability)

    def truth(self, rng: np.random.Generator) -> Floats:
        """Return scores that rows might have without sampling noise, (N,)."""
        drawn: Floats = np.sqrt(self.reliability) * self.errors * rng.standard_normal(len(self.errors))
        return self.expected + drawn

    def run(self, truth: Floats, rng: np.random.Generator, share: float = 1.0) -> Floats:
        """Return the scores of another run, whose error variance is `share` of this one's, (N,)."""
        drawn: Floats = truth + np.sqrt(share) * self.errors * rng.standard_normal(len(truth))
        return drawn


def _num_runs(rows: int) -> int:
    return min(_MOST_RUNS, max(_FEWEST_RUNS, _ROWS_OF_ALL_RUNS // rows))


def _other_runs(
    within: _Within, ids: npt.NDArray[np.object_], bins: Ints, chosen: Bools, config: ScoreSettings
) -> tuple[Floats, Floats]:
    """Return how often other runs choose each row (N,), and the share of `chosen` that each run has in common."""
    rng = np.random.default_rng(config.seed)
    budget = int(chosen.sum())
    often, overlaps = np.zeros(len(ids)), np.empty(_num_runs(len(ids)))
    for run in range(len(overlaps)):
        other = choose(ids, within.run(within.truth(rng), rng), bins, budget, config.subset).chosen
        often += other
        overlaps[run] = (other & chosen).sum() / budget
    return often / len(overlaps), overlaps


def _of_two_runs(
    within: _Within, ids: npt.NDArray[np.object_], bins: Ints, chosen: Bools, config: ScoreSettings, share: float
) -> float:
    """Return the mean overlap of two new runs whose error variance is `share` of this one's."""
    rng = np.random.default_rng(config.seed)
    budget, common = int(chosen.sum()), 0
    runs = max(2, _num_runs(len(ids)) // 4)
    for _ in range(runs):
        truth = within.truth(rng)
        one, two = (choose(ids, within.run(truth, rng, share), bins, budget, config.subset).chosen for _ in range(2))
        common += int((one & two).sum())
    return common / (runs * budget)


def _near(scores: Floats, errors: Floats, bins: Ints, chosen: Bools) -> Bools:
    """Return which rows, (N,), have a score within one standard error of an opposite decision in their bin."""
    order = np.lexsort((scores, bins))
    ordered, fate, bin_ = scores[order], chosen[order], bins[order]
    gap = np.full(len(scores), np.inf)
    for step in (1, -1):  # the nearest below, then the nearest above
        s, f, b = ordered[::step], fate[::step], bin_[::step]
        turns = np.r_[True, (f[1:] != f[:-1]) | (b[1:] != b[:-1])]
        before = np.maximum.accumulate(np.where(turns, np.arange(len(s)), 0)) - 1  # last row before this stretch
        there = (before >= 0) & (b[before] == b)
        distance = np.where(there, np.abs(s - s[before]), np.inf)[::step]
        gap = np.minimum(gap, distance)
    near = np.empty(len(scores), dtype=np.bool_)
    near[order] = (gap <= errors[order]) & (errors[order] > 0)
    return near
