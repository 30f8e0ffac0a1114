"""How much each token of an answer counts in its vector: `pooling`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adg_plugin.config.scores import Pooling

# Nats. An answer of which every token was certain would else have no direction; it gets the plain mean.
_LEAST_SURPRISAL = 1e-3
_CHUNK = 64  # rows of logits in float32 at once


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


def surprisals(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p of each token (N,) under its logits (N, V), at temperature 1, in nats; at least 0.001."""
    found = [
        torch.nn.functional.cross_entropy(part.float(), of_part.long(), reduction="none")
        for part, of_part in zip(logits.split(_CHUNK), tokens.split(_CHUNK), strict=True)
    ]
    return torch.cat(found).clamp(min=_LEAST_SURPRISAL) if found else logits.new_zeros(0, dtype=torch.float32)
