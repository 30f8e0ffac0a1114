"""Stored answers -> their Gram matrices under other layers or another pooling. Nothing is sampled, nothing stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.config.scores import Pooling
from adg_plugin.console import SamplingProgress
from adg_plugin.errors import StoreError
from adg_plugin.store import GramGroup, RunReader, keys
from adg_plugin.store.lookup import PartIndex
from adg_plugin.store.records import RowResult, Sampled
from adg_plugin.store.staging import row_digest

Embedding = tuple[int, Pooling]  # layers, pooling
Ids = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Vectors:
    """What layers and pooling decide over N rows.

    Attributes:
        grams: every row is in exactly one group.
        prompts: (N, H) unit vectors, (N, 0) where nobody asked for them.
    """

    grams: tuple[GramGroup, ...]
    prompts: npt.NDArray[np.float16]

    def of(self, rows: npt.NDArray[np.intp]) -> Vectors:
        """Return those of some rows (M,), ascending."""
        place = np.full(len(self.prompts), -1)
        place[rows] = np.arange(len(rows))
        kept = ((group, place[group.rows] >= 0) for group in self.grams)
        groups = tuple(GramGroup(place[g.rows[stays]], g.grams[stays]) for g, stays in kept if stays.any())
        return Vectors(groups, self.prompts[rows])


def embed_again(
    run: RunReader, config: ADGConfig, ids: Ids, embeddings: Sequence[Embedding], *, show_progress: bool = True
) -> tuple[Ids, dict[Embedding, Vectors], Counter[str]]:
    """Return what the run's model makes of the stored answers, by one forward pass over each row for each embedding.

    Args:
        run: a finished run folder, which stays as it is.
        ids: (N,) rows to embed, ascending.
        embeddings: without repetitions.

    Returns:
        (M,) ids of the rows that every embedding succeeded for, ascending; their vectors, prompts' with them; and how
        many rows were left out, by reason.

    Raises:
        StoreError: the run's model was in memory, or is another one by now.
        ModelError: it cannot be loaded, or has fewer layers than are asked for.
        OutOfMemoryError: not even a few tokens fit beside it.
    """
    from adg_plugin.engines.factory import make_encoder
    from adg_plugin.engines.models.loading import Source

    if config.model is None:
        raise StoreError(f"{run.path} was made with a model in memory: layers and pooling need a run of `adg select`")
    source = Source.configured(config)
    manifest = run.manifest()
    before = None if manifest is None else manifest.get("recipe", {}).get("model")
    if changed := keys.changes({"model": before}, {"model": source.identity}):
        raise StoreError(
            f"the model of {run.path} is not what it was ({changed['model']}): vectors would be "
            "another model's; put that model back, or select again into another folder"
        )
    backbone = source.load()
    settings = [config.updated(layers=layers, pooling=pooling, keep_vectors=False) for layers, pooling in embeddings]
    encoders = [make_encoder(backbone, one) for one in settings]  # all, so that a wrong one is refused before any works
    found: list[dict[str, RowResult]] = []
    lost: dict[str, str] = {}
    with SamplingProgress(len(ids) * len(encoders), verb="embedding", show=show_progress) as progress:
        for encoder in encoders:
            results = {}
            for result in encoder.run(stored_answers(run, ids)):
                progress.add(result.num_tokens, rejected=result.reason is not None)
                if result.reason is not None:
                    lost.setdefault(result.id, result.reason)
                results[result.id] = replace(result, answers=())
            found.append(results)
    kept = np.array([str(id) for id in ids if id not in lost], dtype=object)
    vectors = {embedding: _vectors(kept, results) for embedding, results in zip(embeddings, found, strict=True)}
    return kept, vectors, Counter(lost.values())


def stored_answers(run: RunReader, ids: Ids) -> Iterator[Sampled]:
    """Yield some rows with their stored answers, in the pool's order but for that within a window of some 2,000."""
    wanted, parts = {str(id) for id in ids}, PartIndex(run.stock)
    for window in run.iter_windows(pending_only=False):
        prompts = {prompt.id: prompt for prompt in window if prompt.id in wanted}
        for result in parts.results({row_digest(prompt.id, prompt.key) for prompt in prompts.values()}):
            # The reference response plays no part here: what the filter on agreement has rejected stays rejected.
            yield Sampled(replace(prompts[result.id], reference_ids=None), result.answers)


def _vectors(ids: Ids, results: Mapping[str, RowResult]) -> Vectors:
    rows: dict[int, list[int]] = {}
    grams, prompts = [], []
    for row, id in enumerate(ids):
        result = results[id]
        assert result.gram is not None
        assert result.prompt_vector is not None
        rows.setdefault(len(result.gram), []).append(row)
        grams.append(result.gram)
        prompts.append(result.prompt_vector)
    groups = (GramGroup(np.array(those), np.stack([grams[row] for row in those])) for _, those in sorted(rows.items()))
    return Vectors(tuple(groups), np.stack(prompts) if prompts else np.empty((0, 0), np.float16))
