"""Vectors of token sequences that are already there, by plain batched forward passes, each sequence whole.

Of models that take no attention from outside, and of `pooling: reference`, made as the authors' released code makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.groups import Pooling, VectorSettings
from adg_plugin.engines.base import Engine
from adg_plugin.engines.forward.hidden_states import fixed_weights, last_layers, mean_state, surprisals, unit
from adg_plugin.engines.forward.memory import fitting, halving, neighbours
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY, gram_matrix, rejection, row_result
from adg_plugin.store.records import Prompt, RowResult, Sampled

REFERENCE_LAYERS = (-4, -3, -2)  # three, not four: as the authors' code does
REFERENCE_TOKENS = 1024
_PLAIN = set(",.;:!?()[]{}\"'`~-_/\\")
_MARKED = set("0123456789%℃°")
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 8192  # the states of all layers are held: 2 GB for 8B in bfloat16
_ROWS = 64  # embedded together: enough to sort by length


@dataclass(frozen=True, slots=True)
class Weighted:
    """A token sequence and how much each token's state counts in its mean."""

    token_ids: npt.NDArray[np.int32]  # (L,)
    weights: npt.NDArray[np.float32]  # (L,)
    by_surprisal: bool = False  # each weight is multiplied by -log p of its token, from the same forward pass


def answer_sequence(
    prompt: npt.NDArray[np.int32], answer: npt.NDArray[np.int32], pooling: Pooling = "answer"
) -> Weighted:
    """Return prompt + answer, of which only the answer's tokens count, as `pooling` says."""
    ids = np.concatenate((prompt, answer)).astype(np.int32)
    weights = np.concatenate((np.zeros(len(prompt), np.float32), fixed_weights(pooling, len(answer))))
    return Weighted(ids, weights, pooling == "surprisal")


def reference_sequence(tokenizer: PreTrainedTokenizerBase, instruction: str, answer: str) -> Weighted:
    """Return instruction + " " + answer weighted as by the authors' released code (`pooling: reference`).

    No template, no special tokens, at most 1,024 tokens. A token of white space and punctuation counts 0, one with a
    digit or a sign of percent or degree 1.3, any other 1.
    """
    ids = tokenizer(f"{instruction} {answer}", add_special_tokens=False, verbose=False)["input_ids"][:REFERENCE_TOKENS]
    texts = tokenizer.batch_decode([[i] for i in ids])
    return Weighted(np.array(ids, dtype=np.int32), np.array([_reference_weight(t) for t in texts], dtype=np.float32))


def _reference_weight(token: str) -> float:
    token = token.strip()
    if all(c in _PLAIN or c.isspace() for c in token):
        return 0.0
    return 1.3 if any(c in _MARKED for c in token) else 1.0


@torch.no_grad()
def embed(model: PreTrainedModel, sequences: Sequence[Weighted], indices: tuple[int, ...]) -> Tensor:
    """Return the unit vector of each sequence, (N, H) float32: the weighted mean of its tokens' states.

    A sequence without weight gives NaN. Batches are sorted by length and halved when memory runs out.

    Args:
        model: a causal language model in evaluation mode.
        sequences: each at least one token long.
        indices: which entries of HF's `hidden_states` are averaged.

    Raises:
        torch.OutOfMemoryError: a sequence does not fit even alone.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].token_ids))
    budget = _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR)
    lengths = [len(sequences[i].token_ids) for i in order]
    batches = list(neighbours(order, lengths, budget, lambda some: len(some) * some[-1]))

    def embedded(batch: Sequence[int]) -> Tensor:
        return unit(_means(model, [sequences[i] for i in batch], indices)).cpu()

    vectors: dict[int, Tensor] = {}
    for batch, units in halving(reversed(batches), embedded, model.device):
        if units is None:
            raise torch.OutOfMemoryError(f"no memory for a sequence of {len(sequences[batch[0]].token_ids)} tokens")
        vectors.update(zip(batch, units, strict=True))
    return torch.stack([vectors[i] for i in range(len(sequences))])


def embed_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instruction: str, answers: Sequence[str]
) -> Tensor:
    """Return the unit vectors (K, H) of a row's answers under `pooling: reference`."""
    return embed(model, [reference_sequence(tokenizer, instruction, a) for a in answers], REFERENCE_LAYERS)


def _means(model: PreTrainedModel, batch: Sequence[Weighted], indices: tuple[int, ...]) -> Tensor:
    longest = max(len(s.token_ids) for s in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    attended = torch.zeros_like(ids)
    weights = torch.zeros((len(batch), longest))
    for row, sequence in enumerate(batch):
        length = len(sequence.token_ids)
        ids[row, :length] = torch.from_numpy(sequence.token_ids)
        weights[row, :length] = torch.from_numpy(sequence.weights)
        attended[row, :length] = 1
    device = model.device
    surprising = [row for row, sequence in enumerate(batch) if sequence.by_surprisal]
    # The states that the model itself names, not a tap: what they are differs between architectures, and this is also
    # what answers of models that cannot be tapped are embedded with.
    output = model(
        input_ids=ids.to(device),
        attention_mask=attended.to(device),
        use_cache=False,
        output_hidden_states=True,
        # The head is not needed but for surprisals, which take all positions.
        logits_to_keep=0 if surprising else 1,
    )
    weights = weights.to(device)
    for row in surprising:
        weights[row, 1:] *= surprisals(output.logits[row, :-1], ids[row, 1:].to(device))
    states = mean_state([output.hidden_states[i] for i in indices])
    # A token without weight may have an infinite state (padding): it must not turn the mean into NaN.
    states = states.masked_fill(weights[..., None] == 0, 0)
    # No matrix product: those of float32 may be computed in TF32 on accelerators.
    return states.mul_(weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


class RepeatingEncoder:
    """Embeds sampled rows of models that do not take their attention from outside: each answer after its own prompt."""

    def __init__(self, model: PreTrainedModel, config: VectorSettings) -> None:
        self.model, self.config = model, config

    def run(self, rows: Iterable[Sampled]) -> Iterator[RowResult]:
        """Yield one result per row, in their order."""
        for row in rows:
            result = fitting(lambda one: encoded_one_by_one(self.model, self.config, one), row, self.model.device)
            yield result or rejection(row.prompt, OUT_OF_MEMORY, row.answers)


def encoded_one_by_one(model: PreTrainedModel, config: VectorSettings, row: Sampled) -> RowResult:
    """Return the result of a row, each of its answers encoded after the whole prompt."""
    sequences = [answer_sequence(row.prompt.token_ids, tokens, config.pooling) for tokens in row.continuations]
    *units, prompt = embed(model, [*sequences, _span(row.prompt)], last_layers(config.layers))
    reference = units.pop() if row.prompt.reference_tokens else None
    return row_result(
        row.prompt, row.answers, torch.stack(units), prompt, keep_vectors=config.keep_vectors, reference=reference
    )


def _span(prompt: Prompt) -> Weighted:
    weights = np.zeros(len(prompt), dtype=np.float32)
    weights[slice(*prompt.span)] = 1
    return Weighted(prompt.token_ids, weights)


class ReferencePooling:
    """Embeds the answers of an engine again, in a second forward pass; the prompt's vector stays that of the engine."""

    def __init__(self, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._model, self._tokenizer = model, tokenizer

    def run(self, rows: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        instructions: dict[str, str] = {}  # of the rows in flight

        def remembered() -> Iterator[Prompt]:
            for row in rows:
                instructions[row.id] = row.instruction
                yield row

        for result in self._engine.run(remembered()):
            yield self._pooled(result, instructions.pop(result.id))

    def _pooled(self, result: RowResult, instruction: str) -> RowResult:
        if result.gram is None:
            return result
        texts = [answer.text for answer in result.answers]
        vectors = fitting(
            lambda these: embed_reference(self._model, self._tokenizer, instruction, these), texts, self._model.device
        )
        gram = None if vectors is None else gram_matrix(vectors)
        if vectors is None or gram is None or not np.isfinite(gram).all():
            reason = OUT_OF_MEMORY if vectors is None else NON_FINITE
            return replace(result, gram=None, prompt_vector=None, vectors=None, reason=reason)
        kept = None if result.vectors is None else vectors.numpy().astype(np.float16)
        return replace(result, gram=gram, vectors=kept)


class ReferenceEncoder:
    """Embeds answers that are there already, empty ones included; prompts as every other encoder does."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: VectorSettings) -> None:
        self._model, self._tokenizer, self._config = model, tokenizer, config

    def run(self, rows: Iterable[Sampled], /) -> Iterator[RowResult]:
        """Yield one result per row, in their order."""
        source = iter(rows)
        while chunk := list(islice(source, _ROWS)):
            for batch, results in halving([chunk], self._results, self._model.device):
                yield from results or [rejection(batch[0].prompt, OUT_OF_MEMORY, batch[0].answers)]

    def _results(self, rows: Sequence[Sampled]) -> list[RowResult]:
        prompts = embed(self._model, [_span(row.prompt) for row in rows], last_layers(self._config.layers))
        # Equal answers have one vector; rounding noise between their copies would count as directions.
        texts = [list(dict.fromkeys(answer.text for answer in row.answers)) for row in rows]
        pairs = [(row.instruction, text) for row, distinct in zip(rows, texts, strict=True) for text in distinct]
        found = embed(self._model, [reference_sequence(self._tokenizer, *pair) for pair in pairs], REFERENCE_LAYERS)
        of_rows = found.split([len(distinct) for distinct in texts])
        results = []
        for row, prompt, distinct, vectors in zip(rows, prompts, texts, of_rows, strict=True):
            units = vectors[[distinct.index(answer.text) for answer in row.answers]]
            keep = self._config.keep_vectors
            results.append(row_result(row.prompt, row.answers, units, prompt, keep_vectors=keep))
        return results
