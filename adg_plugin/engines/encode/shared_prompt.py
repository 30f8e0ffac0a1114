"""Vectors of answers that are there already: each prompt goes through the model once, for all of its K answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from adg_plugin.config.scores import VectorSettings
from adg_plugin.engines.encode.embed import Weighted, answer_sequence, embed
from adg_plugin.engines.forward.attention import Rule, attending, causal, continuing, shared_prefix_attention
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder, last_layers, unit
from adg_plugin.engines.forward.memory import is_out_of_memory, release_memory
from adg_plugin.engines.forward.results import OUT_OF_MEMORY, agreement_of, gram_matrix, rejection, row_result
from adg_plugin.engines.forward.token_weights import fixed_weights, surprisals
from adg_plugin.store.records import Answer, Prompt, RowResult, Sampled

_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 16384  # no cache is kept: what a batch takes is the activations of one layer
_SORTED_ROWS = 256  # rows looked at together, so that those of a batch are of similar length
_MIN_TOKENS = 16  # see `one_pass.engine._MIN_BATCH`


@dataclass(slots=True)
class Encode:
    """A flat batch of `rows`: the tokens of each prompt and of its answers, one after the other."""

    rows: Sequence[tuple[int, Sequence[int]]]
    _hidden: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def positions(self) -> Tensor:
        """Return the position (N,) of each token: every answer goes on where its prompt ends."""
        parts = []
        for prompt, answers in self.rows:
            parts.append(torch.arange(prompt))
            parts += [torch.arange(prompt, prompt + length) for length in answers]
        return torch.cat(parts)

    def before_answers(self) -> Tensor:
        """Return the place in the batch of the token before each answer token."""
        places, start = [torch.empty(0, dtype=torch.long)], 0
        for prompt, answers in self.rows:
            end, start = start + prompt - 1, start + prompt
            for length in answers:
                places += [torch.tensor([end]), torch.arange(start, start + length - 1)]
                start += length
        return torch.cat(places)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Return the attention output (N, heads, D): an answer sees its prompt and itself, not its neighbours."""
        outputs, start = [], 0
        group = query.shape[0] // key.shape[0]
        for prompt, answers in self.rows:
            of_prompt = slice(start, start + prompt)
            of_answers = slice(start + prompt, start + prompt + sum(answers))
            q, k, v = ((t[:, of_prompt], t[:, of_answers]) for t in (query, key, value))
            outputs.append(causal(q[0], k[0], v[0], group, rule))
            if answers:
                outputs.append(self._answers(q[1], k, v, answers, group, rule))
            start = of_answers.stop
        if start < query.shape[1]:  # tokens that only fill the batch up
            outputs.append(torch.zeros_like(query[:, start:]))
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _answers(
        self,
        query: Tensor,
        key: tuple[Tensor, Tensor],
        value: tuple[Tensor, Tensor],
        lengths: Sequence[int],
        group: int,
        rule: Rule,
    ) -> Tensor:
        """Return (heads, sum of `lengths`, D); key and value are those of the prompt and those of the answers."""
        queries = _grid(query, lengths)
        keys, values = (
            torch.cat((t[0].expand(len(lengths), -1, -1, -1), _grid(t[1], lengths)), dim=2) for t in (key, value)
        )
        # A shorter answer is filled up at its end, which none of its own tokens sees.
        hidden = self._hidden_keys(key[0].shape[1], queries.shape[2], rule, query.device)
        grid = continuing(queries, keys, values, group, rule, hidden)
        return torch.cat([one[:, :length] for one, length in zip(grid, lengths, strict=True)], dim=1)

    def _hidden_keys(self, prompt: int, longest: int, rule: Rule, device: torch.device) -> Tensor:
        which = (prompt, longest, rule.window)
        if which not in self._hidden:
            keys = torch.arange(prompt + longest, device=device)
            self._hidden[which] = rule.hidden(keys[prompt:], keys)
        return self._hidden[which]


def _grid(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return (K, heads, longest, D) of answers that stand one after the other, (heads, sum of `lengths`, D)."""
    answers = [one.transpose(0, 1) for one in flat.split(list(lengths), dim=1)]
    return pad_sequence(answers, batch_first=True).transpose(1, 2)


class SharedPromptEncoder:
    """Embeds sampled rows: the same vectors as the one-pass engine's, from one forward pass over prompt and answers.

    Args:
        model: a causal language model of transformers that `one_pass_problem` has nothing against.
        batch_tokens: tokens in a forward pass; default by the kind of device.
    """

    def __init__(self, model: PreTrainedModel, config: VectorSettings, *, batch_tokens: int | None = None) -> None:
        self.model, self.config = model, config
        self._recorder = HiddenStateRecorder(last_layers(config.layers))
        default = _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR)
        # With surprisals, a batch takes the logits of its answers, too.
        self.batch_tokens = batch_tokens or (default // 4 if config.pooling == "surprisal" else default)

    def run(self, rows: Iterable[Sampled]) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        source = iter(rows)
        while chunk := list(islice(source, _SORTED_ROWS)):
            # The shortest first: what fits is done before what may not.
            pending = deque(_batches(sorted(chunk, key=len), self.batch_tokens))
            while pending:
                batch = pending.popleft()
                results = self._tried(batch)
                if results is None:
                    release_memory(self.model.device)
                    pending.extendleft((batch[len(batch) // 2 :], batch[: len(batch) // 2]))
                else:
                    yield from results

    def _tried(self, batch: Sequence[Sampled]) -> list[RowResult] | None:
        """Return the results of a batch, or None where it does not fit and is to be halved."""
        try:
            return self._results(batch)
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
        return [rejection(batch[0].prompt, OUT_OF_MEMORY, batch[0].answers)] if len(batch) == 1 else None

    @torch.no_grad()
    def _results(self, batch: Sequence[Sampled]) -> list[RowResult]:
        states, weights = self._states(batch)
        results, start, first = [], 0, 0
        for row in batch:
            lengths = [len(row.prompt), *map(len, row.continuations)]
            prompt, *answers = states[start : start + sum(lengths)].split(lengths)
            counts = weights[first : first + sum(lengths[1:])].split(lengths[1:])
            start, first = start + sum(lengths), first + sum(lengths[1:])
            pooled = unit(torch.stack([(a * n[:, None]).sum(0) for a, n in zip(answers, counts, strict=True)]))
            results.append(_row_result(self.config, row, pooled, prompt[slice(*row.prompt.span)].mean(0)))
        return results

    def _states(self, batch: Sequence[Sampled]) -> tuple[Tensor, Tensor]:
        """Return the mean state (N, H) of each token of the flat batch, and the weight (M,) of each answer token."""
        pooling, device = self.config.pooling, self.model.device
        encode = Encode([(len(r.prompt), [len(tokens) for tokens in r.continuations]) for r in batch])
        parts = [tokens for r in batch for tokens in (r.prompt.token_ids, *r.continuations)]
        ids, positions = torch.from_numpy(np.concatenate(parts)).long(), encode.positions()
        tokens = len(ids)
        if tokens < _MIN_TOKENS:
            ids, positions = (torch.cat((t, t.new_zeros(_MIN_TOKENS - tokens))) for t in (ids, positions))
        with shared_prefix_attention(self.model), self._recorder.on(self.model), attending(encode):
            output = self.model(
                input_ids=ids[None].to(device),
                position_ids=positions[None].to(device),
                use_cache=False,
                # The head is not needed but for surprisals; 0 would mean all positions.
                logits_to_keep=encode.before_answers().to(device) if pooling == "surprisal" else 1,
            )
            states = self._recorder.take()[0, :tokens]
        answers = [tokens for r in batch for tokens in r.continuations]
        weights = torch.from_numpy(np.concatenate([fixed_weights(pooling, len(a)) for a in answers])).to(device)
        if pooling == "surprisal":
            weights = weights * surprisals(output.logits[0], torch.from_numpy(np.concatenate(answers)).to(device))
        return states, weights


class RepeatingEncoder:
    """Embeds sampled rows of models that do not take their attention from outside: each answer after its own prompt."""

    def __init__(self, model: PreTrainedModel, config: VectorSettings) -> None:
        self.model, self.config = model, config

    def run(self, rows: Iterable[Sampled]) -> Iterator[RowResult]:
        """Yield one result per row, in their order."""
        for row in rows:
            try:
                yield encoded_one_by_one(self.model, self.config, row.prompt, row.answers)
            except (RuntimeError, MemoryError) as err:
                if not is_out_of_memory(err):
                    raise
                release_memory(self.model.device)
                yield rejection(row.prompt, OUT_OF_MEMORY, row.answers)


def encoded_one_by_one(
    model: PreTrainedModel, config: VectorSettings, prompt: Prompt, answers: tuple[Answer, ...]
) -> RowResult:
    """Return the result of a row, each of its answers encoded after the whole prompt."""
    span = np.zeros(len(prompt), dtype=np.float32)
    span[slice(*prompt.span)] = 1
    row = Sampled(prompt, answers)
    sequences = [answer_sequence(prompt.token_ids, tokens, config.pooling) for tokens in row.continuations]
    vectors = embed(model, [*sequences, Weighted(prompt.token_ids, span)], last_layers(config.layers))
    return _row_result(config, row, vectors[:-1], vectors[-1])


def _row_result(config: VectorSettings, row: Sampled, units: Tensor, prompt_state: Tensor) -> RowResult:
    """Return the result of a row from the unit vectors of its continuations, (K, H), the reference response last."""
    drawn = units[: len(row.answers)]
    agreement = None if row.prompt.reference_ids is None else agreement_of(drawn, units[-1])
    kept = drawn if config.keep_vectors else None
    return row_result(row.prompt, row.answers, gram_matrix(drawn), prompt_state, kept, agreement)


def _batches(rows: Sequence[Sampled], budget: int) -> Iterator[list[Sampled]]:
    """Yield neighbours that have at most `budget` tokens together, or a single row."""
    batch: list[Sampled] = []
    tokens = 0
    for row in rows:
        if batch and tokens + len(row) > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row)
    if batch:
        yield batch
