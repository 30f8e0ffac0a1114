"""Exact sampling, as `generate` does it, from streams that belong to a row alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_BLOCK = 32  # tokens whose maximum stands for them while the likeliest are looked for
_TIES = 14  # candidates beyond top-k, for those that tie with the k-th
_NUCLEUS = 2048  # candidates for a nucleus without top-k, to begin with
_LOGITS = {"cpu": 2**20}  # looked at together: what stays in a processor's caches
_LOGITS_ACCELERATOR = 2**28  # 1 GB in float32
_PER_CANDIDATE = 8  # logits that a candidate takes the room of: its number is made of 64-bit ones


def stream_keys(seed: int, token_ids: npt.NDArray[np.int32], streams: int) -> npt.NDArray[np.int64]:
    """Return (streams,) keys of the random streams that belong to a prompt under a seed."""
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(token_ids, dtype="<i4").tobytes())
    row = np.frombuffer(digest.digest(), dtype="<i8")
    return _mix(torch.from_numpy(row + 0) + _GOLDEN * torch.arange(1, streams + 1)).numpy()


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return the logical right shift of signed 64-bit numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Return the output function of SplitMix64 (Steele, Lea, Flood 2014) of (...,) int64, wrapping."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def exponentials(keys: Tensor, step: Tensor, tokens: Tensor) -> Tensor:
    """Return (R, C) float64 standard exponentials of the streams `keys` at `step`, one for each token id.

    A counter-based generator, and the token id is the counter: the same arguments give the same numbers on every
    device, in any order, and a token's number does not depend on which others could be sampled.

    Args:
        keys: (R,) int64.
        step: (R,) position within the answer.
        tokens: (R, C) token ids.
    """
    state = _mix(_mix(keys + (step + 1) * _GOLDEN))
    bits = _shifted(_mix(state[:, None] + _GOLDEN * (tokens + 1)), 11)
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(uniform)


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of logits (R, V), largest first, and their token ids; both (R, count).

    Of tokens that tie for the last places, any may be among them.
    """
    rows, vocabulary = logits.shape
    if vocabulary <= count * _BLOCK:
        return torch.topk(logits, count)
    # What is among the largest stands in one of the blocks with the largest maxima: the rest need no sorting.
    blocks = nn.functional.pad(logits, (0, -vocabulary % _BLOCK), value=-torch.inf).unflatten(1, (-1, _BLOCK))
    chosen = blocks.amax(-1).topk(count, sorted=False).indices
    row = torch.arange(rows, device=logits.device)[:, None]
    values, places = torch.topk(blocks[row, chosen].flatten(1), count)
    tokens = chosen.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK
    return values, tokens.clamp_(max=vocabulary - 1)  # of a row of NaN, the padding may be chosen


@dataclass(frozen=True, slots=True)
class TokenSampler:
    """Samples tokens as `generate` does: repetition penalty, temperature, top-k, nucleus, in this order, exactly.

    The likeliest tokens are looked at, and no others. The choice is an exponential race among those that are allowed
    (argmax of p / E), with a number E for each token id. Unlike an inverse CDF it does not shift every later token when
    one probability changes in its last bits, so an answer stays the same under rounding noise unless two candidates
    nearly tie. Tokens that tie at an edge, the k-th's or the nucleus's, are all inside.
    """

    temperature: float
    top_k: int  # 0: off
    top_p: float
    repetition_penalty: float = 1.0

    def penalised(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Return logits (R, V), float32, with those of the tokens in `seen` (R, L) lowered by the penalty."""
        logits = logits.float()
        of_seen, penalty = logits.gather(1, seen), self.repetition_penalty
        return logits.scatter(1, seen, torch.where(of_seen < 0, of_seen * penalty, of_seen / penalty))

    def draw(self, logits: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
        """Return (R,) token ids for logits (R, V), from streams `keys` (R,) at `steps` (R,)."""
        vocabulary = logits.shape[1]
        # Some more than k, as bfloat16 has many ties; a nucleus without top-k is first looked for among so many.
        count = self.top_k + _TIES if self.top_k else _NUCLEUS if self.top_p < 1 else vocabulary
        return self._draw(logits, keys, steps, count)

    def _draw(self, logits: Tensor, keys: Tensor, steps: Tensor, count: int) -> Tensor:
        """Return the tokens sampled from the `count` likeliest of each row, or from more where these are not enough."""
        vocabulary = logits.shape[1]
        count = min(count, vocabulary)
        most = _LOGITS.get(logits.device.type, _LOGITS_ACCELERATOR)
        chunk = max(1, most // (vocabulary + _PER_CANDIDATE * count))
        drawn, enough = [], []
        for part, key, step in zip(logits.split(chunk), keys.split(chunk), steps.split(chunk), strict=True):
            part = part.float()
            if self.top_k or self.top_p < 1:
                values, tokens = likeliest(part, count)
            else:  # every token may be sampled: nothing is to be found first
                values, tokens = part, torch.arange(vocabulary, device=part.device).expand_as(part)
            probs, is_enough = self._probabilities(values, part)
            race = (probs / exponentials(key, step, tokens)).argmax(-1, keepdim=True)
            drawn.append(tokens.gather(1, race).squeeze(1))
            enough.append(is_enough)
        found = torch.cat(drawn)
        if count < vocabulary:
            again = (~torch.cat(enough)).nonzero().squeeze(1)
            if len(again):
                found[again] = self._draw(logits[again], keys[again], steps[again], 4 * count)
        return found

    def _probabilities(self, values: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of each candidate (R, C), 0 outside, and whether all that are allowed are there (R,).

        Args:
            values: (R, C) logits of the candidates, largest first; in any order where nothing is cut.
            logits: (R, V) of all tokens.
        """
        scaled = values / self.temperature
        if self.top_k:
            last = min(self.top_k, values.shape[1]) - 1
            kth = values[:, last, None]
            probs = scaled.masked_fill(values < kth, -torch.inf).softmax(-1)
            enough = ~(values[:, -1] >= kth[:, 0])  # also of NaN: more candidates would not help
        else:
            probs = (scaled - torch.logsumexp(logits / self.temperature, -1, keepdim=True)).exp()
            enough = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        if self.top_p >= 1:
            return probs, enough
        # Tied tokens share the mass before the first of them: only strictly likelier ones count.
        is_first = torch.ones_like(probs, dtype=torch.bool)
        is_first[:, 1:] = values[:, 1:] < values[:, :-1]
        likelier = torch.where(is_first, probs.cumsum(-1) - probs, 0).cummax(-1).values
        outside = ~(likelier < self.top_p)
        return probs.masked_fill(outside, 0), enough if self.top_k else outside[:, -1]
