"""Sampling errors of dispersion, anisotropy and score, from the Gram matrices of one run. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import ScoreForm
from adg_plugin.scoring.geometry import AnyFloats, Floats, dispersion, parts
from adg_plugin.store import GramGroup

FEWEST = 4  # answers of which leaving one out says something about anisotropy: two span a single direction

_MOST_FOLDS = 10  # of many answers, several are left out at once: eigenvalues of large matrices are slow
_BLOCK_ROWS = 32_768
_FIT_ROWS = 4_000  # of the pool, to find the simulated answers that are like its own

_SIMULATED_ROWS, _SIMULATED_ANSWERS = 600, 20_000
_WIDTH = 48
_STEEPEST, _HEAVIEST = 6.0, 1.5  # ends of the search
_NO_TAIL = 0.05  # below it, tails are noise of the search


@dataclass(frozen=True, slots=True)
class Estimates:
    """The parts of each row's score, and how much resampled answers would move them. All (N,)."""

    dispersion: Floats
    anisotropy: Floats
    var_dispersion: Floats
    var_anisotropy: Floats
    covariance: Floats


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Estimates whose variances are right on average."""

    of_pool: Estimates  # by the rows' numbers
    # Of simulated rows that all have the same distribution of answers: how much the estimates scatter where rows differ
    # by sampling noise alone.
    of_equal_rows: Estimates
    num_answers: npt.NDArray[np.int64]  # (N,) K of each row


@dataclass(frozen=True, slots=True)
class AnswerModel:
    """Answers as unit vectors, normalise(m + x): variances of x fall like j^-decay, |x| is spread * exp(tail * z).

    `z` is a normal number of each answer: with a tail, some answers lie far from the rest.
    """

    decay: float
    tail: float
    spread: float


def jackknife(grams: AnyFloats) -> Estimates:
    """Return the parts of each row with the jackknife's variances: of leaving out one answer at a time.

    Of more than ten answers, one of ten groups is left out at a time. With three answers, what is left has a single
    direction, so everything about anisotropy is 0.

    Args:
        grams: (N, K, K) inner products of unit answer vectors; K >= 3.

    Source: Quenouille 1956, Tukey 1958.
    """
    rows, answers = len(grams), grams.shape[1]
    folds = np.array_split(np.arange(answers), min(answers, _MOST_FOLDS))
    found = np.empty((5, rows))
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        whole = parts(grams[block])
        left = np.zeros((2, len(folds), len(whole.dispersion)))  # deviations of D and I, by what is left out
        for number, fold in enumerate(folds):
            kept = np.delete(np.arange(answers), fold)
            some = grams[block][:, kept[:, None], kept]
            if len(kept) < FEWEST - 1:
                left[0, number] = dispersion(some)
            else:
                without = parts(some)
                left[:, number] = without.dispersion, without.anisotropy
        left -= left.mean(axis=1, keepdims=True)
        products = (left[0] * left[0], left[1] * left[1], left[0] * left[1])
        variances = [(len(folds) - 1) / len(folds) * product.sum(axis=0) for product in products]
        found[:, block] = whole.dispersion, whole.anisotropy, *variances
    return Estimates(*found)


def calibrated(groups: Sequence[GramGroup]) -> Calibrated:
    """Return the parts of every row of a pool with variances that are right on average.

    The jackknife of a few answers overstates the variance of anisotropy: 1.3 to 1.7 times with 4, 5 and 8 answers on
    the pools of `benchmarks/bench_stability.py`. By how much is found out on simulated answers whose mean dispersion,
    mean anisotropy and relative jackknife variance of dispersion are the pool's: there, the true variances are known.
    Rows with three answers get the simulated variance of anisotropy.

    Args:
        groups: every row of the pool, at least one, is in exactly one.
    """
    rows = sum(len(group.rows) for group in groups)
    most = max(groups, key=lambda group: len(group.rows))
    model = fit(most.grams)
    found = np.empty((5, rows))
    num_answers = np.empty(rows, dtype=np.int64)
    for group in groups:
        answers = group.grams.shape[1]
        num_answers[group.rows] = answers
        simulated, truth = simulate(model, answers)
        of = _scaled(jackknife(group.grams), simulated, truth)
        found[:, group.rows] = of.dispersion, of.anisotropy, of.var_dispersion, of.var_anisotropy, of.covariance
        if group is most:
            equal = _scaled(simulated, simulated, truth)
    return Calibrated(Estimates(*found), equal, num_answers)


def _scaled(of: Estimates, simulated: Estimates, truth: Floats) -> Estimates:
    """Return `of`, variances scaled by what makes the simulated right on average; `truth` is (2, 2), cov of D and I."""
    spread = of.var_dispersion * truth[0, 0] / simulated.var_dispersion.mean()
    if not simulated.var_anisotropy.any():  # three answers
        directions = np.where(of.dispersion > 0, truth[1, 1], 0.0)
        covariance = spread * truth[0, 1] / truth[0, 0]
    else:
        directions = of.var_anisotropy * truth[1, 1] / simulated.var_anisotropy.mean()
        # A ratio of two numbers near 0 means nothing.
        covariance = of.covariance * np.clip(truth[0, 1] / simulated.covariance.mean(), 0.0, 2.0)
    most = np.sqrt(spread * directions)
    return Estimates(of.dispersion, of.anisotropy, spread, directions, np.clip(covariance, -most, most))


def simulate(model: AnswerModel, answers: int, seed: int = 1) -> tuple[Estimates, Floats]:
    """Return uncalibrated estimates of equal rows with K answers each, and the true (2, 2) covariance of D and I."""
    found = jackknife(_Draws(max(400, _SIMULATED_ANSWERS // answers), answers, seed).grams(model))
    return found, np.cov(found.dispersion, found.anisotropy)


def fit(grams: AnyFloats) -> AnswerModel:
    """Return the simulated answers that have the mean D, mean I and mean relative jackknife variance of D of rows.

    Args:
        grams: (N, K, K); some of the rows, and ten answers of each, are enough.
    """
    some = np.asarray(grams[:: -(-len(grams) // _FIT_ROWS), :_MOST_FOLDS, :_MOST_FOLDS], np.float64)
    pool = jackknife(some)
    answers = some.shape[1]
    spread = float(np.clip(pool.dispersion.mean(), 1e-6, 0.95 * (1 - 1 / answers)))
    directions, scatter = float(pool.anisotropy.mean()), _relative(pool)
    draws = _Draws(_SIMULATED_ROWS, answers, seed=0)
    if answers < FEWEST:  # leaving out one of three says more about the spectrum than about tails
        return _decay(draws, 0.0, spread, directions)
    low, high = 0.0, _HEAVIEST
    for _ in range(6):
        tail = (low + high) / 2
        too_light = _relative(jackknife(draws.grams(_decay(draws, tail, spread, directions)))) < scatter
        low, high = (tail, high) if too_light else (low, tail)
    return _decay(draws, 0.0 if high < _NO_TAIL else (low + high) / 2, spread, directions)


def _relative(of: Estimates) -> float:
    some = of.dispersion > 1e-9  # equal answers have no spread to be relative to
    return float(np.mean(of.var_dispersion[some] / np.square(of.dispersion[some]))) if some.any() else 0.0


def _decay(draws: _Draws, tail: float, dispersion: float, anisotropy: float) -> AnswerModel:
    """Return the model with that tail whose mean D and I are those given, or as near as it comes."""
    low, high = 0.0, _STEEPEST
    for _ in range(8):
        model = _spread(draws, (low + high) / 2, tail, dispersion)
        too_many = parts(draws.grams(model)).anisotropy.mean() > anisotropy
        low, high = (model.decay, high) if too_many else (low, model.decay)
    return model


def _spread(draws: _Draws, decay: float, tail: float, wanted: float) -> AnswerModel:
    spread = float(np.sqrt(wanted / (1 - wanted)))
    for _ in range(3):  # D / (1 - D) goes nearly like the square of the spread
        found = float(dispersion(draws.grams(AnswerModel(decay, tail, spread))).mean())
        spread *= float(np.sqrt(wanted / (1 - wanted) * (1 - found) / found))
    return AnswerModel(decay, tail, spread)


class _Draws:
    """Random numbers that every model is tried on, so that differences between models are no sampling noise."""

    def __init__(self, rows: int, answers: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._normal = rng.standard_normal((rows, answers, _WIDTH))
        self._far = rng.standard_normal((rows, answers, 1))

    def grams(self, model: AnswerModel) -> Floats:
        """Return (rows, K, K) Gram matrices of answers to rows that differ by sampling noise alone."""
        scales = np.arange(1, _WIDTH + 1) ** (-model.decay / 2)
        scales *= model.spread / np.linalg.norm(scales)
        x = self._normal * scales * np.exp(model.tail * self._far - model.tail**2)
        lengths = np.sqrt(1 + np.square(x).sum(axis=2))  # the mean is a direction of its own, of length 1
        inner: Floats = (1 + x @ x.transpose(0, 2, 1)) / (lengths[:, :, None] * lengths[:, None, :])
        return inner


def score_variances(of: Estimates, form: ScoreForm, weight: float) -> Floats:
    """Return the variance of each row's score, (N,), by the delta method: the score's slope in D and in I.

    The slope of a rank is the share of the pool within one typical error, over twice that error.
    """
    slope_d: Floats | float
    slope_i: Floats | float
    if form == "residual":
        slope_d, slope_i = of.anisotropy, of.dispersion
    else:
        slope_d = (1 - weight) * _slope(of.dispersion, of.var_dispersion, form)
        slope_i = weight * _slope(of.anisotropy, of.var_anisotropy, form)
    variances = slope_d**2 * of.var_dispersion + slope_i**2 * of.var_anisotropy + 2 * slope_d * slope_i * of.covariance
    return np.maximum(variances, 0.0)


def _slope(values: Floats, variances: Floats, form: ScoreForm) -> Floats | float:
    if form == "raw":
        return 1.0
    if form == "zscore":
        deviation = float(values.std())
        return 1 / deviation if deviation > 0 else 0.0
    error = float(np.sqrt(variances.mean()))
    if error == 0:
        return 0.0
    ordered = np.sort(values)
    within: Floats = (np.searchsorted(ordered, values + error) - np.searchsorted(ordered, values - error)) / len(values)
    return within / (2 * error)
