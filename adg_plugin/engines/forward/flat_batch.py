"""A model run over flat batches, in which the K answers of a row share the keys and values of their prompt.

A model is fed one flat sequence of tokens, (1, N), without padding: whole prompts and what continues them, or one token
per live answer while decoding. This module tells the tokens apart again. It is registered with transformers as an
attention implementation, so every architecture that uses the attention interface runs it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel

from adg_plugin.engines.forward.attention import Rule, attend_group, causal, continuing
from adg_plugin.engines.forward.decode_group import DecodeGroup

IMPLEMENTATION = "adg_shared_prefix"
_Pair = tuple[Tensor, Tensor]  # of a prompt and of its continuations
MIN_BATCH = 16  # below 12, some CPU matrix products sum in another order: small batches are filled up


class UnsupportedAttention(Exception):
    """The model asks attention for something this module does not know."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The flat batch holds prompts, each followed by what continues it: answers, or a reference response.

    Attributes:
        rows: tokens of each prompt, and of each of its continuations.
        decode_group: keeps the keys and values of the prompts, not of the continuations; None: nothing is kept.
        first: number of the first prompt in the group.
    """

    rows: Sequence[tuple[int, Sequence[int]]]
    decode_group: DecodeGroup | None = None
    first: int = 0
    _hidden: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def positions(self) -> Tensor:
        """Return the position (N,) of each token: every continuation goes on where its prompt ends."""
        parts = []
        for prompt, continuations in self.rows:
            parts.append(torch.arange(prompt))
            parts += [torch.arange(prompt, prompt + length) for length in continuations]
        return torch.cat(parts)

    def prompt_ends(self) -> Tensor:
        """Return the place in the batch of each prompt's last token."""
        prompts, others = torch.tensor([(prompt, sum(continuations)) for prompt, continuations in self.rows]).T
        ends: Tensor = (prompts + others).cumsum(0) - others - 1
        return ends

    def before_continuations(self) -> Tensor:
        """Return the place in the batch of the token before each token of the continuations."""
        places = [torch.empty(0, dtype=torch.long)]
        for end, (_, continuations) in zip(self.prompt_ends().tolist(), self.rows, strict=True):
            start = end + 1
            for length in filter(None, continuations):
                places += [torch.tensor([end]), torch.arange(start, start + length - 1)]
                start += length
        return torch.cat(places)

    def pooled(self, states: Tensor, weights: Tensor, spans: Sequence[slice]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield each prompt's mean state (H,) within its span, and the weighted sum (H,) of each continuation's states.

        Args:
            states: (N, H) of all tokens.
            weights: (M,) of the tokens of the continuations.
        """
        start = first = 0
        for (prompt, continuations), span in zip(self.rows, spans, strict=True):
            stop, last = start + prompt + sum(continuations), first + sum(continuations)
            of_prompt, *others = states[start:stop].split([prompt, *continuations])
            parts = zip(others, weights[first:last].split(list(continuations)), strict=True) if others else ()
            yield of_prompt[span].mean(0), [(part * each[:, None]).sum(0) for part, each in parts]
            start, first = stop, last

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return the attention output (N, heads, D): a continuation sees its prompt and itself, not its neighbours.

        Each row is attended alone, so that its result is the same in any batch.
        """
        outputs, start = [], 0
        for number, (prompt, continuations) in enumerate(self.rows, self.first):
            of_prompt = slice(start, start + prompt)
            others = slice(of_prompt.stop, of_prompt.stop + sum(continuations))
            q, k, v = ((t[:, of_prompt], t[:, others]) for t in (query, key, value))
            if self.decode_group is not None:
                self.decode_group.store_prompt(layer, number, k[0], v[0])
            outputs.append(causal(q[0], k[0], v[0], rule).transpose(0, 1))
            if continuations:
                outputs.append(self._continuations(continuations, q[1], k, v, rule))
            start = others.stop
        if start < query.shape[1]:  # tokens that only fill the batch up
            outputs.append(torch.zeros_like(query[:, start:].transpose(0, 1)))
        return torch.cat(outputs)

    def _continuations(self, lengths: Sequence[int], query: Tensor, key: _Pair, value: _Pair, rule: Rule) -> Tensor:
        """Return (sum of `lengths`, heads, D), query likewise (heads, sum of `lengths`, D)."""
        queries = _grid(query, lengths)
        keys, values = (
            torch.cat((t[0].expand(len(lengths), -1, -1, -1), _grid(t[1], lengths)), dim=2) for t in (key, value)
        )
        # A shorter continuation is filled up at its end, which none of its own tokens sees.
        prompt, longest = key[0].shape[1], queries.shape[2]
        which = (prompt, longest, rule.window)
        if which not in self._hidden:
            places = torch.arange(prompt + longest, device=query.device)
            self._hidden[which] = rule.hidden(places[prompt:], places)
        grid = continuing(queries, keys, values, rule, self._hidden[which]).transpose(1, 2)
        return torch.cat([one[:length] for one, length in zip(grid, lengths, strict=True)])


@dataclass(frozen=True, slots=True)
class Decode:
    """The flat batch holds one token of every live row, decode_group by decode_group."""

    decode_groups: Sequence[DecodeGroup]

    def positions(self) -> Tensor:
        """Return the position (R,) of each token."""
        return torch.cat([decode_group.positions() for decode_group in self.decode_groups])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return the attention output (N, heads, D): a row sees its prompt and its own answer."""
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        outputs, start = [], 0
        for group in self.decode_groups:
            rows = slice(start, start + len(group.live))
            cache = group.append(layer, group.to_grid(key[rows]), group.to_grid(value[rows]))
            outputs.append(group.from_grid(attend_group(group, cache, group.to_grid(query[rows]), rule)))
            start = rows.stop
        if start < len(query):
            outputs.append(torch.zeros_like(query[start:]))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _grid(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return (K, heads, longest, D) of sequences that stand one after the other, (heads, sum of `lengths`, D)."""
    parts = [one.transpose(0, 1) for one in flat.split(list(lengths), dim=1)]
    return pad_sequence(parts, batch_first=True).transpose(1, 2)


_batch: ContextVar[Prefill | Decode] = ContextVar("adg_batch")


def feed(model: PreTrainedModel, batch: Prefill | Decode, ids: Tensor, wanted: Tensor | int) -> Tensor:
    """Return the logits (M, V) of a flat batch of token ids (N,) at M places in it, or at so many of the last.

    The model must be using `shared_prefix_attention`.
    """
    positions = batch.positions().to(ids.device)
    if len(ids) < MIN_BATCH:
        ids, positions = (torch.cat((t, t.new_zeros(MIN_BATCH - len(t)))) for t in (ids, positions))
    token = _batch.set(batch)
    try:
        output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted)
    finally:
        _batch.reset(token)
    logits: Tensor = output.logits[0]
    return logits


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let `model` use this implementation of attention inside the block, and the one of before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` use this module's attention inside the block."""
    AttentionInterface.register(IMPLEMENTATION, attention)
    with attention_implementation(model, IMPLEMENTATION):
        yield


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
    return _batch.get().attend(layer, query[0], key[0], value[0], rule)[None], None
