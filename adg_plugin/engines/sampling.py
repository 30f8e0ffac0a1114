"""Exact nucleus sampling without sorting the vocabulary, from streams that belong to a row alone."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_REJECTIONS = 6  # rounds of draw-and-test before the nucleus of what is left is sorted out


def stream_keys(seed: int, token_ids: npt.NDArray[np.int32], streams: int) -> npt.NDArray[np.int64]:
    """Return (streams,) keys of the random streams that belong to a prompt under a seed."""
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(token_ids, dtype="<i4").tobytes())
    row = np.frombuffer(digest.digest(), dtype="<i8")
    return _mix(torch.from_numpy(row + 0) + _GOLDEN * torch.arange(1, streams + 1)).numpy()


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return the logical right shift of signed 64-bit numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(number: int) -> int:
    """Return a whole number modulo 2^64 as a signed 64-bit number."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """Return the output function of SplitMix64 (Steele, Lea, Flood 2014) of (...,) int64, wrapping."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def exponentials(keys: Tensor, step: Tensor, draw: int, start: int, count: int) -> Tensor:
    """Return (R, count) float64 standard exponentials, numbers `start`... of the streams `keys` at `step`, `draw`.

    A counter-based generator: the same arguments give the same numbers on every device, in any order.

    Args:
        keys: (R,) int64.
        step: (R,) position within the answer.
        draw: number of the attempt at this position.
    """
    state = _mix(_mix(keys + (step + 1) * _GOLDEN) + _wrapped(_GOLDEN * (draw + 1)))
    counter = torch.arange(start + 1, start + count + 1, device=keys.device)
    bits = _shifted(_mix(state[:, None] + _GOLDEN * counter), 11)
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(uniform)


class NucleusSampler:
    """Draws tokens from the tempered distribution cut to its nucleus; top_k does not exist here.

    A token is drawn from the whole tempered softmax and kept if the mass of the strictly likelier tokens is below
    `top_p`, else drawn again: kept draws have exactly the nucleus distribution. The draw itself is an exponential
    race (argmax of p / E) over blocks of the vocabulary, then within the block. Unlike an inverse CDF it does not
    shift every later token when one probability changes in its last bits, so an answer stays the same under
    rounding noise unless two candidates nearly tie.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature = temperature
        self.top_p = top_p

    def draw(self, logits: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
        """Return (R,) token ids for logits (R, V), from streams `keys` (R,) at `steps` (R,)."""
        rows, vocabulary = logits.shape
        block = 1 << max(1, round(np.log2(vocabulary) / 2))
        blocks = -(-vocabulary // block)
        # On a CPU, chunks whose probabilities stay in the processor's caches; one chunk elsewhere.
        chunk = max(1, 2**20 // vocabulary) if logits.device.type == "cpu" else rows
        padded = logits.new_full((min(chunk, rows), blocks * block), -torch.inf, dtype=torch.float32)
        tokens = [
            self._draw_chunk(padded, part, key, step, block)
            for part, key, step in zip(logits.split(chunk), keys.split(chunk), steps.split(chunk), strict=True)
        ]
        return torch.cat(tokens).clamp_(max=vocabulary - 1)  # NaN logits may point into the padding

    def _draw_chunk(self, padded: Tensor, logits: Tensor, keys: Tensor, steps: Tensor, block: int) -> Tensor:
        rows, vocabulary = logits.shape
        scores = padded[:rows]
        scores[:, :vocabulary] = logits
        probs = torch.softmax(scores.mul_(1 / self.temperature), dim=-1).unflatten(1, (-1, block))
        mass = probs.sum(-1)
        tokens, threshold = _race(probs, mass, keys, steps, draw=0)
        if self.top_p >= 1:
            return tokens
        left = self._outside(probs, threshold)
        for draw in range(1, _REJECTIONS):
            if not len(left):
                return tokens
            part = probs[left]
            again, threshold = _race(part, mass[left], keys[left], steps[left], draw)
            tokens[left] = again
            left = left[self._outside(part, threshold)]
        if len(left):
            tokens[left] = self._sorted_draw(probs[left].flatten(1), keys[left], steps[left])
        return tokens

    def _outside(self, probs: Tensor, threshold: Tensor) -> Tensor:
        """Return the rows whose token, of probability `threshold`, lies outside the nucleus."""
        # Written to a float buffer: several times faster on a CPU than `where` or a product with a mask.
        likelier = torch.gt(probs, threshold[:, None, None], out=torch.empty_like(probs)).mul_(probs).sum(-1).sum(-1)
        return (likelier >= self.top_p).nonzero().squeeze(1)

    def _sorted_draw(self, probs: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
        """Return (R,) tokens drawn within the nucleus, for rows that had many rejections: sorts, so is slow."""
        ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
        # Tied tokens share the mass before the first of them: only strictly likelier ones count.
        first_of_ties = torch.ones_like(ordered, dtype=torch.bool)
        first_of_ties[:, 1:] = ordered[:, 1:] < ordered[:, :-1]
        likelier = torch.where(first_of_ties, ordered.cumsum(-1) - ordered, 0).cummax(-1).values
        inside = torch.where(likelier < self.top_p, ordered, 0)
        race = inside / exponentials(keys, steps, _REJECTIONS, 0, probs.shape[1])
        return tokens.gather(1, race.argmax(-1, keepdim=True)).squeeze(1)


def _race(probs: Tensor, mass: Tensor, keys: Tensor, steps: Tensor, draw: int) -> tuple[Tensor, Tensor]:
    """Return one draw from probs (R, blocks, block), unnormalised, as token ids (R,) and their probabilities."""
    rows, blocks, block = probs.shape
    chosen = (mass / exponentials(keys, steps, draw, 0, blocks)).argmax(-1)
    within = probs[torch.arange(rows, device=probs.device), chosen]
    offset = (within / exponentials(keys, steps, draw, blocks, block)).argmax(-1)
    return chosen * block + offset, within.gather(1, offset[:, None]).squeeze(1)
