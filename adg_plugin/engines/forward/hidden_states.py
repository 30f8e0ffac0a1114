"""Hidden states of the last layers, taken while the model runs, and how much each counts in a vector (`pooling`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adg_plugin.config.groups import Pooling

# Nats. An answer of which every token was certain would else have no direction; it gets the plain mean.
_LEAST_SURPRISAL = 1e-3
_CHUNK = 64  # rows of logits in float32 at once


def last_layers(count: int) -> tuple[int, ...]:
    """Return the indices of the last `count` entries of HF's `hidden_states`."""
    return tuple(range(-count, 0))


class HiddenStateRecorder:
    """Collects the mean of some entries of HF's `hidden_states` from each forward pass.

    The last entry is the base model's output, after the final norm; the ones before it are the outputs of blocks.

    Args:
        indices: negative positions in `hidden_states`, ascending.
    """

    def __init__(self, indices: tuple[int, ...]) -> None:
        self.indices = indices
        self._states: list[Tensor] = []

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Listen to `model` inside the block."""
        blocks = decoder_blocks(model)
        handles = [blocks[i].register_forward_hook(self._keep) for i in self.indices if i < -1]
        if -1 in self.indices:
            handles.append(model.base_model.register_forward_hook(self._keep))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.forget()

    def _keep(self, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, tuple | list):
            output = output[0]
        state = getattr(output, "last_hidden_state", output)
        if not isinstance(state, Tensor):
            raise TypeError(f"{type(module).__name__} returns {type(output).__name__}, without states")
        self._states.append(state)

    def take(self) -> Tensor:
        """Return the mean state of each token of the last forward pass, (batch, N, H) float32, and forget it."""
        mean = mean_state(self._states)
        self.forget()
        return mean

    def forget(self) -> None:
        """Drop what an interrupted forward pass left."""
        self._states.clear()


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's decoder blocks; a LookupError unless one single list has a module per hidden layer."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise LookupError(f"found {len(lists)} lists of {count} modules where one list of decoder blocks was expected")
    return lists[0]


def mean_state(states: Sequence[Tensor]) -> Tensor:
    """Return the mean over layers of states of one shape, float32."""
    total = states[0].float()
    for state in states[1:]:
        total = total + state  # float32 + bfloat16 stays float32
    return total / len(states)


def unit(vectors: Tensor) -> Tensor:
    """Return the vectors (..., H) scaled to unit length, float32; a zero vector becomes NaN, never a direction."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths


def fixed_weights(pooling: Pooling, length: int) -> npt.NDArray[np.float32]:
    """Return the weights (T,) of an answer's tokens, as far as they follow from its length.

    `answer`: all count alike; `last_token`: the last alone; `skip_first`: all but the first, which counts where it is
    alone; `surprisal`: alike, to be multiplied by `surprisals`.
    """
    weights = np.ones(length, dtype=np.float32)
    if pooling == "last_token":
        weights[:-1] = 0
    elif pooling == "skip_first" and length > 1:
        weights[0] = 0
    return weights


def begins_anew(pooling: Pooling, token: int) -> bool:
    """Return whether the sum over an answer's states begins with this token (numbered from 0), dropping the earlier."""
    return pooling == "last_token" or (pooling == "skip_first" and token <= 1)


def token_weights(pooling: Pooling, answers: Sequence[npt.NDArray[np.int32]], logits: Tensor) -> Tensor:
    """Return the weight (M,) of each token of all answers, on the device of the logits.

    Args:
        logits: (M, V) that predict these tokens; looked at for `surprisal` only.
    """
    fixed = np.concatenate([np.empty(0, np.float32), *(fixed_weights(pooling, len(tokens)) for tokens in answers)])
    weights = torch.from_numpy(fixed).to(logits.device)
    if pooling == "surprisal" and answers:
        weights = weights * surprisals(logits, torch.from_numpy(np.concatenate(answers)).to(logits.device))
    return weights


def surprisals(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p of each token (N,) under its logits (N, V), at temperature 1, in nats; at least 0.001."""
    found = [
        torch.nn.functional.cross_entropy(part.float(), of_part.long(), reduction="none")
        for part, of_part in zip(logits.split(_CHUNK), tokens.split(_CHUNK), strict=True)
    ]
    return torch.cat(found).clamp(min=_LEAST_SURPRISAL) if found else logits.new_zeros(0, dtype=torch.float32)
