"""Choices of several methods from one pool -> what they share, and what each is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.report.facets import Facet, Facets
from adg_plugin.scoring.geometry import percentiles

_MOST_FILES = 2_000  # more: a pool of one file per row

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Facts:
    """What M choices among the same N rows have in common. Lists are in the order of `names`.

    Attributes:
        names: of the methods.
        jaccard: (M, M) rows that both chose, as a share of those that at least one of them chose.
        shared: (M, M) the same as a share of the choice of the row's method.
        by_chance: (M, M) `shared` and `jaccard` of random choices of as many rows, among those that each may choose.
        chosen_by: rows that `all` methods chose, and that `none` did.
        alone: (M,) rows that no other method chose.
        lengths: (M,) `prompt_tokens` and `reference_words` of the choice, each p5, p50, p95.
        lengths_of_pool: the same of all rows.
        bins: `total`, and (M,) `reached`, `largest_share` (of the choice) and `without_a_bin` (rows of the choice);
            `pool` (B,) and `chosen` (M, B), rows of each bin; None where nothing is binned.
        coverage: for each kind `kind` and `values`: each with `value`, `pool` (rows) and (M,) `chosen`, the most
            frequent in the pool first; last None, the rows without a value, where there are any.
    """

    names: tuple[str, ...]
    jaccard: list[list[float]]
    shared: list[list[float]]
    by_chance: dict[str, list[list[float]]]
    chosen_by: dict[str, int]
    alone: list[int]
    lengths: list[dict[str, dict[str, float]]]
    lengths_of_pool: dict[str, dict[str, float]]
    bins: dict[str, Any] | None
    coverage: list[dict[str, Any]]


def facts_of(
    choices: Mapping[str, Sequence[str]],
    eligible: Mapping[str, Sequence[str]],
    ids: Sequence[str],
    facets: Facets,
    bins: Ints | None,
) -> Facts:
    """Return what the choices have in common.

    Args:
        choices: chosen ids by name of the method; each among `ids`.
        eligible: ids that each method could choose, by its name.
        ids: (N,) of the rows that could be sampled.
        facets: of these rows.
        bins: (N,) of these rows, below 0 where a row has none; None: there are no bins.
    """
    chosen = _memberships(choices.values(), ids)
    jaccard, shared = overlaps(chosen)
    times = chosen.sum(axis=0)
    return Facts(
        names=tuple(choices),
        jaccard=jaccard.tolist(),
        shared=shared.tolist(),
        by_chance=_by_chance(chosen, _memberships([eligible[name] for name in choices], ids)),
        chosen_by={"all": int((times == len(chosen)).sum()) if len(chosen) else 0, "none": int((times == 0).sum())},
        alone=[int((row & (times == 1)).sum()) for row in chosen],
        lengths=[_lengths(facets, row) for row in chosen],
        lengths_of_pool=_lengths(facets, np.ones(len(ids), dtype=bool)),
        bins=None if bins is None else _bins(bins, chosen),
        coverage=[_coverage(kind, facet, chosen) for kind, facet in facets.kinds.items()],
    )


def _memberships(picked: Iterable[Sequence[str]], ids: Sequence[str]) -> Bools:
    """Return (M, N) whether each of `ids` was picked."""
    rows = [[id in among for id in ids] for among in map(set, picked)]
    return np.array(rows, dtype=bool).reshape(len(rows), len(ids))


def _by_chance(chosen: Bools, eligible: Bools) -> dict[str, list[list[float]]]:
    """Return the ratios of the expected counts, for random choices as large as these among the eligible rows (M, N)."""
    among = eligible.astype(np.float64)
    sizes = chosen.sum(axis=1).astype(np.float64)
    rates = sizes / np.maximum(among.sum(axis=1), 1.0)
    jaccard, shared = _ratios(rates[:, None] * rates[None, :] * (among @ among.T), sizes)
    return {"shared": shared.tolist(), "jaccard": jaccard.tolist()}


def overlaps(chosen: Bools) -> tuple[Floats, Floats]:
    """Return the (M, M) Jaccard indices of M choices (M, N), and common rows as a share of each row's own choice.

    Two choices without a row are the same: 1. What a choice without a row shares with another is 0.
    """
    either = chosen.astype(np.float64)
    common = either @ either.T  # whole numbers below 2**53, so exact
    empty = common.diagonal() == 0
    jaccard, shared = _ratios(common, common.diagonal())
    jaccard[np.ix_(empty, empty)] = shared[np.ix_(empty, empty)] = 1.0
    return jaccard, shared


def _ratios(common: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return (M, M) common rows as a share of those of either choice, and of each row's own; 0 where there are none."""
    united = sizes[:, None] + sizes[None, :] - common
    return common / np.where(united == 0, 1.0, united), common / np.maximum(sizes, 1.0)[:, None]


def add_files(facets: Facets, where: Sequence[str]) -> None:
    """Add the kind `file` to the facets of rows that come of several, unless the data sets tell as much.

    Args:
        facets: of the rows.
        where: (N,) `FILE:LINE` of each row.
    """
    files = np.array([text.rpartition(":")[0] for text in where], dtype=object)
    known = len(set(facets.kinds["data set"].values)) if "data set" in facets.kinds else 1
    if known < len(set(files)) <= min(_MOST_FILES, len(files) // 2):
        facets.kinds["file"] = Facet(files)


def _lengths(facets: Facets, rows: Bools) -> dict[str, dict[str, float]]:
    found = {"prompt_tokens": facets.prompt_tokens, "reference_words": facets.reference_words}
    return {name: percentiles(values[rows].astype(np.float64)) for name, values in found.items()}


def _bins(bins: Ints, chosen: Bools) -> dict[str, Any]:
    binned = bins >= 0
    pool = np.bincount(bins[binned])
    counts = np.array([np.bincount(bins[row & binned], minlength=len(pool)) for row in chosen], dtype=np.int64)
    counts = counts.reshape(len(chosen), len(pool))  # also of no choice
    return {
        "total": int(np.count_nonzero(pool)),
        "reached": np.count_nonzero(counts, axis=1).tolist(),
        "largest_share": (counts.max(axis=1, initial=0) / np.maximum(chosen.sum(axis=1), 1)).tolist(),
        "without_a_bin": (chosen & ~binned).sum(axis=1).tolist(),
        "pool": pool.tolist(),
        "chosen": counts.tolist(),
    }


def _coverage(kind: str, facet: Facet, chosen: Bools) -> dict[str, Any]:
    pool, columns = Counter(facet.values), [Counter(facet.values[row]) for row in chosen]
    frequent = sorted(pool, key=lambda value: (value is None, -pool[value], value))
    counted = [{"value": v, "pool": pool[v], "chosen": [column[v] for column in columns]} for v in frequent]
    return {"kind": kind, "values": counted}
