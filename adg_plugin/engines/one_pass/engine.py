"""One pass: answers, their vectors and the prompt's vector from the same forward passes of a transformers model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, islice

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.decode_group import DecodeGroup, padded
from adg_plugin.engines.forward.flat_batch import MIN_BATCH, Decode, Prefill, feed, shared_prefix_attention
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder, last_layers, surprisals, token_weights
from adg_plugin.engines.forward.memory import Capacity, is_out_of_memory, release_memory
from adg_plugin.engines.forward.results import OUT_OF_MEMORY, REDRAWS, rejection
from adg_plugin.engines.forward.sampler import TokenSampler, stream_keys
from adg_plugin.engines.one_pass.decode_state import DecodeState, filled_up
from adg_plugin.store.records import Prompt, RowResult


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
        self._sampler = TokenSampler(config.temperature, config.top_k, config.top_p, config.repetition_penalty)
        self._recorder = HiddenStateRecorder(last_layers(config.layers))
        self._hidden = int(model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def run(self, prompts: Iterable[Prompt]) -> Iterator[RowResult]:
        """Yield one result per prompt, in the order in which they finish."""
        capacity = Capacity.of(self.model, self.config)
        queue = _Queue(prompts)
        active: list[DecodeState] = []
        while active or not queue.empty():
            # Whoever takes the results may use the model: it is itself again before any of them is out.
            recording = self._recorder.on(self.model) if self.vectors else nullcontext()
            with shared_prefix_attention(self.model), recording:
                results: list[RowResult] = []
                while not results and (active or not queue.empty()):
                    results = self._advance(active, queue, capacity)
            yield from results

    def _advance(self, active: list[DecodeState], queue: _Queue, capacity: Capacity) -> list[RowResult]:
        """Admit what fits, feed one token of every live row, and return the results of prompts that are done."""
        waiting, out_of_memory = queue.take(capacity, [d.decode_group for d in active]), False
        try:
            for _, alike in groupby(list(waiting), key=lambda p: padded(len(p))):
                active.append(self._admit(list(alike), capacity.prefill_tokens))
                del waiting[: len(active[-1].prompts)]
            self._step([d for d in active if len(d.rows)])
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            out_of_memory = True
        if out_of_memory:  # out of the block above, where the traceback still holds what filled the memory
            return self._retreat(active, waiting, queue, capacity)
        results = [result for decoding in active for result in decoding.results(self.tokenizer)]
        active[:] = [d for d in active if len(d.rows)]
        return results

    def _retreat(
        self, active: list[DecodeState], waiting: list[Prompt], queue: _Queue, capacity: Capacity
    ) -> list[RowResult]:
        """Put everything in flight back into the queue and halve the batch; a row that does not fit alone goes."""
        self._recorder.forget()
        back = [p for d in active for p, reported in zip(d.prompts, d.reported, strict=True) if not reported] + waiting
        active.clear()
        release_memory(self.device)
        if len(back) == 1:
            capacity.recover()
            return [rejection(back[0], OUT_OF_MEMORY)]
        queue.put_back(back)
        capacity.halve(len(back))
        return []

    def _admit(self, prompts: Sequence[Prompt], prefill_tokens: int) -> DecodeState:
        samples, device = self.config.num_samples, self.device
        decode_group = DecodeGroup.of([len(p) for p in prompts], samples, device)
        logits, vectors, references, first = [], [], [], 0
        while first < len(prompts):
            ends = np.cumsum([len(p) + p.reference_tokens for p in prompts[first:]])
            part = prompts[first : first + max(1, int(np.searchsorted(ends, prefill_tokens, side="right")))]
            of_part = self._prefill(part, decode_group, first)
            logits.append(of_part[0])
            vectors += of_part[1]
            references += of_part[2]
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
            config=self.config,
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

    def _prefill(
        self, prompts: Sequence[Prompt], decode_group: DecodeGroup, first: int
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """Feed P prompts, the first of them number `first` of the group, and with them the reference responses.

        Returns:
            Logits (P, V) after each prompt, the vector (H,) of each instruction, empty without vectors, and that of
            each reference response.
        """
        references = [p.reference_ids if self.vectors else None for p in prompts]
        own = [[ids] if ids is not None and len(ids) else [] for ids in references]
        parts = [(p.token_ids, *of_row) for p, of_row in zip(prompts, own, strict=True)]
        batch = Prefill([(len(ids), [len(one) for one in others]) for ids, *others in parts], decode_group, first)
        ids = torch.from_numpy(np.concatenate(list(chain(*parts)))).to(self.device, torch.long)
        wanted = batch.prompt_ends()
        if self.config.pooling == "surprisal":  # the probabilities of the responses' tokens are computed before them
            wanted = torch.cat((wanted, batch.before_continuations()))
        logits = self._forward(batch, ids, wanted.to(self.device))
        if not self.vectors:
            return logits, [], [None] * len(prompts)
        states = self._recorder.take()[0, : len(ids)]
        of_own = token_weights(self.config.pooling, list(chain(*own)), logits[len(prompts) :])
        pooled = list(batch.pooled(states, of_own, [slice(*p.span) for p in prompts]))
        of_references = [vectors[0] if vectors else None for _, vectors in pooled]
        return logits[: len(prompts)], [vector for vector, _ in pooled], of_references

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
        batch = Decode([d.decode_group for d in active])
        logits = self._forward(batch, torch.cat([d.current for d in active]), wanted.to(self.device))
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

    def _forward(self, batch: Prefill | Decode, ids: Tensor, wanted: Tensor) -> Tensor:
        """Return the logits (M, V) of a flat batch at the places `wanted` (M,) in it."""
        missing = max(0, MIN_BATCH - len(wanted))
        filled = torch.cat((wanted, wanted.new_zeros(missing))) if missing else wanted
        return feed(self.model, batch, ids, filled)[: len(wanted)]


class _Queue:
    """Prompts still to be admitted, read from their source only as far as needed."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._source = iter(prompts)
        self._waiting: deque[Prompt] = deque()

    def empty(self) -> bool:
        """Return whether no prompt is left."""
        if not self._waiting:
            self._waiting.extend(islice(self._source, 1))
        return not self._waiting

    def take(self, capacity: Capacity, decode_groups: Sequence[DecodeGroup]) -> list[Prompt]:
        """Return the next prompts that fit next to `decode_groups`, at least one where there are none."""
        rows, tokens = capacity.admits(decode_groups)
        taken: list[Prompt] = []
        while not self.empty():
            rows, tokens = rows - capacity.num_samples, tokens - capacity.cost(len(self._waiting[0]))
            if (rows < 0 or tokens < 0) and (taken or decode_groups):
                break
            taken.append(self._waiting.popleft())
        return taken

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Put prompts before all others, in their order."""
        self._waiting.extendleft(reversed(prompts))
