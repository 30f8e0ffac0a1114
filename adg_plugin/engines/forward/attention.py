"""Attention for a batch in which the K answers of a row share the keys and values of their prompt.

The engine feeds a model one flat sequence of tokens, (1, N), without padding: whole prompts while prefilling, one
token per live answer while decoding. This module tells the tokens apart again. It is registered with transformers
as an attention implementation, so every architecture that uses the attention interface runs it unchanged.

Rows are computed in groups (see `decode_group.DecodeGroup`), so that their shapes follow from the row alone, and
with the same weights and machine a row gets the same bits whatever shares its batch (tested on CPU; matrix products
of GPUs do not promise it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache as cached
from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from adg_plugin.engines.forward.decode_group import DecodeGroup, LayerCache

IMPLEMENTATION = "adg_shared_prefix"


class UnsupportedAttention(Exception):
    """The model asks attention for something this module does not know."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The flat batch holds these whole prompts of `decode_group`, from number `first` on, then the reference responses.

    Attributes:
        lengths: tokens of each prompt.
        references: tokens of each reference response, 0 where it is not fed; they follow their prompt, not kept.
    """

    decode_group: DecodeGroup
    first: int
    lengths: Sequence[int]
    references: Sequence[int] = ()

    def positions(self) -> Tensor:
        """Return the position (N,) of each token."""
        ends = zip(self.lengths, self.references, strict=False)
        own = [torch.arange(length, length + reference) for length, reference in ends]
        return torch.cat([*(torch.arange(length) for length in self.lengths), *own])

    def before_references(self) -> Tensor:
        """Return the place in the batch of the token before each token of the reference responses."""
        places, end, start = [torch.empty(0, dtype=torch.long)], 0, sum(self.lengths)
        for length, reference in zip(self.lengths, self.references, strict=False):
            end += length
            if reference:
                places += [torch.tensor([end - 1]), torch.arange(start, start + reference - 1)]
            start += reference
        return torch.cat(places)


@dataclass(frozen=True, slots=True)
class Decode:
    """The flat batch holds one token of every live row, decode_group by decode_group."""

    decode_groups: Sequence[DecodeGroup]


class FlatBatch(Protocol):
    """A flat batch that attends to itself, such as `encode.shared_prompt.Encode`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return the attention output (N, heads, D); query (heads, N, D), key and value likewise."""


_batch: ContextVar[Prefill | Decode | FlatBatch] = ContextVar("adg_batch")


@contextmanager
def attending(batch: Prefill | Decode | FlatBatch) -> Iterator[None]:
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
    """Return (1, N, heads, D) of a flat batch, query (1, heads, N, D); UnsupportedAttention if the model has a mask."""
    if attention_mask is not None:
        raise UnsupportedAttention("it builds its own attention mask")
    rule = Rule(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    batch = _batch.get()
    if isinstance(batch, Prefill):
        return _prefill(batch, layer, query[0], key[0], value[0], rule)[None], None
    if isinstance(batch, Decode):
        return _decode(batch, layer, query[0], key[0], value[0], rule)[None], None
    return batch.attend(query[0], key[0], value[0], rule)[None], None


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer weighs its keys."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # (heads,)

    def softmax(self, scores: Tensor) -> Tensor:
        """Return the weights of scores (..., kv heads, W, group, columns), already scaled and masked."""
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sink = self.sinks.view(scores.shape[-4], 1, scores.shape[-2], 1).to(scores.dtype)
        scores = torch.cat((scores, sink.expand(*scores.shape[:-1], 1)), dim=-1)
        return torch.softmax(scores, dim=-1)[..., :-1]

    @property
    def is_plain(self) -> bool:
        """Whether torch's own attention can compute it, but for the window."""
        return self.softcap is None and self.sinks is None

    def hidden(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return (M, N) whether the key at a position (N,) is hidden from the query at a position (M,)."""
        distance = queries[:, None] - keys[None]
        hidden = distance < 0
        return hidden if self.window is None else hidden | (distance >= self.window)

    def scale(self, scores: Tensor) -> Tensor:
        """Return raw products as scores; overwrites them."""
        scores = scores.mul_(self.scaling)
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


def _prefill(batch: Prefill, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Return (N, heads, D). Each prompt is attended alone, so that its result is the same in any batch."""
    batch.decode_group.store_prompts(layer, batch.first, batch.lengths, key, value)
    output = torch.empty_like(query.transpose(0, 1), memory_format=torch.contiguous_format)
    group, start = query.shape[0] // key.shape[0], 0
    for length in batch.lengths:
        tokens = slice(start, start + length)
        output[tokens] = causal(query[:, tokens], key[:, tokens], value[:, tokens], group, rule).transpose(0, 1)
        start += length
    end = 0
    for length, reference in zip(batch.lengths, batch.references, strict=False):
        prompt, tokens = slice(end, end + length), slice(start, start + reference)
        end += length
        if reference:
            keys, values = (torch.cat((t[:, prompt], t[:, tokens]), dim=1)[None] for t in (key, value))
            positions = torch.arange(length + reference, device=query.device)
            hidden = rule.hidden(positions[length:], positions)
            output[tokens] = continuing(query[None, :, tokens], keys, values, group, rule, hidden)[0].transpose(0, 1)
        start += reference
    output[start:] = 0  # tokens that only fill the batch up
    return output


def causal(query: Tensor, key: Tensor, value: Tensor, group: int, rule: Rule) -> Tensor:
    """Return the attention output (heads, L, D) of a sequence over itself; `group` query heads share a key head."""
    length = query.shape[1]
    if rule.is_plain and (rule.window is None or length <= rule.window):
        key, value = (t.repeat_interleave(group, dim=0)[None] for t in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(
            query[None], key, value, is_causal=True, scale=rule.scaling
        )[0]
    position = torch.arange(length, device=query.device)
    return masked(query, key, value, group, rule, rule.hidden(position, position))


def continuing(query: Tensor, key: Tensor, value: Tensor, group: int, rule: Rule, hidden: Tensor) -> Tensor:
    """Return the attention output (K, heads, T, D) of answers over their prompt and themselves.

    Args:
        query: (K, heads, T, D).
        key: (K, kv heads, L + T, D), like `value`.
        hidden: (T, L + T) keys that a query does not see.
    """
    if not rule.is_plain:
        return masked(query, key, value, group, rule, hidden)
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=~hidden, scale=rule.scaling)


def masked(query: Tensor, key: Tensor, value: Tensor, group: int, rule: Rule, hidden: Tensor) -> Tensor:
    """Return the attention output (..., heads, M, D) of queries over keys (..., kv heads, N, D).

    Args:
        query: (..., heads, M, D).
        key: like `value`; `group` query heads share one of its heads.
        hidden: (M, N) keys that a query does not see.
    """
    folded = query.unflatten(-3, (-1, group))  # (..., kv heads, group, M, D)
    scores = rule.scale(folded.float() @ key.unsqueeze(-3).float().transpose(-1, -2))
    scores = scores.masked_fill(hidden, -torch.inf).transpose(-3, -2)  # (..., kv heads, M, group, N)
    weights = rule.softmax(scores).transpose(-3, -2).to(value.dtype)
    return (weights @ value.unsqueeze(-3)).flatten(-4, -3)


def _decode(batch: Decode, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Return (N, heads, D)."""
    query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    outputs, start = [], 0
    for decode_group in batch.decode_groups:
        rows = slice(start, start + len(decode_group.live))
        cache = decode_group.append(layer, decode_group.to_grid(key[rows]), decode_group.to_grid(value[rows]))
        outputs.append(decode_group.from_grid(_attend(decode_group, cache, decode_group.to_grid(query[rows]), rule)))
        start = rows.stop
    if start < len(query):
        outputs.append(torch.zeros_like(query[start:]))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _attend(decode_group: DecodeGroup, cache: LayerCache, query: Tensor, rule: Rule) -> Tensor:
    """Return (P, W, heads, D): each row over its prompt's columns and its own, under one softmax.

    Throughout, the order is (P, H, W, group): prompts' products run over W * group queries at once, answers' over
    P * H * W caches, and both are views of the same memory.
    """
    prompts, heads, columns, dim = cache.prompt_keys.shape
    width, group = query.shape[1], query.shape[2] // heads
    oldest = 0 if rule.window is None else max(0, decode_group.age + 1 - rule.window)
    own_keys = cache.keys[:, :, :, oldest : decode_group.age + 1].flatten(0, 2)
    own_values = cache.values[:, :, :, oldest : decode_group.age + 1].flatten(0, 2)
    of_prompt, of_row = (prompts * heads, width * group, -1), (prompts * heads * width, group, -1)

    query = query.unflatten(2, (heads, group)).transpose(1, 2).contiguous()  # (P, H, W, group, D)
    shared = _products(query.view(*of_prompt[:2], dim), cache.prompt_keys.flatten(0, 1))
    own = _products(query.view(*of_row[:2], dim), own_keys)
    grid = (prompts, heads, width, group, -1)
    scores = rule.scale(torch.cat((shared.view(grid), own.view(grid)), dim=-1))
    mask = decode_group.prompt_mask(rule.window)
    if mask is not None:
        scores[..., :columns] += mask
    weights = rule.softmax(scores).to(own_values.dtype)
    output = torch.bmm(weights[..., :columns].view(of_prompt), cache.prompt_values.flatten(0, 1))
    output = torch.baddbmm(output.view(*of_row[:2], dim), weights[..., columns:].view(of_row), own_values)
    return output.view(*grid[:4], dim).transpose(1, 2).flatten(2, 3)


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the inner products (B, M, N), float32, of queries (B, M, D) with keys (B, N, D).

    Half precision would round the scores of models with large keys (Qwen2) by whole units, and overflow in float16.
    """
    if queries.dtype != torch.float32 and queries.dtype == keys.dtype and _has_float_products(queries.device.type):
        return torch.bmm(queries, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(queries.float(), keys.float().transpose(1, 2))


@cached
def _has_float_products(device: str) -> bool:
    """Return whether products of half precision can come out in float32 on this kind of device."""
    ones = torch.ones((1, 16, 16), dtype=torch.bfloat16, device=device)
    try:
        torch.bmm(ones, ones, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # an older torch, or a device without them (NotImplementedError is the latter)
        return False
    return True
