"""Scores, bins and a budget -> the chosen rows, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import Subset

Ids = Sequence[str] | npt.NDArray[np.str_] | npt.NDArray[np.object_]
Ints = npt.NDArray[np.int64]

IN_QUOTA = "in quota"
TOP_UP = "top-up"
NOT_CHOSEN: dict[Subset, str] = {
    "top": "below the cut of its bin",
    "middle": "off the middle of its bin",
    "bottom": "above the cut of its bin",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of each row, in the order in which the rows were given."""

    chosen: npt.NDArray[np.bool_]  # (N,)
    rank: Ints  # (N,) within the row's bin, 1 = highest score
    quota: Ints  # (N,) of the row's bin, before any top-up
    reason: npt.NDArray[np.object_]  # (N,) of str: IN_QUOTA, TOP_UP or a value of NOT_CHOSEN


def resolve_budget(budget: int | float, pool_rows: int, eligible: int) -> tuple[int, str | None]:
    """Return the number of rows to choose, and a sentence where the budget cannot be met.

    Args:
        budget: rows (int), or a fraction of the pool (float), rounded half up to at least one row.
        pool_rows: rows of the pool after exact duplicates, rejected ones included.
        eligible: rows that have a score.
    """
    wanted, meaning = budget, ""
    if isinstance(budget, float):
        # In decimal, as written: in binary 0.145 * 100 falls below 14.5.
        exact = Decimal(str(budget)) * pool_rows
        wanted = max(1, int(exact.to_integral_value(ROUND_HALF_UP)))
        meaning = f", which is {wanted} of {pool_rows} rows"
    if wanted <= eligible:
        return int(wanted), None
    return eligible, f"budget is {budget}{meaning}, but only {eligible} rows can be chosen: all of them are"


def allocate(sizes: Sequence[int] | npt.NDArray[np.integer], budget: int) -> Ints:
    """Return each bin's quota: the budget shared in proportion to size by largest remainder.

    Args:
        sizes: (B,) rows of each bin.
        budget: rows to choose, >= 0.

    Returns:
        (B,), summing to min(budget, sum of sizes), none above its size, each less than 1 from its exact share. Equal
        remainders go to the earlier bin.
    """
    rows: Ints = np.array(sizes, dtype=np.int64)
    total = int(rows.sum())
    if budget >= total:
        return rows
    quota, remainder = np.divmod(rows * budget, total)
    quota[np.argsort(-remainder, kind="stable")[: budget - int(quota.sum())]] += 1
    return quota


def choose(
    ids: Ids,
    scores: npt.NDArray[np.floating],
    bins: npt.NDArray[np.integer],
    budget: int,
    subset: Subset = "top",
    quota: npt.NDArray[np.integer] | None = None,
) -> Choice:
    """Return the choice of each row: the best of its bin within the bin's quota, then the best that remain.

    Rows of a bin are ranked by falling score, equal scores by id. `top` takes the first `quota` ranks, `bottom` the
    last, `middle` those around the middle rank. What the bins cannot fill is topped up from the rows left in all bins:
    the highest scores (`top`), the lowest (`bottom`), the nearest to the middle of their bin (`middle`). The order of
    the input plays no part.

    Args:
        ids: (N,) distinct row ids.
        scores: (N,), finite.
        bins: (N,) bin of each row, 0..B-1.
        budget: rows to choose; min(budget, N) are.
        subset: which end of each bin is taken.
        quota: (B,) rows wanted of each bin, which may be more than it has; default `allocate` by bin size.

    Raises:
        ValueError: a score is not finite, or `quota` sums to more than `budget`.
    """
    finite = np.isfinite(scores)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"row {str(ids[row])!r} has score {scores[row]}: reject it before choosing")
    sizes = np.bincount(bins, minlength=0 if quota is None else len(quota))
    quotas = allocate(sizes, budget) if quota is None else np.asarray(quota, dtype=np.int64)
    if quotas.sum() > budget:
        raise ValueError(f"quota sums to {quotas.sum()}, above the budget of {budget}: share out the budget")

    names = [str(name) for name in ids]  # no NumPy string array: that is as wide as the longest id, for every row
    id_order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    rank = _rank_in_bin(id_order, scores, bins, sizes)
    wanted, size = quotas[bins], sizes[bins]
    filled = np.minimum(wanted, size)
    skipped = {"top": np.zeros_like(size), "middle": (size - filled) // 2, "bottom": size - filled}[subset]
    in_quota = (rank > skipped) & (rank <= skipped + filled)

    left = id_order[~in_quota[id_order]]
    preference = [scores[left] if subset == "bottom" else -scores[left]]  # equal ones stay in the order of their ids
    if subset == "middle":
        preference.append(np.abs(2 * rank - size - 1)[left])
    top_up = left[np.lexsort(preference)][: max(0, budget - int(in_quota.sum()))]

    chosen = in_quota.copy()
    chosen[top_up] = True
    reason = np.full(len(scores), NOT_CHOSEN[subset], dtype=object)
    reason[in_quota] = IN_QUOTA
    reason[top_up] = TOP_UP
    return Choice(chosen, rank, wanted, reason)


def _rank_in_bin(id_order: Ints, scores: npt.NDArray[np.floating], bins: npt.NDArray[np.integer], sizes: Ints) -> Ints:
    """Return (N,) ranks from 1 on within each bin, by falling score, equal scores in the order of the ids."""
    order = id_order[np.lexsort((-scores[id_order], bins[id_order]))]  # lexsort is stable
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(1, len(scores) + 1) - starts[bins[order]]
    return rank


def opposite_before(bins: npt.NDArray[np.integer], chosen: npt.NDArray[np.bool_]) -> Ints:
    """Return (N,) the place of the nearest earlier row of the same bin that got the opposite decision, or -1.

    Args:
        bins: (N,) of rows in an order in which those of a bin stand together.
        chosen: (N,).
    """
    turns = np.r_[True, (chosen[1:] != chosen[:-1]) | (bins[1:] != bins[:-1])]
    before = np.maximum.accumulate(np.where(turns, np.arange(len(bins)), 0)) - 1  # last row before this stretch
    return np.where(bins[before] == bins, before, -1)
