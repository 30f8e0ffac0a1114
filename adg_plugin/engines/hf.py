"""One pass: answers, their vectors and the prompt's vector from the same forward passes of a transformers model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config import ADGConfig
from adg_plugin.engines.attention import Cohort, Decode, Prefill, attending, padded, shared_prefix_attention
from adg_plugin.engines.base import Answer, FinishReason, Prompt, RowResult
from adg_plugin.engines.memory import Capacity, is_out_of_memory, release_memory
from adg_plugin.engines.results import (
    EMPTY,
    MIN_ANSWERS,
    NON_FINITE,
    OUT_OF_MEMORY,
    REDRAWS,
    gram_matrix,
    rejection,
    row_result,
)
from adg_plugin.engines.sampling import NucleusSampler, stream_keys
from adg_plugin.engines.states import StateTap, last_layers, unit

_MIN_BATCH = 16  # below 12, some CPU matrix products sum in another order: small batches are filled up


@dataclass(slots=True)
class _Draws:
    """The answers of a cohort. Rows are numbered prompt * K + k; `rows` gives the number of each live place."""

    cohort: Cohort
    prompts: Sequence[Prompt]
    keys: Tensor  # (P * K,) stream of each row
    sums: Tensor  # (P * K, H) float32, states of the answer tokens fed so far
    tokens: Tensor  # (P * K, max_new_tokens)
    prompt_vectors: Tensor | None  # (P, H) float32
    broken: npt.NDArray[np.bool_]  # (P,) NaN or infinity before the first token
    rows: Tensor  # (R,)
    current: Tensor  # (R,) token that each live row feeds next
    lengths: npt.NDArray[np.int64]  # (P * K,) tokens drawn by rows that have ended
    reasons: npt.NDArray[np.object_]  # (P * K,) None while live
    reported: npt.NDArray[np.bool_]  # (P,)

    def end(self, places: Tensor, reason: FinishReason | None = None) -> None:
        """End the rows at these live places (positions in `rows`), and keep the others."""
        rows = self.rows[places].cpu().numpy()
        self.reasons[rows] = reason
        self.lengths[rows] = self.cohort.age if reason == "eos" else self.tokens.shape[1]
        stay = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        stay[places] = False
        self.rows, self.current = self.rows[stay], self.current[stay]
        self.cohort.keep(self.cohort.live[stay])

    def finished(self) -> list[int]:
        """Return the prompts whose rows have all ended since the last call."""
        done = np.array([r is not None for r in self.reasons]).reshape(len(self.prompts), -1).all(1) & ~self.reported
        self.reported |= done
        return [int(p) for p in np.flatnonzero(done)]


class OnePassEngine:
    """Samples K answers per prompt and returns their Gram matrix and the prompt's vector, without a second forward.

    Args:
        model: a causal language model of transformers, on its device, in evaluation mode.
        tokenizer: decodes the answers.
        config: sampling settings, layers, batch size.
        eos_ids: tokens that end an answer.
        vectors: False samples only (`gram` and `prompt_vector` stay None).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ADGConfig,
        eos_ids: Sequence[int],
        *,
        vectors: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.config, self.vectors = model, tokenizer, config, vectors
        self.device = model.device
        self._eos = torch.tensor(sorted(eos_ids), device=self.device)
        self._sampler = NucleusSampler(config.temperature, config.top_p)
        self._tap = StateTap(last_layers(config.layers))
        self._hidden = int(model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def run(self, prompts: Iterable[Prompt]) -> Iterator[RowResult]:
        """Yield one result per prompt, in the order in which they finish."""
        capacity = Capacity.of(self.model, self.config)
        queue = _Queue(prompts)
        active: list[_Draws] = []
        while active or not queue.empty():
            # Whoever takes the results may use the model: it is itself again before any of them is out.
            with self._prepared():
                results: list[RowResult] = []
                while not results and (active or not queue.empty()):
                    results = self._advance(active, queue, capacity)
            yield from results

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(shared_prefix_attention(self.model))
            if self.vectors:
                stack.enter_context(self._tap.on(self.model))
            yield

    def _advance(self, active: list[_Draws], queue: _Queue, capacity: Capacity) -> list[RowResult]:
        """Admit what fits, feed one token of every live row, and return the results of prompts that are done."""
        admitted = queue.peek(capacity, [d.cohort for d in active])
        waiting, out_of_memory = len(admitted), False
        try:
            for _, alike in groupby(admitted, key=lambda p: padded(len(p))):
                active.append(self._admit(list(alike), capacity.prefill_tokens))
                queue.drop(len(active[-1].prompts))
                waiting -= len(active[-1].prompts)
            self._step([d for d in active if len(d.rows)])
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            out_of_memory = True
        if out_of_memory:  # out of the block above, where the traceback still holds what filled the memory
            return self._retreat(active, waiting, queue, capacity)
        results = [r for draws in active for r in self._results(draws, draws.finished())]
        active[:] = [d for d in active if len(d.rows)]
        return results

    def _retreat(self, active: list[_Draws], waiting: int, queue: _Queue, capacity: Capacity) -> list[RowResult]:
        """Put everything in flight back into the queue and halve the batch; a row that does not fit alone goes.

        Args:
            waiting: prompts at the head of the queue that were to be admitted.
        """
        self._tap.forget()
        back = [p for d in active for p, reported in zip(d.prompts, d.reported, strict=True) if not reported]
        active.clear()
        release_memory(self.device)
        queue.put_back(back)
        in_flight = len(back) + waiting
        if in_flight == 1:
            capacity.recover()
            return [rejection(queue.pop(), OUT_OF_MEMORY)]
        capacity.halve(in_flight)
        return []

    def _admit(self, prompts: Sequence[Prompt], prefill_tokens: int) -> _Draws:
        """Prefill prompts and draw the first token of each of their answers."""
        samples, device = self.config.num_samples, self.device
        cohort = Cohort.of([len(p) for p in prompts], samples, device)
        logits, vectors, first = [], [], 0
        while first < len(prompts):
            part = _prefix_within(prompts[first:], prefill_tokens)
            lengths = [len(p) for p in part]
            ids = torch.from_numpy(np.concatenate([p.token_ids for p in part])).to(device, torch.long)
            positions = torch.cat([torch.arange(n, device=device) for n in lengths])
            last = torch.tensor(lengths, device=device).cumsum(0) - 1
            logits.append(self._forward(ids, positions, last, Prefill(cohort, first, lengths)))
            if self.vectors:
                states = self._tap.take()[0, : len(ids)].split(lengths)
                vectors += [s[slice(*p.span)].mean(0) for s, p in zip(states, part, strict=True)]
            first += len(part)

        streams = np.stack([stream_keys(self.config.seed, p.token_ids, samples * (1 + REDRAWS)) for p in prompts])
        keys = torch.from_numpy(streams).to(device).view(len(prompts), 1 + REDRAWS, samples)
        of_prompt = torch.cat(logits)
        current, keys = self._first_tokens(of_prompt.repeat_interleave(samples, 0), keys)
        rows = len(prompts) * samples
        tokens = torch.zeros((rows, self.config.max_new_tokens), dtype=torch.int32, device=device)
        tokens[:, 0] = current
        draws = _Draws(
            cohort,
            prompts,
            keys,
            sums=torch.zeros((rows, self._hidden), device=device),
            tokens=tokens,
            prompt_vectors=torch.stack(vectors) if vectors else None,
            broken=(~of_prompt.float().logsumexp(-1).isfinite()).cpu().numpy(),
            rows=torch.arange(rows, device=device),
            current=current,
            lengths=np.zeros(rows, dtype=np.int64),
            reasons=np.full(rows, None, dtype=object),
            reported=np.zeros(len(prompts), dtype=bool),
        )
        self._end_of_draw(draws, torch.isin(current, self._eos))
        return draws

    def _first_tokens(self, logits: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token (P * K,) of each answer and its stream; one that ends at once is drawn again."""
        attempts = [keys[:, i].flatten() for i in range(1 + REDRAWS)]
        stream = attempts[0].clone()
        start = torch.zeros_like(stream)
        tokens = self._sampler.draw(logits, stream, start)
        for again in attempts[1:]:
            empty = torch.isin(tokens, self._eos).nonzero().squeeze(1)
            if len(empty):
                stream[empty] = again[empty]
                tokens[empty] = self._sampler.draw(logits[empty], stream[empty], start[empty])
        return tokens, stream

    def _step(self, active: Sequence[_Draws]) -> None:
        """Feed one token of every live row, add up its state, and draw the next where the limit allows."""
        if not active:
            return
        limit = self.config.max_new_tokens
        counts = [len(d.rows) for d in active]
        drawing = [d.cohort.age + 1 < limit for d in active]
        wanted = torch.repeat_interleave(torch.tensor(drawing), torch.tensor(counts)).nonzero().squeeze(1)
        logits = self._forward(
            torch.cat([d.current for d in active]),
            torch.cat([d.cohort.positions() for d in active]),
            wanted.to(self.device),
            Decode([d.cohort for d in active]),
        )
        if self.vectors:
            for draws, states in zip(active, self._tap.take()[0, : sum(counts)].split(counts), strict=True):
                draws.sums.index_add_(0, draws.rows, states)
        for draws in active:
            draws.cohort.step()
        fresh = [d for d, more in zip(active, drawing, strict=True) if more]
        if fresh:
            self._draw_next(fresh, logits)
        for draws, more in zip(active, drawing, strict=True):
            if not more:  # these rows were fed for the state of their last token only
                draws.end(torch.arange(len(draws.rows), device=self.device), "length")

    def _draw_next(self, active: Sequence[_Draws], logits: Tensor) -> None:
        counts = [len(d.rows) for d in active]
        keys = torch.cat([d.keys[d.rows] for d in active])
        steps = torch.cat(
            [torch.full((n,), d.cohort.age, device=self.device) for d, n in zip(active, counts, strict=True)]
        )
        tokens = self._sampler.draw(logits, keys, steps)
        ended = torch.isin(tokens, self._eos)
        for draws, new, eos in zip(active, tokens.split(counts), ended.split(counts), strict=True):
            draws.current = new
            draws.tokens[draws.rows, draws.cohort.age] = new.int()
            self._end_of_draw(draws, eos)

    def _end_of_draw(self, draws: _Draws, eos: Tensor) -> None:
        places = eos.nonzero().squeeze(1)
        if len(places):
            draws.end(places, "eos")
        if not self.vectors and draws.cohort.age + 1 == self.config.max_new_tokens:
            draws.end(torch.arange(len(draws.rows), device=self.device), "length")

    def _forward(self, ids: Tensor, positions: Tensor, wanted: Tensor, batch: Prefill | Decode) -> Tensor:
        """Return the logits (len(wanted), V) of a flat batch at the positions `wanted` in it."""
        keep = len(wanted)
        if len(ids) < _MIN_BATCH:
            ids, positions = (torch.cat((t, t.new_zeros(_MIN_BATCH - len(t)))) for t in (ids, positions))
        if keep < _MIN_BATCH:
            wanted = torch.cat((wanted, wanted.new_zeros(_MIN_BATCH - keep)))
        with attending(batch):
            output = self.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
            )
        logits: Tensor = output.logits[0, :keep]
        return logits

    def _results(self, draws: _Draws, prompts: Sequence[int]) -> Iterator[RowResult]:
        """Yield the results of prompts (numbers within `draws`) whose answers have all ended."""
        if not prompts:
            return
        samples = self.config.num_samples
        rows = np.asarray(prompts)[:, None] * samples + np.arange(samples)  # (P, K)
        index = torch.from_numpy(rows).to(self.device)
        tokens = draws.tokens[index].cpu().numpy()
        units = unit(draws.sums[index]).cpu() if self.vectors else None
        grams = None if units is None else gram_matrix(units)
        for i, prompt in enumerate(prompts):
            kept = np.flatnonzero(draws.lengths[rows[i]])
            answers = self._answers(tokens[i], draws.lengths[rows[i]], draws.reasons[rows[i]], kept)
            about = draws.prompts[prompt]
            if draws.broken[prompt]:  # the tokens mean nothing, and may have ended the answers at once
                yield rejection(about, NON_FINITE, answers)
            elif len(kept) < MIN_ANSWERS:
                yield rejection(about, EMPTY, answers)
            elif grams is None or units is None or draws.prompt_vectors is None:
                yield RowResult(about.id, about.key, answers, None, None)
            else:
                yield row_result(
                    about,
                    answers,
                    grams[i][np.ix_(kept, kept)],
                    draws.prompt_vectors[prompt],
                    units[i, kept] if self.config.keep_vectors else None,
                )

    def _answers(
        self,
        tokens: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
        reasons: npt.NDArray[np.object_],
        kept: npt.NDArray[np.int64],
    ) -> tuple[Answer, ...]:
        ids = [tokens[k, : lengths[k]] for k in kept]
        texts = self.tokenizer.batch_decode([t.tolist() for t in ids], skip_special_tokens=True) if ids else []
        return tuple(Answer(t, text, reasons[k]) for t, text, k in zip(ids, texts, kept, strict=True))


class _Queue:
    """Prompts still to be admitted, read from their source only as far as needed."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._source = iter(prompts)
        self._waiting: deque[Prompt] = deque()

    def _fill(self, count: int) -> bool:
        while len(self._waiting) < count:
            prompt = next(self._source, None)
            if prompt is None:
                return False
            self._waiting.append(prompt)
        return True

    def peek(self, capacity: Capacity, cohorts: Sequence[Cohort]) -> list[Prompt]:
        """Return the next prompts that fit beside `cohorts`, at least one where there are none."""
        rows, tokens = capacity.admits(cohorts)
        chosen: list[Prompt] = []
        while self._fill(len(chosen) + 1):
            prompt = self._waiting[len(chosen)]
            rows, tokens = rows - capacity.num_samples, tokens - capacity.cost(len(prompt))
            if (rows < 0 or tokens < 0) and (chosen or cohorts):
                break
            chosen.append(prompt)
        return chosen

    def drop(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft()

    def pop(self) -> Prompt:
        return self._waiting.popleft()

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        self._waiting.extendleft(reversed(prompts))

    def empty(self) -> bool:
        return not self._fill(1)


def _prefix_within(prompts: Sequence[Prompt], tokens: int) -> Sequence[Prompt]:
    """Return the first prompts that hold at most `tokens` together, at least one."""
    ends = np.cumsum([len(p) for p in prompts])
    return prompts[: max(1, int(np.searchsorted(ends, tokens, side="right")))]
