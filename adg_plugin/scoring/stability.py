"""How much of a selection is sampling noise: from the stored Gram matrices, without asking the model again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.groups import ScoreSettings
from adg_plugin.scoring.geometry import combine
from adg_plugin.scoring.jackknife import FEWEST, Calibrated, calibrated, score_variances
from adg_plugin.scoring.quota import choose, opposite_before
from adg_plugin.store import Geometry, RunFolder, RunReader
from adg_plugin.store.reader import check_answers, finished

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]

_MOST_RUNS, _FEWEST_RUNS, _ROWS_OF_ALL_RUNS = 200, 8, 1_000_000
_MORE_ANSWERS = (1.6, 2.0)  # of K: 8 and 10 for 5


@dataclass(frozen=True, slots=True)
class Stability:
    """What to expect of another run with resampled answers, within the same bins: another `seed` moves these, too."""

    ids: npt.NDArray[np.object_]  # (N,) scored rows, by ascending id
    scores: Floats  # (N,)
    errors: Floats  # (N,) standard error of each score
    again: Floats  # (N,) how likely another run chooses the row
    chosen: Bools  # (N,) whether this one has
    near: Bools  # (N,) whether one standard error moves the score past one of its bin that got the opposite decision
    tied: bool  # whether the scores of each bin are equal: nothing within bins tells rows apart
    overlap: tuple[float, float, float]  # share of the choice that another run is to share, and its 5 and 95 % points
    chance: float  # the same if scores were nothing but noise: what bins and budget alone make common
    reliability: float  # share of the scores' variance within bins that is not noise, 0 to 1
    correlation: float  # of the scores of two runs over the whole pool, expected
    num_samples: int  # K of most rows
    overlap_with: dict[int, float]  # the mean overlap of two runs of more answers, by their number
    notes: tuple[str, ...]  # sentences about what the figures rest on

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
    estimates = calibrated(scored_geometry(run, vectors=False).grams)
    return stability_of(estimates, table["id"].to_numpy(), table["bin"].to_numpy(), chosen, config)


def scored_geometry(run: RunReader, *, vectors: bool = True) -> Geometry:
    """Return the geometry of the scored rows: of `scores()`, filters drop rows; a StoreError if one is lost."""
    geometry = run.geometry(vectors=vectors)
    check_answers(run, geometry)
    scored = pc.is_in(pa.array(geometry.ids, pa.string()), value_set=run.scores()["id"]).to_numpy(zero_copy_only=False)
    return geometry if scored.all() else geometry.without(~scored, ())


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
    expected, reliability = _expected(scores, errors, bins)
    budget = int(chosen.sum())
    others = _OtherRuns(
        expected=expected,
        doubt=np.sqrt(reliability) * errors,
        errors=errors,
        chosen=chosen,
        choose=lambda scores: choose(ids, scores, bins, budget, config.subset).chosen,
        count=min(_MOST_RUNS, max(_FEWEST_RUNS, _ROWS_OF_ALL_RUNS // len(ids))),
        seed=config.seed,
    )
    again, overlaps = others.chances()
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
        reliability=reliability,
        correlation=max(0.0, 1 - float(np.square(errors).mean()) / variance) if variance > 0 else 0.0,
        num_samples=answers,
        overlap_with={k: others.overlap_of_two(share) for k, share in more.items()},
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
    noise = float(equal.var() / np.square(equal.mean()))  # relative variance
    rows = np.bincount(bins)
    of_bins = np.bincount(bins, found) / rows
    scatter = float(np.average(np.square(of_bins - mean), weights=rows))
    by_noise = float(np.mean(noise * np.square(of_bins) / rows))
    level = (mean + max(0.0, 1 - by_noise / scatter if scatter > 0 else 0.0) * (of_bins - mean))[bins]
    ratio = found / np.maximum(level, 1e-3 * mean)
    ratio /= ratio.mean()
    scatter = float(ratio.var())
    own = max(0.0, (1 + scatter) / (1 + noise) - 1) / scatter if scatter > 0 else 0.0
    drawn: Floats = level * (1 + own * (ratio - 1))
    drawn *= mean / drawn.mean()
    return drawn


def _expected(scores: Floats, errors: Floats, bins: Ints) -> tuple[Floats, float]:
    """Return (N,) the scores that many answers would give, as if the bins' means were known, and the reliability."""
    if len(scores) - len(np.unique(bins)) < 1:  # of bins with one row each, the rows compete with all others
        bins = np.zeros(len(scores), np.int64)
    centre = (np.bincount(bins, scores) / np.maximum(np.bincount(bins), 1))[bins]
    freedom = max(1, len(scores) - len(np.unique(bins)))
    variance = float(np.square(scores - centre).sum()) / freedom
    noise = float(np.square(errors).mean())
    reliability = max(0.0, 1 - noise / variance) if variance > 0 else 0.0
    return centre + reliability * (scores - centre), reliability


@dataclass(frozen=True, slots=True)
class _OtherRuns:
    """Other runs, sampled from what this one says of each row's score."""

    expected: Floats  # (N,) the score that many answers would give
    doubt: Floats  # (N,) standard deviation of the score without sampling noise
    errors: Floats  # (N,) of this run
    chosen: Bools  # (N,) by this run
    choose: Callable[[Floats], Bools]  # the choice by other scores
    count: int
    seed: int

    def chances(self) -> tuple[Floats, Floats]:
        """Return how often they choose each row (N,), and the share of this choice that each has in common with it."""
        rng = np.random.default_rng(self.seed)
        often, overlaps = np.zeros(len(self.chosen)), np.empty(self.count)
        for run in range(self.count):
            other = self._choice(self._truth(rng), rng)
            often += other
            overlaps[run] = (other & self.chosen).sum() / self.chosen.sum()
        return often / self.count, overlaps

    def overlap_of_two(self, share: float) -> float:
        """Return the mean overlap of two runs whose error variance is `share` of this one's."""
        rng = np.random.default_rng(self.seed)
        common, runs = 0, max(2, self.count // 4)
        for _ in range(runs):
            truth = self._truth(rng)
            one, two = (self._choice(truth, rng, share) for _ in range(2))
            common += int((one & two).sum())
        return common / (runs * int(self.chosen.sum()))

    def _truth(self, rng: np.random.Generator) -> Floats:
        return self.expected + self.doubt * rng.standard_normal(len(self.doubt))

    def _choice(self, truth: Floats, rng: np.random.Generator, share: float = 1.0) -> Bools:
        return self.choose(truth + np.sqrt(share) * self.errors * rng.standard_normal(len(truth)))


def _near(scores: Floats, errors: Floats, bins: Ints, chosen: Bools) -> Bools:
    """Return which rows, (N,), have a score within one standard error of an opposite decision in their bin."""
    gap = np.full(len(scores), np.inf)
    order = np.lexsort((scores, bins))
    for rows in (order, order[::-1]):  # the nearest below, then the nearest above
        before = opposite_before(bins[rows], chosen[rows])
        away = np.abs(scores[rows] - scores[rows[before]])
        gap[rows] = np.minimum(gap[rows], np.where(before >= 0, away, np.inf))
    near: Bools = (gap <= errors) & (errors > 0)
    return near
