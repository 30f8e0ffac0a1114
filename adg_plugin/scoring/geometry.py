"""The geometry of K answers: Gram matrix -> dispersion, anisotropy, score. Source: arXiv 2604.10448."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import ScoreForm

Floats = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating]

_UNIT_TOLERANCE = 1e-3  # of a squared length; float16 vectors reach 5e-4
_NO_SPREAD = 1e-12  # trace below which answers have no direction
_ROUNDING = 1e-12  # relative
_BLOCK_ROWS = 32_768  # bounds the float64 copies: 7 MB each at K = 5

_NEARLY_ALONE = 0.95
_HARDLY_AT_ALL = 0.5
_AGAINST = -0.1  # chance alone stays above this from some hundred rows on
_MIN_ROWS_TO_WARN = 20


@dataclass(frozen=True, slots=True)
class Parts:
    """The two parts of the score, one value per row."""

    dispersion: Floats  # (N,), in [0, 1]
    anisotropy: Floats  # (N,), in [0, 1 - 1/(K-1)]


@dataclass(frozen=True, slots=True)
class Balance:
    """How much of the score each part makes. Correlations with a constant are given as 0."""

    pearson_dispersion: float
    pearson_anisotropy: float
    spearman_dispersion: float
    spearman_anisotropy: float
    share_dispersion: float  # of the variance of the score; the two shares sum to 1, one may be negative
    share_anisotropy: float
    warnings: tuple[str, ...]


def centre(gram: AnyFloats, *, first: int = 0, fewest: int = 2) -> Floats:
    """Return J G J of each row, J = 1 - 11^T/K: the Gram matrix of the vectors less their mean.

    Args:
        gram: (N, K, K) inner products of unit answer vectors; K >= `fewest`.
        first: the number of the first row, for errors.

    Returns:
        (N, K, K), float64; rows and columns sum to 0.

    Raises:
        ValueError: a value is NaN or infinite, or a diagonal entry is not 1 (a failed vector).
    """
    gram = np.asarray(gram, dtype=np.float64)
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2] or gram.shape[1] < fewest:
        raise ValueError(f"Gram matrices have shape {gram.shape}: use (N, K, K) with K of {fewest} or more")
    finite = np.isfinite(gram).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(
            f"Gram matrix {first + finite.argmin()} holds NaN or infinity: reject the row, its vectors failed"
        )
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    wrong = np.argwhere(np.abs(diagonal - 1) > _UNIT_TOLERANCE)
    if len(wrong):
        row, answer = wrong[0]
        raise ValueError(
            f"Gram matrix {first + row} has {diagonal[row, answer]:.6g} at diagonal entry {answer}, not 1: "
            "scale the answer vectors to unit length, and reject rows with a zero vector"
        )
    rows = gram.mean(axis=2, keepdims=True)
    columns = gram.mean(axis=1, keepdims=True)
    centred: Floats = gram - rows - columns + rows.mean(axis=1, keepdims=True)
    return centred


def centred_spectrum(gram: AnyFloats) -> Floats:
    """Return the eigenvalues of each row's centred Gram matrix, largest first.

    Args:
        gram: (N, K, K) inner products of unit answer vectors; K >= 2.

    Returns:
        (N, K), each >= 0; a row sums to K * dispersion.

    Source: arXiv 2604.10448.
    """
    largest_first: Floats = np.maximum(np.linalg.eigvalsh(centre(gram))[:, ::-1], 0.0)
    return largest_first


def dispersion(gram: AnyFloats) -> Floats:
    """Return trace(J G J) / K of each row, how far apart the answers are.

    It equals 1 - |mean of the vectors|^2: 0 for identical answers, 1 - 1/K for orthogonal ones.

    Args:
        gram: (N, K, K) inner products of unit answer vectors; K >= 2.

    Returns:
        (N,), in [0, 1].

    Source: arXiv 2604.10448.
    """
    centred = centre(gram)
    mean_square: Floats = np.trace(centred, axis1=1, axis2=2) / centred.shape[1]
    return np.clip(mean_square, 0.0, 1.0)


def anisotropy(gram: AnyFloats) -> Floats:
    """Return 1 - lambda_1 / trace(J G J) of each row, the share of spread outside the main direction.

    Args:
        gram: (N, K, K) inner products of unit answer vectors; K >= 3, two answers span a single direction.

    Returns:
        (N,), in [0, 1 - 1/(K-1)]; 0 where the trace is below 1e-12.

    Source: arXiv 2604.10448.
    """
    return parts(gram).anisotropy


def parts(grams: AnyFloats) -> Parts:
    """Return D and I of each Gram matrix (N, K, K), K >= 3, of any float type; memory does not outgrow the result."""
    spread, directions = np.empty(len(grams)), np.empty(len(grams))
    for start in range(0, len(grams), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        centred = centre(grams[block], first=start, fewest=3)
        answers, trace = centred.shape[1], np.trace(centred, axis1=1, axis2=2)
        spread[block] = np.clip(trace / answers, 0.0, 1.0)
        has_spread = trace >= _NO_SPREAD
        largest_share = np.maximum(np.linalg.eigvalsh(centred)[:, -1], 0.0) / np.where(has_spread, trace, 1.0)
        # K centred vectors span K - 1 directions; rounding must not leave that range.
        directions[block] = np.where(has_spread, np.clip(1.0 - largest_share, 0.0, 1.0 - 1.0 / (answers - 1)), 0.0)
    return Parts(spread, directions)


def _average_ranks(values: AnyFloats) -> Floats:
    """Return ranks from 1 on; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _is_constant(values: Floats) -> bool:
    # What differs by rounding alone counts as constant: dividing by its deviation would blow the rounding up.
    return not len(values) or bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def _standardised(values: Floats) -> Floats:
    if _is_constant(values):
        return np.zeros(len(values))
    result: Floats = (values - values.mean()) / values.std()
    return result


def _normalised(values: Floats, form: ScoreForm) -> Floats:
    if form == "rank":
        return (_average_ranks(values) - 1) / (len(values) - 1) if len(values) > 1 else np.full(len(values), 0.5)
    return _standardised(values) if form == "zscore" else values


def combine(dispersion: AnyFloats, anisotropy: AnyFloats, form: ScoreForm, weight: float) -> Floats:
    """Return the score of each row. Call it once over all eligible rows: `rank` and `zscore` compare them.

    Args:
        dispersion: (N,).
        anisotropy: (N,).
        form: `raw`: (1 - weight) D + weight I, as in the paper. `rank`: the same sum of average ranks scaled to
            [0, 1]. `zscore`: the same sum of standardised parts, a constant part counts 0. `residual`: D I =
            (trace - lambda_1) / K, without a weight.
        weight: of anisotropy, in [0, 1].

    Returns:
        (N,), float64.

    Source: arXiv 2604.10448 for `raw`.
    """
    spread, directions = np.asarray(dispersion, np.float64), np.asarray(anisotropy, np.float64)
    if form == "residual":
        return spread * directions
    of_spread, of_directions = _terms(spread, directions, form, weight)
    return of_spread + of_directions


def _correlation(a: Floats, b: Floats) -> float:
    return float(np.dot(_standardised(a), _standardised(b)) / max(len(a), 1))


def _terms(spread: Floats, directions: Floats, form: ScoreForm, weight: float) -> tuple[Floats, Floats]:
    """Return what each part adds to the score; the two sum to it but for a constant."""
    if form == "residual":
        # The Shapley split of D I against both at their means, so that what only the pair explains is halved.
        of_spread: Floats = (spread - spread.mean()) * (directions + directions.mean()) / 2
        of_directions: Floats = (directions - directions.mean()) * (spread + spread.mean()) / 2
        return of_spread, of_directions
    return (1 - weight) * _normalised(spread, form), weight * _normalised(directions, form)


def balance(dispersion: AnyFloats, anisotropy: AnyFloats, scores: AnyFloats, form: ScoreForm, weight: float) -> Balance:
    """Return how the score hangs together with its two parts, and sentences about what looks wrong.

    The share of a part is cov(its term, score) / var(score). For the weighted sums the terms are the summands; for
    `residual`, D I less its value at the means is split by Shapley's rule: (D - mean D)(I + mean I) / 2, and the
    same with D and I exchanged. Shares are 0 where every score is equal.

    Args:
        dispersion: (N,).
        anisotropy: (N,).
        scores: (N,), what `combine` gave for the same parts, form and weight.
    """
    spread, directions, s = (np.asarray(values, np.float64) for values in (dispersion, anisotropy, scores))
    shares = [0.0, 0.0]
    if not _is_constant(s):
        deviation = s - s.mean()
        terms = _terms(spread, directions, form, weight)
        shares = [float(np.dot(term, deviation) / np.dot(deviation, deviation)) for term in terms]
    ranks = _average_ranks(s)
    spearman = [_correlation(_average_ranks(part), ranks) for part in (spread, directions)]
    return Balance(
        pearson_dispersion=_correlation(spread, s),
        pearson_anisotropy=_correlation(directions, s),
        spearman_dispersion=spearman[0],
        spearman_anisotropy=spearman[1],
        share_dispersion=shares[0],
        share_anisotropy=shares[1],
        warnings=_warnings(spearman, form) if len(s) >= _MIN_ROWS_TO_WARN else (),
    )


def percentiles(values: npt.NDArray[np.floating]) -> dict[str, float]:
    """Return the 5, 50 and 95 % points of values that are there; without any, nothing."""
    known = values[~np.isnan(values)].astype(np.float64)
    return {f"p{p}": float(np.percentile(known, p)) for p in (5, 50, 95)} if len(known) else {}


def _warnings(spearman: Sequence[float], form: ScoreForm) -> tuple[str, ...]:
    # The order of the scores decides the choice, so rank correlations are what matters here.
    of = dict(zip(("dispersion", "anisotropy"), spearman, strict=True))
    advice = f"compare `score: {'rank' if form == 'residual' else 'residual'}`"
    found = []
    for one, other in (("dispersion", "anisotropy"), ("anisotropy", "dispersion")):
        if of[one] > _NEARLY_ALONE and of[other] < _HARDLY_AT_ALL:
            found.append(
                f"the score (`score: {form}`) is nearly {one} alone: its rank correlation is {of[one]:.2f} with {one} "
                f"and {of[other]:.2f} with {other}; {advice}"
            )
        if of[other] < _AGAINST:
            found.append(
                f"the score (`score: {form}`) runs against {other}: their rank correlation is {of[other]:.2f}, so the "
                f"rows it prefers tend to have less of it; {advice}"
            )
    return tuple(found)
