"""What vLLM is asked for a row, in this process or behind a URL, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adg_plugin.config.groups import SamplingSettings
from adg_plugin.engines.forward.results import EMPTY, MIN_ANSWERS, REDRAWS, rejection
from adg_plugin.engines.forward.sampler import stream_keys
from adg_plugin.store.records import Answer, FinishReason, Prompt, RowResult

_SEED_BITS = 62  # vLLM adds the answer's number to the seed and takes signed 64-bit numbers


class UnusableAnswer(Exception):
    """The engine ended an answer in a way that it was not asked for."""


def sampling_settings(config: SamplingSettings, eos_ids: Sequence[int]) -> dict[str, Any]:
    """Return every sampling parameter of vLLM, by name, but `n` and `seed`: nothing is left to a default of its own.

    The end-of-answer tokens are given as stop tokens, with vLLM's own switched off, so that they are those of the
    other engines.
    """
    return {
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "min_p": 0.0,
        "repetition_penalty": config.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": config.max_new_tokens,
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": sorted(eos_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
    }


class RowDraws:
    """The answers of one row, until there are K of them or the redraws are used up."""

    def __init__(self, prompt: Prompt, config: SamplingSettings) -> None:
        self.prompt, self._config = prompt, config
        # Of each attempt that is left; those of neighbouring rows have nothing in common.
        keys = stream_keys(config.seed, prompt.token_ids, 1 + REDRAWS)
        self._seeds: list[int] = [int(key) % 2**_SEED_BITS for key in keys]
        self._answers: list[Answer] = []

    @property
    def missing(self) -> int:
        """Answers to ask for next, under the seed `seed`; 0 when the row is done."""
        return self._config.num_samples - len(self._answers) if self._seeds else 0

    @property
    def seed(self) -> int:
        """Seed of the next request."""
        return self._seeds[0]

    def take(self, drawn: Sequence[tuple[Sequence[int], str | None]], eos_ids: frozenset[int], tokenizer: Any) -> None:
        """Take the answers to one request; those that ended at once are to be resampled.

        Args:
            drawn: token ids, which may hold the end-of-answer token last, and vLLM's finish reason of each.

        Raises:
            UnusableAnswer: not as many as asked for, or one that ended for another reason.
        """
        if len(drawn) != self.missing:
            raise UnusableAnswer(f"{len(drawn)} answers came where {self.missing} were asked for")
        limit = self._config.max_new_tokens
        found = [answer for ids, reason in drawn if (answer := _answer(ids, reason, eos_ids, limit)) is not None]
        texts = tokenizer.batch_decode([ids.tolist() for ids, _ in found], skip_special_tokens=True) if found else []
        self._answers += [Answer(ids, str(text), reason) for (ids, reason), text in zip(found, texts, strict=True)]
        del self._seeds[0]

    def result(self) -> RowResult:
        """Return the row with its answers and without vectors, or rejected where they are too few."""
        answers = tuple(self._answers)
        if len(answers) < MIN_ANSWERS:
            return rejection(self.prompt, EMPTY, answers)
        return RowResult(self.prompt.id, self.prompt.key, answers, None, None)


def _answer(
    ids: Sequence[int], reason: str | None, eos_ids: frozenset[int], limit: int
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], FinishReason] | None:
    tokens = np.array(ids, dtype=np.int32)
    ended = reason == "stop" and len(tokens) > 0 and int(tokens[-1]) in eos_ids
    if not ended and (reason != "length" or len(tokens) != limit):
        raise UnusableAnswer(
            f"an answer of {len(tokens)} tokens ended with {reason!r}, neither with EOS nor after {limit} tokens"
        )
    tokens = tokens[:-1] if ended else tokens
    return (tokens, "eos" if ended else "length") if len(tokens) else None
