"""What a layer's attention computes: over a prompt, over what continues one, over a group of answers that are sampled.

Rows are computed in groups (see `decode_group.DecodeGroup`), so that their shapes follow from the row alone, and
with the same weights and machine a row gets the same bits whatever shares its batch (tested on CPU; matrix products
of GPUs do not promise it).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as cached

import torch
from torch import Tensor

from adg_plugin.engines.forward.decode_group import DecodeGroup, LayerCache


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


def causal(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Return the attention output (heads, L, D) of a sequence over itself; key and value are (kv heads, L, D)."""
    length = query.shape[1]
    if rule.is_plain and (rule.window is None or length <= rule.window):
        key, value = (t.repeat_interleave(len(query) // len(t), dim=0)[None] for t in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(
            query[None], key, value, is_causal=True, scale=rule.scaling
        )[0]
    position = torch.arange(length, device=query.device)
    return _masked(query, key, value, rule, rule.hidden(position, position))


def continuing(query: Tensor, key: Tensor, value: Tensor, rule: Rule, hidden: Tensor) -> Tensor:
    """Return the attention output (K, heads, T, D) of answers over their prompt and themselves.

    Args:
        query: (K, heads, T, D).
        key: (K, kv heads, L + T, D), like `value`.
        hidden: (T, L + T) keys that a query does not see.
    """
    if not rule.is_plain:
        return _masked(query, key, value, rule, hidden)
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=~hidden, scale=rule.scaling)


def _masked(query: Tensor, key: Tensor, value: Tensor, rule: Rule, hidden: Tensor) -> Tensor:
    """Return the attention output (..., heads, M, D) of queries over keys (..., kv heads, N, D), `hidden` (M, N)."""
    folded = query.unflatten(-3, (key.shape[-3], -1))  # (..., kv heads, group, M, D)
    scores = rule.scale(folded.float() @ key.unsqueeze(-3).float().transpose(-1, -2))
    scores = scores.masked_fill(hidden, -torch.inf).transpose(-3, -2)  # (..., kv heads, M, group, N)
    weights = rule.softmax(scores).transpose(-3, -2).to(value.dtype)
    return (weights @ value.unsqueeze(-3)).flatten(-4, -3)


def attend_group(decode_group: DecodeGroup, cache: LayerCache, query: Tensor, rule: Rule) -> Tensor:
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
