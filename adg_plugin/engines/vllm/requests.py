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


# Its number among the answers to a request, token ids, and vLLM's finish reason; of a server, of any type.
Drawn = tuple[Any, Any, Any]


class UnusableAnswer(Exception):
    """The answers to a request are not what was asked for."""


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

    def __init__(self, prompt: Prompt, config: SamplingSettings, eos_ids: frozenset[int], vocabulary: int) -> None:
        self.prompt, self._config = prompt, config
        self._eos, self._vocabulary = eos_ids, vocabulary
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

    def take(self, drawn: Sequence[Drawn], tokenizer: Any) -> None:
        """Take the answers to one request, in any order; those that ended at once are to be resampled.

        Args:
            drawn: the token ids may hold an end-of-answer token, last.

        Raises:
            UnusableAnswer: not each answer that was asked for once, or one that the model cannot have given, or that
                ended for another reason than an end-of-answer token or its length. None is taken then.
        """
        if len(drawn) != self.missing:
            raise UnusableAnswer(f"{len(drawn)} answers came where {self.missing} were asked for")
        by_number = {number: (ids, reason) for number, ids, reason in drawn if type(number) is int}
        if by_number.keys() != set(range(self.missing)):
            raise UnusableAnswer(f"the answers are not numbered 0 to {self.missing - 1}, each once")
        checked = [self._checked(*by_number[number]) for number in range(self.missing)]
        found = [answer for answer in checked if answer is not None]
        texts = tokenizer.batch_decode([ids.tolist() for ids, _ in found], skip_special_tokens=True) if found else []
        self._answers += [Answer(ids, str(text), reason) for (ids, reason), text in zip(found, texts, strict=True)]
        del self._seeds[0]

    def result(self) -> RowResult:
        """Return the row with its answers and without vectors, or rejected where they are too few."""
        answers = tuple(self._answers)
        if len(answers) < MIN_ANSWERS:
            return rejection(self.prompt, EMPTY, answers)
        return RowResult(self.prompt.id, self.prompt.key, answers, None, None)

    def _checked(self, ids: Any, reason: Any) -> tuple[np.ndarray[Any, np.dtype[np.int32]], FinishReason] | None:
        """Return an answer without its end-of-answer token, None where nothing else is in it."""
        limit = self._config.max_new_tokens
        if not isinstance(ids, list):
            raise UnusableAnswer(f"an answer is no list of tokens but of type {type(ids).__name__}")
        # By type, too: True, 7.5 and "7" would become numbers without a word.
        if strange := [token for token in ids if type(token) is not int or not 0 <= token < self._vocabulary]:
            raise UnusableAnswer(
                f"an answer holds {shown(strange[0])}, which is none of the model's {self._vocabulary} tokens"
            )
        ended, is_full = bool(ids) and ids[-1] in self._eos, len(ids) == limit  # both, too
        if len(ids) > limit or not (ended if reason == "stop" else is_full and reason == "length"):
            raise UnusableAnswer(
                f"an answer of {len(ids)} tokens ended with {shown(reason)}, neither with EOS nor after {limit} tokens"
            )
        tokens = ids[:-1] if ended else ids
        if inside := self._eos.intersection(tokens):
            raise UnusableAnswer(f"an answer goes on after the end-of-answer token {min(inside)}")
        return (np.array(tokens, np.int32), "eos" if ended else "length") if tokens else None


def shown(value: object) -> str:
    """Return a value that a server made up; what may be nested without end, by its type."""
    return repr(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
