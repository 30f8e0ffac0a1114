"""Attention for a batch in which the K answers of a row share the keys and values of their prompt.

The engine feeds a model one flat sequence of tokens, (1, N), without padding: whole prompts while prefilling, one
token per live answer while decoding. This module tells the tokens apart again. It is registered with transformers
as an attention implementation, so every architecture that uses the attention interface runs it unchanged.

Rows are grouped in cohorts: prompts admitted together, of the same length but for padding to the next multiple of
`COLUMNS`, whose answers have the same age in every step. So the shapes that a row is computed in follow from the row
alone, and with the same weights and machine it gets the same bits whatever shares its batch (tested on CPU; matrix
products of GPUs do not promise it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

IMPLEMENTATION = "adg_shared_prefix"
COLUMNS = 64  # prompts of a cohort are padded to a multiple of this
_GROWTH = 64  # columns added at once to the answers' cache


class UnsupportedAttention(Exception):
    """The model asks attention for something this module does not know."""


@dataclass(slots=True)
class _Layer:
    """Keys and values of one layer, D wide: prompts (P, H, L, D), answers (P * W, H, T, D)."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


@dataclass(slots=True)
class Cohort:
    """Prompts admitted together and their answers, one row of a (P, W) grid each, all of the same age.

    Attributes:
        lengths: (P,) tokens of each prompt.
        columns: L, what the prompts are padded to.
        width: W, answers per prompt that still have a place in the grid.
        live: (R,) places of the rows that are still being drawn, ascending, in a grid numbered row by row.
        age: answer tokens already in the cache.
    """

    lengths: Tensor
    columns: int
    width: int
    live: Tensor
    age: int = 0
    layers: dict[int, _Layer] = field(default_factory=dict)
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Sequence[int], width: int, device: torch.device) -> Cohort:
        """Return an empty cohort for prompts of these lengths, with `width` answers each.

        Raises:
            ValueError: the lengths do not share a multiple of `COLUMNS`.
        """
        columns = {padded(n) for n in lengths}
        if len(columns) != 1:
            raise ValueError(f"prompts of {min(lengths)} to {max(lengths)} tokens do not make one cohort")
        live = torch.arange(len(lengths) * width, device=device)
        return cls(torch.tensor(lengths, device=device), columns.pop(), width, live)

    @property
    def places(self) -> int:
        """Rows of the grid, live or not."""
        return len(self.lengths) * self.width

    @property
    def full(self) -> bool:
        """Whether every place is live, so that rows need no scattering."""
        return len(self.live) == self.places

    def positions(self) -> Tensor:
        """Return the position of the token each live row feeds next, (R,)."""
        return self.lengths[self.live // self.width] + self.age

    def store_prompts(self, layer: int, first: int, lengths: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values (H, N, D) of consecutive prompts, the first of them number `first`."""
        if layer not in self.layers:
            heads, _, dim = keys.shape
            shape = (len(self.lengths), heads, self.columns, dim)
            answers = (self.places, heads, 0, dim)
            new = [keys.new_zeros(s) for s in (shape, shape, answers, answers)]
            self.layers[layer] = _Layer(*new)
        cache, start = self.layers[layer], 0
        for prompt, length in enumerate(lengths, first):
            cache.prompt_keys[prompt, :, :length] = keys[:, start : start + length]
            cache.prompt_values[prompt, :, :length] = values[:, start : start + length]
            start += length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> _Layer:
        """Write the live rows' keys and values (R, H, D) at column `age` and return the layer's cache."""
        cache = self.layers[layer]
        if self.age == cache.keys.shape[2]:
            places, heads, _, dim = cache.keys.shape
            block = cache.keys.new_zeros((places, heads, _GROWTH, dim))
            cache.keys = torch.cat((cache.keys, block), dim=2)
            cache.values = torch.cat((cache.values, block), dim=2)
        for cached, new in ((cache.keys, keys), (cache.values, values)):
            column = cached[:, :, self.age]
            if self.full:
                column.copy_(new)
            else:
                column.index_copy_(0, self.live, new)
        return cache

    def step(self) -> None:
        """Count the column that every layer has just written."""
        self.age += 1
        self._masks = {key: mask for key, mask in self._masks.items() if key is None}

    def keep(self, live: Tensor) -> None:
        """Go on with the places `live` only, and drop prompts that have none left once they take much room."""
        self.live = live
        if len(live) == 0 or len(live) > 0.6 * self.places:
            return
        prompts, counts = torch.unique_consecutive(live // self.width, return_counts=True)
        width = int(counts.max())
        if len(prompts) * width > 0.75 * self.places:
            return  # copying would gain too little
        # Rows of a prompt move to its first places; a place that stays empty gets some row's copy, never read.
        ends = torch.cumsum(counts, 0)
        within = torch.arange(len(live), device=live.device) - torch.repeat_interleave(ends - counts, counts)
        target = torch.repeat_interleave(torch.arange(len(prompts), device=live.device) * width, counts) + within
        source = (prompts * self.width).repeat_interleave(width)
        source[target] = live
        for cache in self.layers.values():
            cache.prompt_keys = cache.prompt_keys[prompts]
            cache.prompt_values = cache.prompt_values[prompts]
            cache.keys, cache.values = cache.keys[source], cache.values[source]
        self.lengths, self.width, self.live, self._masks = self.lengths[prompts], width, target, {}

    def prompt_mask(self, window: int | None) -> Tensor | None:
        """Return an additive mask (P, 1, 1, L) over the prompts' columns, or None where all count."""
        if window is not None and self.columns + self.age < window:
            window = None
        if window not in self._masks:
            column = torch.arange(self.columns, device=self.lengths.device)
            hidden = column >= self.lengths[:, None]
            if window is not None:
                hidden |= column <= self.lengths[:, None] + self.age - window
            mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask[:, None, None] if bool(hidden.any()) else None
        return self._masks[window]


def padded(length: int) -> int:
    """Return the columns that a prompt of this length takes."""
    return -(-length // COLUMNS) * COLUMNS


@dataclass(frozen=True, slots=True)
class Prefill:
    """The flat batch holds these whole prompts of `cohort`, from number `first` on."""

    cohort: Cohort
    first: int
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True)
class Decode:
    """The flat batch holds one token of every live row, cohort by cohort."""

    cohorts: Sequence[Cohort]


_batch: ContextVar[Prefill | Decode] = ContextVar("adg_batch")


@contextmanager
def attending(batch: Prefill | Decode) -> Iterator[None]:
    """Tell the attention of the forward pass inside the block what its flat batch holds."""
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)


@contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` use this module's attention inside the block."""
    before = model.config._attn_implementation
    AttentionInterface.register(IMPLEMENTATION, attention)
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Return the attention output (1, N, heads, D) of a flat batch; query (1, heads, N, D), key and value likewise.

    Raises:
        UnsupportedAttention: the model brings a mask of its own.
    """
    if attention_mask is not None:
        raise UnsupportedAttention("the model builds its own attention mask")
    rule = _Rule(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    batch = _batch.get()
    if isinstance(batch, Prefill):
        return _prefill(batch, layer, query[0], key[0], value[0], rule)[None], None
    return _decode(batch, layer, query[0], key[0], value[0], rule)[None], None


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a layer weighs its keys."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # (heads,)

    def softmax(self, scores: Tensor) -> Tensor:
        """Return the weights of scores (..., kv heads, group, columns), already scaled and masked."""
        if self.sinks is None:
            return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        sink = self.sinks.view(*scores.shape[-3:-1], 1).to(scores.dtype).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat((scores, sink), dim=-1), dim=-1, dtype=torch.float32)
        return weights[..., :-1].to(scores.dtype)

    def scale(self, scores: Tensor) -> Tensor:
        scores = scores.mul_(self.scaling)
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


def _prefill(batch: Prefill, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
    """Return (N, heads, D). Each prompt is attended alone, so that its result is the same in any batch."""
    batch.cohort.store_prompts(layer, batch.first, batch.lengths, key, value)
    output = torch.empty_like(query.transpose(0, 1), memory_format=torch.contiguous_format)
    group, start = query.shape[0] // key.shape[0], 0
    for length in batch.lengths:
        tokens = slice(start, start + length)
        output[tokens] = _causal(query[:, tokens], key[:, tokens], value[:, tokens], group, rule).transpose(0, 1)
        start += length
    output[start:] = 0  # tokens that only fill the batch up
    return output


def _causal(query: Tensor, key: Tensor, value: Tensor, group: int, rule: _Rule) -> Tensor:
    length = query.shape[1]
    windowed = rule.window is not None and length > rule.window
    if not windowed and rule.softcap is None and rule.sinks is None:
        key, value = (t.repeat_interleave(group, dim=0)[None] for t in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(
            query[None], key, value, is_causal=True, scale=rule.scaling
        )[0]
    folded = query.unflatten(0, (-1, group))  # (kv heads, group, L, D)
    scores = rule.scale(folded @ key[:, None].transpose(-1, -2))
    position = torch.arange(length, device=query.device)
    hidden = position[None] > position[:, None]
    if windowed:
        hidden |= position[None] <= position[:, None] - rule.window  # type: ignore[operator]
    scores = scores.masked_fill(hidden, -torch.inf).movedim(2, 0)  # (L, kv heads, group, L)
    return (rule.softmax(scores).movedim(0, 2) @ value[:, None]).flatten(0, 1)


def _decode(batch: Decode, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
    """Return (N, heads, D)."""
    query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    outputs, start = [], 0
    for cohort in batch.cohorts:
        rows = slice(start, start + len(cohort.live))
        cache = cohort.append(layer, key[rows], value[rows])
        outputs.append(_attend(cohort, cache, query[rows], rule))
        start = rows.stop
    if start < len(query):
        outputs.append(torch.zeros_like(query[start:]))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _attend(cohort: Cohort, cache: _Layer, query: Tensor, rule: _Rule) -> Tensor:
    """Return (R, heads, D): each live row over its prompt's columns and its own, under one softmax."""
    prompts, heads, longest, dim = cache.prompt_keys.shape
    width, group = cohort.width, query.shape[1] // heads
    if not cohort.full:
        query = query.new_zeros((cohort.places, *query.shape[1:])).index_copy_(0, cohort.live, query)
    oldest = 0 if rule.window is None else max(0, cohort.age + 1 - rule.window)
    own_keys = cache.keys[:, :, oldest : cohort.age + 1]
    own_values = cache.values[:, :, oldest : cohort.age + 1]

    folded = query.view(prompts, width, heads, group, dim)
    shared = folded.transpose(1, 2).reshape(prompts, heads, width * group, dim) @ cache.prompt_keys.transpose(2, 3)
    shared = shared.view(prompts, heads, width, group, longest).transpose(1, 2)
    own = (folded.view(-1, heads, group, dim) @ own_keys.transpose(2, 3)).view(prompts, width, heads, group, -1)
    scores = rule.scale(torch.cat((shared, own), dim=-1))
    mask = cohort.prompt_mask(rule.window)
    if mask is not None:
        scores[..., :longest] += mask[:, None].to(scores.dtype)
    weights = rule.softmax(scores)
    of_prompt = weights[..., :longest].transpose(1, 2).reshape(prompts, heads, width * group, longest)
    output = (of_prompt @ cache.prompt_values).view(prompts, heads, width, group, dim).transpose(1, 2)
    output = output + (weights[..., longest:].reshape(-1, heads, group, own_keys.shape[2]) @ own_values).view(
        prompts, width, heads, group, dim
    )
    output = output.reshape(cohort.places, heads * group, dim)
    return output if cohort.full else output[cohort.live]
