"""Prompts, answers and what is known of a row: what the run folder keeps and the engines make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FinishReason = Literal["eos", "length"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, sampled or given. `token_ids` leave the end-of-answer token out."""

    token_ids: npt.NDArray[np.int32]  # (T,)
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered row: everything up to where the assistant's answer begins."""

    id: str
    token_ids: npt.NDArray[np.int32]  # (L,)
    span: tuple[int, int]  # [start, end) of the instruction's own tokens
    key: bytes = b""  # 16-byte hash of what produces the row's answers; b"" outside a run folder
    instruction: str = ""  # the row's own words, for `pooling: reference`
    reference_ids: npt.NDArray[np.int32] | None = None  # (T,) the reference response, where agreement is asked for
    given: tuple[Answer, ...] | None = None  # answers that somebody else generated, where those are scored

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def reference_tokens(self) -> int:
        """Tokens of the reference response, 0 where agreement is not asked for."""
        return 0 if self.reference_ids is None else len(self.reference_ids)


@dataclass(frozen=True, slots=True)
class RowResult:
    """What an engine found out about one row. With a `reason`, the row is rejected and the arrays are None.

    Of a `Sampler`, the arrays are None, too: the answers are to be embedded.
    """

    id: str
    key: bytes
    answers: tuple[Answer, ...]
    gram: npt.NDArray[np.float32] | None  # (K, K), inner products of the unit answer vectors
    prompt_vector: npt.NDArray[np.float16] | None  # (H,), unit length
    reason: str | None = None
    vectors: npt.NDArray[np.float16] | None = None  # (K, H), only when asked for
    agreement: float | None = None  # cosine of the reference response and the answers' mean, only when asked for

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers together."""
        return sum(len(answer.token_ids) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A prompt and the answers that were sampled to it, not embedded yet."""

    prompt: Prompt
    answers: tuple[Answer, ...]

    @property
    def id(self) -> str:
        """The row's id."""
        return self.prompt.id

    @property
    def instruction(self) -> str:
        """The row's own words."""
        return self.prompt.instruction

    def __len__(self) -> int:
        """Tokens of the prompt and of all answers, its own included."""
        return len(self.prompt) + sum(map(len, self.continuations))

    @property
    def continuations(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of each answer, and of the reference response where agreement is asked for and it has any."""
        own = self.prompt.reference_ids
        return [*(answer.token_ids for answer in self.answers), *([own] if own is not None and len(own) else [])]
