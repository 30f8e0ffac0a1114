"""The fallback for models that cannot be run in one pass: `generate`, then a second forward for the vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.encode.embed import encoded_one_by_one
from adg_plugin.engines.forward.memory import fitting
from adg_plugin.engines.forward.results import EMPTY, MIN_ANSWERS, OUT_OF_MEMORY, REDRAWS, rejection
from adg_plugin.engines.forward.sampler import stream_keys
from adg_plugin.engines.models.inference_state import replaced
from adg_plugin.store.records import Answer, Prompt, RowResult, Sampled


class GenerateEngine:
    """Samples a row's K answers with the model's own `generate` and re-encodes them; slow, but works everywhere.

    Each row is sampled alone from a seed of its own, so that its answers do not depend on the other rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ADGConfig,
        eos_ids: Sequence[int],
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._eos = sorted(eos_ids)

    @torch.no_grad()
    def run(self, prompts: Iterable[Prompt]) -> Iterator[RowResult]:
        """Yield one result per prompt, in their order."""
        settings = GenerationConfig(
            do_sample=True,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            repetition_penalty=self.config.repetition_penalty,
            max_new_tokens=self.config.max_new_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._eos[0],
            remove_invalid_values=True,  # sampling must not die of NaN: the row's vectors show it
        )
        with replaced(self.model, generation_config=settings):
            for prompt in prompts:
                yield fitting(self._row, prompt, self.model.device) or rejection(prompt, OUT_OF_MEMORY)

    def _row(self, prompt: Prompt) -> RowResult:
        samples = self.config.num_samples
        answers: list[Answer] = []
        for attempt, key in enumerate(stream_keys(self.config.seed, prompt.token_ids, 1 + REDRAWS)):
            missing = samples - len(answers)
            if missing:
                answers += self._draw(prompt, missing, int(key) % 2**63 + attempt)
        kept = tuple(answers)
        if len(kept) < MIN_ANSWERS:
            return rejection(prompt, EMPTY, kept)
        return encoded_one_by_one(self.model, self.config, Sampled(prompt, kept))

    def _draw(self, prompt: Prompt, count: int, seed: int) -> list[Answer]:
        """Return up to `count` answers; those that end at once are left out. Without memory for all, in two halves."""
        answers = fitting(lambda number: self._generate(prompt, number, seed), count, self.model.device)
        if answers is not None:
            return answers
        if count == 1:
            raise MemoryError("an answer does not fit")
        half = count // 2
        return [*self._draw(prompt, half, seed), *self._draw(prompt, count - half, (seed + half) % 2**63)]

    def _generate(self, prompt: Prompt, count: int, seed: int) -> list[Answer]:
        ids = torch.from_numpy(prompt.token_ids).to(self.model.device, torch.long)[None]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = self.model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=torch.ones_like(ids), num_return_sequences=count
            )
        answers = []
        for row in output[:, ids.shape[1] :].cpu().numpy().astype(np.int32):
            ends = np.flatnonzero(np.isin(row, self._eos))
            tokens = row[: ends[0]] if len(ends) else row
            if len(tokens):
                text = str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
                answers.append(Answer(tokens, text, "eos" if len(ends) else "length"))
        return answers
