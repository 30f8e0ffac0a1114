"""One pass: answers, their vectors and the prompt's vector from the same forward passes of a transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.attention import Decode, Prefill, attending, shared_prefix_attention
from adg_plugin.engines.forward.decode_group import DecodeGroup, padded
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder, last_layers
from adg_plugin.engines.forward.memory import Capacity, is_out_of_memory, release_memory
from adg_plugin.engines.forward.results import OUT_OF_MEMORY, REDRAWS, rejection
from adg_plugin.engines.forward.sampler import TokenSampler, stream_keys
from adg_plugin.engines.forward.token_weights import fixed_weights, surprisals
from adg_plugin.engines.one_pass.decode_state import DecodeState, Prefilled, filled_up
from adg_plugin.engines.one_pass.finish import finished_results
from adg_plugin.engines.one_pass.queue import Queue, prefix_within
from adg_plugin.store.records import Prompt, RowResult

_MIN_BATCH = 16  # below 12, some CPU matrix products sum in another order: small batches are filled up


class OnePassEngine:
    """Samples K answers per prompt and returns their Gram matrix and the prompt's vector, without a second forward.

    Args:
        model: a causal language model of transformers, on its device, in evaluation mode.
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
        self._sampler = TokenSampler.of(config)
        self._recorder = HiddenStateRecorder(last_layers(config.layers))
        self._hidden = int(model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def run(self, prompts: Iterable[Prompt]) -> Iterator[RowResult]:
        """Yield one result per prompt, in the order in which they finish."""
        capacity = Capacity.of(self.model, self.config)
        queue = Queue(prompts)
        active: list[DecodeState] = []
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
                stack.enter_context(self._recorder.on(self.model))
            yield

    def _advance(self, active: list[DecodeState], queue: Queue, capacity: Capacity) -> list[RowResult]:
        """Admit what fits, feed one token of every live row, and return the results of prompts that are done."""
        admitted = queue.peek(capacity, [d.decode_group for d in active])
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
        results = [r for decoding in active for r in self._results(decoding)]
        active[:] = [d for d in active if len(d.rows)]
        return results

    def _results(self, decoding: DecodeState) -> Iterator[RowResult]:
        return finished_results(decoding, self.tokenizer, self.config, vectors=self.vectors)

    def _retreat(self, active: list[DecodeState], waiting: int, queue: Queue, capacity: Capacity) -> list[RowResult]:
        """Put everything in flight back into the queue and halve the batch; a row that does not fit alone goes.

        Args:
            waiting: prompts at the head of the queue that were to be admitted.
        """
        self._recorder.forget()
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

    def _admit(self, prompts: Sequence[Prompt], prefill_tokens: int) -> DecodeState:
        samples, device = self.config.num_samples, self.device
        decode_group = DecodeGroup.of([len(p) for p in prompts], samples, device)
        logits, vectors, references, first = [], [], [], 0
        while first < len(prompts):
            part = prefix_within(prompts[first:], prefill_tokens)
            of_part = self._prefill(part, decode_group, first)
            logits.append(of_part.logits)
            vectors += of_part.vectors
            references += of_part.references
            first += len(part)

        streams = np.stack([stream_keys(self.config.seed, p.token_ids, samples * (1 + REDRAWS)) for p in prompts])
        keys = torch.from_numpy(streams).to(device).view(len(prompts), 1 + REDRAWS, samples)
        of_prompt = torch.cat(logits)
        of_row = of_prompt.repeat_interleave(samples, 0)
        asked = filled_up([p.token_ids for p in prompts]).to(device)
        current, keys = self._first_tokens(self._penalised(of_row, [asked.repeat_interleave(samples, 0)]), keys)
        rows = len(prompts) * samples
        # What is not sampled yet holds a token that is seen anyway, for the repetition penalty.
        tokens = asked[:, :1].int().repeat_interleave(samples, 0).repeat(1, self.config.max_new_tokens)
        tokens[:, 0] = current
        decoding = DecodeState(
            decode_group,
            prompts,
            keys,
            pooling=self.config.pooling,
            sums=torch.zeros((rows, self._hidden), device=device),
            surprisals=self._surprisals(of_row, current),
            tokens=tokens,
            asked=asked,
            references=references,
            prompt_vectors=torch.stack(vectors) if vectors else None,
            broken=(~of_prompt.float().logsumexp(-1).isfinite()).cpu().numpy(),
            rows=torch.arange(rows, device=device),
            current=current,
            lengths=np.zeros(rows, dtype=np.int64),
            reasons=np.full(rows, None, dtype=object),
            reported=np.zeros(len(prompts), dtype=bool),
        )
        self._end_of_draw(decoding, torch.isin(current, self._eos))
        return decoding

    def _prefill(self, prompts: Sequence[Prompt], decode_group: DecodeGroup, first: int) -> Prefilled:
        """Feed prompts, the first of them number `first` of the group, and with them the reference responses."""
        lengths, own = [len(p) for p in prompts], [p.reference_tokens if self.vectors else 0 for p in prompts]
        batch = Prefill(decode_group, first, lengths, own)
        parts = [p.token_ids for p in prompts]
        parts += [p.reference_ids for p, n in zip(prompts, own, strict=True) if n and p.reference_ids is not None]
        ids = torch.from_numpy(np.concatenate(parts)).to(self.device, torch.long)
        before = batch.before_references().to(self.device)  # their tokens' probabilities are computed there
        last = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        wanted = torch.cat((last, before)) if self.config.pooling == "surprisal" else last
        logits = self._forward(ids, batch.positions().to(self.device), wanted, batch)
        if not self.vectors:
            return Prefilled(logits, [], [None] * len(prompts))
        states = self._recorder.take()[0, : len(ids)]
        weights = torch.from_numpy(np.concatenate([fixed_weights(self.config.pooling, n) for n in own]))
        weights = weights.to(self.device)
        if self.config.pooling == "surprisal":
            weights = weights * surprisals(logits[len(last) :], ids[sum(lengths) :])
        pooled = (states[sum(lengths) :] * weights[:, None]).split(own)
        return Prefilled(
            logits[: len(last)],
            [s[slice(*p.span)].mean(0) for s, p in zip(states.split([*lengths, sum(own)]), prompts, strict=False)],
            [s.sum(0) if len(s) else None for s in pooled],
        )

    def _surprisals(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return (R,) surprisals of tokens just sampled from logits (R, V), where the pooling weighs by them."""
        is_used = self.vectors and self.config.pooling == "surprisal"
        return surprisals(logits, tokens) if is_used else torch.zeros(len(tokens), device=self.device)

    def _first_tokens(self, logits: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token (P * K,) of each answer and its stream; one that ends at once is resampled."""
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

    def _step(self, active: Sequence[DecodeState]) -> None:
        """Feed one token of every live row, add up its state, and sample the next where the limit allows."""
        if not active:
            return
        limit = self.config.max_new_tokens
        counts = [len(d.rows) for d in active]
        unfinished = [d.decode_group.age + 1 < limit for d in active]
        wanted = torch.repeat_interleave(torch.tensor(unfinished), torch.tensor(counts)).nonzero().squeeze(1)
        logits = self._forward(
            torch.cat([d.current for d in active]),
            torch.cat([d.decode_group.positions() for d in active]),
            wanted.to(self.device),
            Decode([d.decode_group for d in active]),
        )
        if self.vectors:
            for decoding, states in zip(active, self._recorder.take()[0, : sum(counts)].split(counts), strict=True):
                decoding.add(states)
        for decoding in active:
            decoding.decode_group.step()
        fresh = [d for d, more in zip(active, unfinished, strict=True) if more]
        if fresh:
            self._draw_next(fresh, logits)
        for decoding, more in zip(active, unfinished, strict=True):
            if not more:  # these rows were fed for the state of their last token only
                decoding.end(torch.arange(len(decoding.rows), device=self.device), "length")

    def _draw_next(self, active: Sequence[DecodeState], logits: Tensor) -> None:
        counts = [len(d.rows) for d in active]
        keys = torch.cat([d.keys[d.rows] for d in active])
        steps = torch.cat(
            [torch.full((n,), d.decode_group.age, device=self.device) for d, n in zip(active, counts, strict=True)]
        )
        tokens = self._sampler.draw(self._penalised(logits, (d.seen() for d in active)), keys, steps)
        ended = torch.isin(tokens, self._eos)
        parts = (values.split(counts) for values in (tokens, ended, self._surprisals(logits, tokens)))
        for decoding, new, eos, surprisal in zip(active, *parts, strict=True):
            decoding.current = new
            decoding.surprisals[decoding.rows] = surprisal
            decoding.tokens[decoding.rows, decoding.decode_group.age] = new.int()
            self._end_of_draw(decoding, eos)

    def _penalised(self, logits: Tensor, seen: Iterable[Tensor]) -> Tensor:
        """Return logits (R, V) after the repetition penalty on the tokens seen by consecutive groups of rows."""
        if self.config.repetition_penalty == 1:
            return logits
        groups = list(seen)
        parts = zip(logits.split([len(ids) for ids in groups]), groups, strict=True)
        return torch.cat([self._sampler.penalised(part, ids) for part, ids in parts])

    def _end_of_draw(self, decoding: DecodeState, eos: Tensor) -> None:
        places = eos.nonzero().squeeze(1)
        if len(places):
            decoding.end(places, "eos")
        if not self.vectors and decoding.decode_group.age + 1 == self.config.max_new_tokens:
            decoding.end(torch.arange(len(decoding.rows), device=self.device), "length")

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
