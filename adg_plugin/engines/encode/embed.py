"""Vectors of token sequences that are already there, by plain batched forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.scores import Pooling
from adg_plugin.engines.forward.hidden_states import last_layers, mean_state, unit
from adg_plugin.engines.forward.memory import is_out_of_memory, release_memory
from adg_plugin.engines.forward.token_weights import fixed_weights, surprisals

REFERENCE_LAYERS = (-4, -3, -2)  # three, not four: as the authors' code does
REFERENCE_TOKENS = 1024
_PLAIN = set(",.;:!?()[]{}\"'`~-_/\\")
_MARKED = set("0123456789%℃°")
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 8192  # the states of all layers are held: 2 GB for 8B in bfloat16


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
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].token_ids))
    budget = _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR)
    pending = list(_batches(order, [len(s.token_ids) for s in sequences], budget))
    vectors: dict[int, Tensor] = {}
    while pending:
        batch = pending.pop()
        try:
            means = _means(model, [sequences[i] for i in batch], indices)
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err) or len(batch) == 1:
                raise
            release_memory(model.device)
            pending += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        vectors.update(zip(batch, unit(means).cpu(), strict=True))
    return torch.stack([vectors[i] for i in range(len(sequences))])


def embed_answers(
    model: PreTrainedModel,
    prompts: Sequence[npt.NDArray[np.int32]],
    answers: Sequence[npt.NDArray[np.int32]],
    layers: int,
) -> Tensor:
    """Return the unit vector of each answer (N, H) after its prompt, as the one-pass engine defines it."""
    pairs = [answer_sequence(p, a) for p, a in zip(prompts, answers, strict=True)]
    return embed(model, pairs, last_layers(layers))


def embed_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instruction: str, answers: Sequence[str]
) -> Tensor:
    """Return the unit vectors (K, H) of a row's answers under `pooling: reference`."""
    return embed(model, [reference_sequence(tokenizer, instruction, a) for a in answers], REFERENCE_LAYERS)


def _batches(order: Sequence[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in order:  # ascending lengths: the newest is the longest
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


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
