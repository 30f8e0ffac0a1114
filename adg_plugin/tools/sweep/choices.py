"""One pool of answered rows, the choices that different settings make of it, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.scoring.geometry import Parts, balance, combine, parts
from adg_plugin.scoring.quota import choose, resolve_budget
from adg_plugin.tools.sweep.vectors import Embedding, Ids, Vectors

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Scored:
    """What some settings make of N rows. All (N,)."""

    dispersion: Floats
    anisotropy: Floats
    scores: Floats
    bins: Ints
    chosen: Bools


@dataclass(frozen=True, slots=True)
class Similarity:
    """How like a choice is to that of the run.

    Attributes:
        rows: among which is chosen.
        chosen: rows chosen.
        rank_correlation: Spearman's, of its scores and the run's; 0 where all scores are equal.
        shared: rows that both choose, as a share of the smaller choice.
        jaccard: the same, as a share of the rows that either chooses.
        shared_by_chance: `shared` to be expected if scores were random: what bins and budgets alone make common.
        correlation_dispersion: Spearman's, of its scores and its own dispersion; 0 where one is constant.
        correlation_anisotropy: the same with its own anisotropy.
        mean_dispersion: of the chosen rows, as the run measured it: one yardstick for all choices.
        mean_anisotropy: likewise.
        mean_answer_tokens: of the chosen rows, tokens per stored answer.
    """

    rows: int
    chosen: int
    rank_correlation: float
    shared: float
    jaccard: float
    shared_by_chance: float
    correlation_dispersion: float
    correlation_anisotropy: float
    mean_dispersion: float
    mean_anisotropy: float
    mean_answer_tokens: float


@dataclass(slots=True, eq=False)
class Rows:
    """Scored rows, and what has been found out about them already.

    Attributes:
        ids: (N,) ascending.
        answer_tokens: (N,) tokens per answer.
        config: the run's settings.
        pool_rows: of the pool after exact duplicates, for a budget that is a fraction.
        scored: rows of the whole run; where these are fewer, budgets and bins shrink in proportion.
        vectors: by embedding; None: the stored ones.
        bins: (N,) of the run; default: found again.
        chosen: (N,) by the run; default: chosen again.
    """

    ids: Ids
    answer_tokens: Floats
    config: ADGConfig
    pool_rows: int
    scored: int
    vectors: Mapping[Embedding | None, Vectors]
    bins: Ints | None = None
    chosen: Bools | None = None
    _parts: dict[tuple[Embedding | None, int], Parts] = field(default_factory=dict, init=False)
    _bins: dict[tuple[Embedding | None, int], Ints] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.bins is not None:
            self._bins[None, self._num_bins(self.config)] = self.bins

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: npt.NDArray[np.intp], vectors: Mapping[Embedding, Vectors]) -> Rows:
        """Return some of the rows (M,), ascending, with further vectors; all rows keep the run's bins and choice."""
        everything: dict[Embedding | None, Vectors] = {None: self.vectors[None].of(rows)}
        everything.update(vectors.items())
        some = replace(self, ids=self.ids[rows], answer_tokens=self.answer_tokens[rows], vectors=everything)
        return some if len(rows) == len(self) else replace(some, bins=None, chosen=None)

    def own(self) -> Scored:
        """Return what the run's settings make of the rows: of all of them, what the run did."""
        scored = self.made(self.config, None)
        return scored if self.chosen is None else replace(scored, chosen=self.chosen)

    def made(self, config: ADGConfig, embedding: Embedding | None) -> Scored:
        """Return what other settings make of the rows."""
        found = self._parts_of(embedding, config.num_samples)
        scores = combine(found.dispersion, found.anisotropy, config.score, config.weight)
        bins = self._bins_of(config, embedding)
        chosen = choose(self.ids, scores, bins, self.budget(config)[0], config.subset).chosen
        return Scored(found.dispersion, found.anisotropy, scores, bins, chosen)

    def budget(self, config: ADGConfig) -> tuple[int, str | None]:
        """Return how many rows to choose, and a sentence where the budget cannot be met."""
        budget, warning = resolve_budget(config.budget, self.pool_rows, self.scored)
        return self._in_proportion(budget), warning

    def _in_proportion(self, count: int) -> int:
        return count if len(self) == self.scored else max(1, round(count * len(self) / self.scored))

    def _num_bins(self, config: ADGConfig) -> int:
        whole = default_bins(self.scored) if config.bins is None else config.bins
        return self._in_proportion(min(whole, self.scored))

    def _bins_of(self, config: ADGConfig, embedding: Embedding | None) -> Ints:
        # A prompt's vector depends on the layers, not on the pooling of its answers.
        of = None if embedding is None or embedding[0] == self.config.layers else embedding
        key = of, self._num_bins(config)
        if key not in self._bins:
            self._bins[key] = assign_bins(self.vectors[of].prompts, key[1], self.config.seed)
        return self._bins[key]

    def _parts_of(self, embedding: Embedding | None, num_samples: int) -> Parts:
        """Return the parts by the first `num_samples` answers of each row, or all where it has fewer.

        Answers are drawn independently and stored in the order of their draws, so the first K are as good as any.
        """
        key = embedding, num_samples
        if key not in self._parts:
            spread, directions = np.empty(len(self)), np.empty(len(self))
            for group in self.vectors[embedding].grams:
                found = parts(group.grams[:, :num_samples, :num_samples])
                spread[group.rows], directions[group.rows] = found.dispersion, found.anisotropy
            self._parts[key] = Parts(spread, directions)
        return self._parts[key]


def compared(base: Scored, other: Scored, rows: Rows) -> Similarity:
    """Return how `other` compares with `base`, the run's settings on the same rows."""
    common, either = int((base.chosen & other.chosen).sum()), int((base.chosen | other.chosen).sum())
    smaller = min(int(base.chosen.sum()), int(other.chosen.sum()))
    of_parts = balance(other.dispersion, other.anisotropy, other.scores, "raw", 0.5)  # of which only Spearman's
    return Similarity(
        rows=len(rows),
        chosen=int(other.chosen.sum()),
        rank_correlation=rank_correlation(base.scores, other.scores),
        shared=common / smaller,
        jaccard=common / either,
        shared_by_chance=common_by_chance(base, other) / smaller,
        correlation_dispersion=of_parts.spearman_dispersion,
        correlation_anisotropy=of_parts.spearman_anisotropy,
        mean_dispersion=float(base.dispersion[other.chosen].mean()),
        mean_anisotropy=float(base.anisotropy[other.chosen].mean()),
        mean_answer_tokens=float(rows.answer_tokens[other.chosen].mean()),
    )


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's correlation of two scores of the same rows, 0 where one is constant."""
    return balance(one, one, other, "raw", 0.5).spearman_dispersion


def common_by_chance(one: Scored, other: Scored) -> float:
    """Return how many rows two choices would have in common if each were drawn at random within its bins."""
    return float(np.sum(chosen_rates(one) * chosen_rates(other)))


def chosen_rates(scored: Scored) -> Floats:
    """Return the share of its bin that is chosen, for each row, (N,)."""
    rates: Floats = np.bincount(scored.bins, scored.chosen)[scored.bins] / np.bincount(scored.bins)[scored.bins]
    return rates
