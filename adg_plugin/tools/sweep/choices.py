"""One pool of answered rows, the choices that different settings make of it, and how alike they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import Pooling
from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import SamplingProgress
from adg_plugin.errors import DataError, StoreError
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.scoring.geometry import Parts, balance, combine, parts
from adg_plugin.scoring.quota import choose, resolve_budget
from adg_plugin.store import Geometry, GramGroup, RunReader, keys
from adg_plugin.store.lookup import PartIndex
from adg_plugin.store.records import Sampled
from adg_plugin.store.staging import row_digest

Embedding = tuple[int, Pooling]  # layers, pooling
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
        geometry: of the same rows by embedding; None: the stored one.
        answer_tokens: (N,) tokens per answer.
        config: the run's settings.
        pool_rows: of the pool after exact duplicates, for a budget that is a fraction.
        scored: rows of the whole run; where these are fewer, budgets and bins shrink in proportion.
        bins: (N,) of the run; default: found again.
        chosen: (N,) by the run; default: chosen again.
    """

    geometry: Mapping[Embedding | None, Geometry]
    answer_tokens: Floats
    config: ADGConfig
    pool_rows: int
    scored: int
    bins: Ints | None = None
    chosen: Bools | None = None
    _parts: dict[tuple[Embedding | None, int], Parts] = field(default_factory=dict, init=False)
    _bins: dict[tuple[Embedding | None, int], Ints] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.bins is not None:
            self._bins[None, self._num_bins(self.config)] = self.bins

    def __len__(self) -> int:
        return len(self.geometry[None])

    def part(self, kept: Bools, embedded: Mapping[Embedding, Geometry]) -> Rows:
        """Return the rows `kept`, (N,), embedded again as well; all rows keep the run's bins and choice."""
        geometry: dict[Embedding | None, Geometry] = {None: self.geometry[None].without(~kept, ())}
        geometry.update(embedded.items())
        some = replace(self, geometry=geometry, answer_tokens=self.answer_tokens[kept])
        return some if kept.all() else replace(some, bins=None, chosen=None)

    def own(self) -> Scored:
        """Return what the run's settings make of the rows: of all of them, what the run did."""
        scored = self.made(self.config, None)
        return scored if self.chosen is None else replace(scored, chosen=self.chosen)

    def made(self, config: ADGConfig, embedding: Embedding | None) -> Scored:
        """Return what other settings make of the rows."""
        found = self._parts_of(embedding, config.num_samples)
        scores = combine(found.dispersion, found.anisotropy, config.score, config.weight)
        bins = self._bins_of(config, embedding)
        budget, _ = self.budget(config)
        chosen = choose(self.geometry[None].ids, scores, bins, budget, config.subset).chosen
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
            self._bins[key] = assign_bins(self.geometry[of].prompt_vectors, key[1], self.config.seed)
        return self._bins[key]

    def _parts_of(self, embedding: Embedding | None, num_samples: int) -> Parts:
        """Return the parts by the first `num_samples` answers of each row, or all where it has fewer.

        Answers are drawn independently and stored in the order of their draws, so the first K are as good as any.
        """
        key = embedding, num_samples
        if key not in self._parts:
            spread, directions = np.empty(len(self)), np.empty(len(self))
            for group in self.geometry[embedding].grams:
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


def embed_again(
    run: RunReader, config: ADGConfig, stored: Geometry, embeddings: Sequence[Embedding], *, show_progress: bool = True
) -> tuple[dict[Embedding, Geometry], Counter[str]]:
    """Return what the run's model makes of the stored answers, by one forward pass over each row for each embedding.

    Args:
        run: a finished run folder, which stays as it is.
        stored: of the rows to embed.
        embeddings: without repetitions.

    Returns:
        The rows that every embedding succeeded for, by embedding; and how many others were left out, by reason.

    Raises:
        StoreError: the run's model was in memory, or is another one by now.
        ModelError: it cannot be loaded, or has fewer layers than are asked for.
        OutOfMemoryError: not even a few tokens fit beside it.
        DataError: no row can be embedded again.
    """
    from adg_plugin.engines.factory import make_encoder
    from adg_plugin.engines.models.loading import Source

    if config.model is None:
        raise StoreError(f"{run.path} was made with a model in memory: layers and pooling need a run of `adg select`")
    source = Source.configured(config)
    before = (run.manifest() or {}).get("recipe", {}).get("model")
    if changed := keys.changes({"model": before}, {"model": source.identity}):
        raise StoreError(
            f"the model of {run.path} is not what it was ({changed['model']}): vectors would be "
            "another model's; put that model back, or select again into another folder"
        )
    backbone = source.load()
    settings = [config.updated(layers=layers, pooling=pooling, keep_vectors=False) for layers, pooling in embeddings]
    encoders = [make_encoder(backbone, one) for one in settings]  # all, so that a wrong one is refused before any works
    grams: dict[tuple[Embedding, str], npt.NDArray[np.float32]] = {}
    prompts: dict[tuple[Embedding, str], npt.NDArray[np.float16]] = {}
    lost: dict[str, str] = {}
    with SamplingProgress(len(stored) * len(encoders), verb="embedding", show=show_progress) as progress:
        for embedding, encoder in zip(embeddings, encoders, strict=True):
            for result in encoder.run(stored_answers(run, stored.ids)):
                progress.add(result.num_tokens, rejected=result.reason is not None)
                if result.reason is not None:
                    lost.setdefault(result.id, result.reason)
                elif result.gram is not None and result.prompt_vector is not None:
                    grams[embedding, result.id], prompts[embedding, result.id] = result.gram, result.prompt_vector
    if len(lost) == len(stored):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(lost.values()).items()))
        raise DataError(
            f"none of the {len(stored)} rows could be embedded again ({reasons}): free the device where memory is "
            "short, or load the model in the precision in which the run did; or vary neither layers nor pooling"
        )
    kept = stored.without(np.array([id in lost for id in stored.ids], dtype=bool), ())
    embedded = {}
    for embedding in embeddings:
        groups = ((group.rows, [grams[embedding, id] for id in kept.ids[group.rows]]) for group in kept.grams)
        embedded[embedding] = replace(
            kept,
            grams=tuple(GramGroup(rows, np.stack(of_rows)) for rows, of_rows in groups),
            prompt_vectors=np.array([prompts[embedding, id] for id in kept.ids]),
        )
    return embedded, Counter(lost.values())


def stored_answers(run: RunReader, ids: npt.NDArray[np.object_]) -> Iterator[Sampled]:
    """Yield some rows with their stored answers, in the pool's order but for that within a window of some 2,000."""
    wanted, parts = {str(id) for id in ids}, PartIndex(run.stock)
    for window in run.iter_windows(pending_only=False):
        prompts = {prompt.id: prompt for prompt in window if prompt.id in wanted}
        for result in parts.results({row_digest(prompt.id, prompt.key) for prompt in prompts.values()}):
            # The reference response plays no part here: what the filter on agreement has rejected stays rejected.
            yield Sampled(replace(prompts[result.id], reference_ids=None), result.answers)
