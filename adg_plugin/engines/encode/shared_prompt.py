"""Vectors of answers that are there already: each prompt goes through the model once, for all of its K answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adg_plugin.config.groups import VectorSettings
from adg_plugin.engines.forward.flat_batch import Prefill, feed, shared_prefix_attention
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder, last_layers, token_weights, unit
from adg_plugin.engines.forward.memory import halving, neighbours
from adg_plugin.engines.forward.results import OUT_OF_MEMORY, rejection, row_result
from adg_plugin.store.records import RowResult, Sampled

_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 16384  # no cache is kept: what a batch takes is the activations of one layer
_SORTED_ROWS = 256  # rows looked at together, so that those of a batch are of similar length


class SharedPromptEncoder:
    """Embeds sampled rows: the same vectors as the one-pass engine's, from one forward pass over prompt and answers.

    Args:
        model: a causal language model of transformers that `one_pass_problem` has nothing against.
        batch_tokens: tokens in a forward pass; default by the kind of device.
    """

    def __init__(self, model: PreTrainedModel, config: VectorSettings, *, batch_tokens: int | None = None) -> None:
        self.model, self.config = model, config
        self._recorder = HiddenStateRecorder(last_layers(config.layers))
        default = _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR)
        # With surprisals, a batch takes the logits of its answers, too.
        self.batch_tokens = batch_tokens or (default // 4 if config.pooling == "surprisal" else default)

    def run(self, rows: Iterable[Sampled]) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        source = iter(rows)
        while chunk := list(islice(source, _SORTED_ROWS)):
            chunk.sort(key=len)  # the shortest first: what fits is done before what may not
            batches = neighbours(chunk, [len(row) for row in chunk], self.batch_tokens, sum)
            for batch, results in halving(batches, self._results, self.model.device):
                yield from results or [rejection(batch[0].prompt, OUT_OF_MEMORY, batch[0].answers)]

    @torch.no_grad()
    def _results(self, batch: Sequence[Sampled]) -> list[RowResult]:
        states, weights, flat = self._states(batch)
        results = []
        pooled = flat.pooled(states, weights, [slice(*row.prompt.span) for row in batch])
        for row, (prompt, vectors) in zip(batch, pooled, strict=True):
            units = unit(torch.stack(vectors))
            drawn, keep = units[: len(row.answers)], self.config.keep_vectors
            reference = units[-1] if row.prompt.reference_tokens else None
            results.append(row_result(row.prompt, row.answers, drawn, prompt, keep_vectors=keep, reference=reference))
        return results

    def _states(self, batch: Sequence[Sampled]) -> tuple[Tensor, Tensor, Prefill]:
        """Return the mean state (N, H) of each token, the weight (M,) of each answer token, and the flat batch."""
        pooling, device = self.config.pooling, self.model.device
        flat = Prefill([(len(row.prompt), [len(tokens) for tokens in row.continuations]) for row in batch])
        parts = [tokens for row in batch for tokens in (row.prompt.token_ids, *row.continuations)]
        ids = torch.from_numpy(np.concatenate(parts)).long().to(device)
        # The head is not needed but for surprisals; 0 would mean all positions.
        wanted = flat.before_continuations().to(device) if pooling == "surprisal" else 1
        with shared_prefix_attention(self.model), self._recorder.on(self.model):
            logits = feed(self.model, flat, ids, wanted)
            states = self._recorder.take()[0, : len(ids)]
        return states, token_weights(pooling, [tokens for row in batch for tokens in row.continuations], logits), flat
