"""Prompt vectors -> the semantic bin of each row, by k-means that gives the same bins on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_info, threadpool_limits

Vectors = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

_MAX_BINS = 1000
_ROWS_PER_BIN = 10

_BLOCK_ROWS = 1024  # converted to float32 at a time; fixed, because the sums in a product depend on its shape
_TRAINING_ROWS_PER_BIN = 100  # more moves the centres little and costs in proportion
_MIN_TRAINING_ROWS = 20_000
_SEEDING_ROWS_PER_BIN = 20
_SEEDING_WIDTH = 256  # distances between far rows survive a random projection; only the seeds depend on it
_MAX_ITERATIONS = 20
_SETTLED = 0.001  # stop when no more than this share of the rows changes its bin


def default_bins(rows: int) -> int:
    """Return the number of bins for a pool: one per ten rows, at least 1, at most 1,000."""
    return max(1, min(_MAX_BINS, rows // _ROWS_PER_BIN))


def assign_bins(vectors: Vectors, bins: int | None, seed: int) -> Labels:
    """Return the bin of each row, by k-means (squared Euclidean distance) over the prompt vectors.

    Lloyd's iterations run on all rows, or on a random sample of them where there are more than 100 per bin (and more
    than 20,000); every row then goes to its nearest centre. The result depends on the rows' order, so sort them by id.
    It depends neither on the number of threads nor on timing: products run on one thread each, over fixed blocks of
    rows, and several blocks run side by side. Blocks are converted to float32 one by one, never all of `vectors`.

    Args:
        vectors: (N, H) unit prompt vectors, float16 or float32, rows sorted by id.
        bins: number wanted; None for `default_bins(N)`. More than N counts as N.
        seed: of the sample and of the first centres (k-means++).

    Returns:
        (N,), 0..B-1 in the order of first appearance, B <= bins: a centre without rows leaves no bin.

    Raises:
        ValueError: a vector holds NaN or infinity; the text names its row.
    """
    _check_finite(vectors)
    rows = len(vectors)
    bins = min(default_bins(rows) if bins is None else bins, rows)
    if bins <= 1:
        return np.zeros(rows, dtype=np.int32)
    rng = np.random.default_rng(seed)
    with _single_threaded_products() as pool:
        training = vectors
        training_rows = max(_MIN_TRAINING_ROWS, _TRAINING_ROWS_PER_BIN * bins)
        if rows > training_rows:
            training = vectors[np.sort(rng.choice(rows, training_rows, replace=False))]
        centres, labels = _lloyd(training, _seeds(training, bins, rng), pool)
        if rows > training_rows:
            labels = _nearest(vectors, centres, pool)
    return _numbered_by_appearance(labels)


def _check_finite(vectors: Vectors) -> None:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        finite = np.isfinite(vectors[start : start + _BLOCK_ROWS]).all(axis=1)
        if not finite.all():
            raise ValueError(f"prompt vector {start + finite.argmin()} holds NaN or infinity: reject the row")


@contextmanager
def _single_threaded_products() -> Iterator[ThreadPoolExecutor]:
    """Yield an executor with as many workers as BLAS had threads, while each product runs on one thread."""
    threads = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=1)
    with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
        yield pool


def _seeds(vectors: Vectors, bins: int, rng: np.random.Generator) -> Floats:
    """Return (B, H) first centres, chosen among the rows by k-means++ in a random projection of them."""
    count = min(len(vectors), _SEEDING_ROWS_PER_BIN * bins)
    rows = np.sort(rng.choice(len(vectors), count, replace=False))
    width = vectors.shape[1]
    projection = np.eye(width, dtype=np.float32)
    if width > _SEEDING_WIDTH:
        projection = rng.standard_normal((width, _SEEDING_WIDTH), dtype=np.float32)
    blocks = (rows[start : start + _BLOCK_ROWS] for start in range(0, count, _BLOCK_ROWS))
    # float64, because scikit-learn computes distances in it and would convert at each step.
    narrow = np.concatenate([vectors[block].astype(np.float32) @ projection for block in blocks]).astype(np.float64)
    _, chosen = kmeans_plusplus(narrow, bins, random_state=int(rng.integers(2**31)))
    seeds: Floats = vectors[rows[chosen]].astype(np.float32)
    return seeds


def _lloyd(vectors: Vectors, centres: Floats, pool: ThreadPoolExecutor) -> tuple[Floats, Labels]:
    """Return the centres and each row's nearest of them, when rows have settled or after the last iteration."""
    labels = _nearest(vectors, centres, pool)
    for _ in range(_MAX_ITERATIONS):
        centres = _means(vectors, labels, centres, pool)
        before, labels = labels, _nearest(vectors, centres, pool)
        if np.count_nonzero(labels != before) <= _SETTLED * len(vectors):
            break
    return centres, labels


def _nearest(vectors: Vectors, centres: Floats, pool: ThreadPoolExecutor) -> Labels:
    """Return (N,) the nearest centre of each row; of equally near ones, the first."""
    # |x - c|^2 is smallest where x.c - |c|^2 / 2 is largest.
    half_squares = np.square(centres).sum(axis=1) / 2

    def label(start: int) -> Labels:
        scores = vectors[start : start + _BLOCK_ROWS].astype(np.float32) @ centres.T
        scores -= half_squares
        labels: Labels = scores.argmax(axis=1).astype(np.int32)
        return labels

    return np.concatenate(list(pool.map(label, range(0, len(vectors), _BLOCK_ROWS))))


def _means(vectors: Vectors, labels: Labels, centres: Floats, pool: ThreadPoolExecutor) -> Floats:
    """Return (B, H) the mean of each centre's rows; a centre without rows stays where it is."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(centres)))

    def mean(bin_: int) -> Floats:
        rows = order[ends[bin_ - 1] if bin_ else 0 : ends[bin_]]
        average: Floats = vectors[rows].mean(axis=0, dtype=np.float32) if len(rows) else centres[bin_]
        return average

    means: Floats = np.stack(list(pool.map(mean, range(len(centres)))))
    return means


def _numbered_by_appearance(labels: Labels) -> Labels:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    numbered: Labels = np.argsort(np.argsort(first))[inverse].astype(np.int32)
    return numbered
