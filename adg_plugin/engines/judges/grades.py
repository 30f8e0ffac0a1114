"""Prompts that ask for a grade -> the grade that a model expects, in batches of plain forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY
from adg_plugin.engines.judges.batches import Batches
from adg_plugin.engines.judges.likelihood import logits_at

_WINDOW_ROWS = 256  # sorted by length together
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 16384


@dataclass(frozen=True, slots=True)
class GradeQuestion:
    """A prompt after which a grade is to come."""

    id: str
    key: bytes  # 16-byte hash of all that produces the result
    token_ids: npt.NDArray[np.int32]  # (L,), L >= 1


@dataclass(frozen=True, slots=True)
class Grade:
    """What a model expects. With a `reason` there is no score."""

    id: str
    key: bytes
    score: float | None  # 1 to the number of grades
    share: float | None  # of the next token's probability that is on the grades
    tokens: int  # that were read; 0 with a `reason`
    reason: str | None = None


class Grades:
    """Reads the grade off the next token's distribution: the mean over the grades' own tokens, as DEITA's scorers do.

    No text is generated. What the model would rather say than a grade plays no part in the score; how much of its
    expectation is on the grades at all is the share. A grade depends on no other row, up to rounding.

    Args:
        model: a causal language model in evaluation mode.
        grade_ids: the tokens of the grades 1, 2, ...
        batch_tokens: of a batch, padding included; halved when memory runs out. Default: by the kind of device.

    Source: arXiv 2312.15685 (DEITA).
    """

    def __init__(self, model: PreTrainedModel, grade_ids: Sequence[int], *, batch_tokens: int | None = None) -> None:
        self._model, self._grade_ids = model, list(grade_ids)
        most = batch_tokens or _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR)
        self._batches = Batches(most, model.device)

    def run(self, questions: Iterable[GradeQuestion]) -> Iterator[Grade]:
        """Yield the grade of each question, 256 at a time by length, those without one with a reason."""
        remaining = iter(questions)
        while window := list(islice(remaining, _WINDOW_ROWS)):
            for batch, scores in self._batches.run(window, lambda question: len(question.token_ids), self._scores):
                if scores is None:
                    yield _ungraded(batch[0], OUT_OF_MEMORY)  # alone in its batch
                for question, (score, share) in zip(batch, scores or (), strict=scores is not None):
                    if np.isfinite(score) and np.isfinite(share):
                        yield Grade(question.id, question.key, score, share, len(question.token_ids))
                    else:
                        yield _ungraded(question, NON_FINITE)

    @torch.no_grad()
    def _scores(self, batch: Sequence[GradeQuestion]) -> list[tuple[float, float]]:
        """Return score and share of each question."""
        lengths = torch.tensor([len(question.token_ids) for question in batch])
        ids = torch.zeros((len(batch), int(lengths.max())), dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, question in enumerate(batch):
            ids[row, : lengths[row]] = torch.from_numpy(question.token_ids)
            # Its own last token fills it up: one whose states are not finite would reach through a mask (0 * NaN).
            ids[row, lengths[row] :] = int(question.token_ids[-1])
            attended[row, : lengths[row]] = 1
        logits = logits_at(self._model, ids, attended, torch.arange(len(batch)), lengths - 1)
        of_all = logits.cpu().double().log_softmax(dim=1)[:, self._grade_ids]
        grades = torch.arange(1, len(self._grade_ids) + 1, dtype=torch.float64)
        scores: list[float] = (of_all.softmax(dim=1) @ grades).tolist()
        shares: list[float] = of_all.exp().sum(dim=1).tolist()
        return list(zip(scores, shares, strict=True))


def _ungraded(question: GradeQuestion, reason: str) -> Grade:
    return Grade(question.id, question.key, None, None, 0, reason)
