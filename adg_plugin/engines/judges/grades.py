"""Prompts that ask for a grade -> the grade that a model expects, in batches of plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from adg_plugin.data.prompts import Rendered
from adg_plugin.engines.judges.batches import Batches
from adg_plugin.engines.judges.judge import Answer
from adg_plugin.engines.judges.likelihood import logits_at, padded

_CPU_TOKENS, _ACCELERATOR_TOKENS = 2048, 16384  # of a batch


class Grades:
    """Reads the grade off the next token's distribution: the mean over the grades' own tokens, as DEITA's scorers do.

    No text is generated. What the model would rather say than a grade plays no part in the score; how much of its
    expectation is on the grades at all is the share.

    Args:
        grade_ids: the tokens of the grades 1, 2, ...
        batch_tokens: of a batch, padding included; halved when memory runs out. Default: by the kind of device.

    Source: arXiv 2312.15685 (DEITA).
    """

    def __init__(self, model: PreTrainedModel, grade_ids: Sequence[int], *, batch_tokens: int | None = None) -> None:
        self._model, self._grade_ids = model, list(grade_ids)
        self.batches = Batches.of_tokens(batch_tokens, model.device, cpu=_CPU_TOKENS, accelerator=_ACCELERATOR_TOKENS)

    def width(self, question: Rendered) -> int:
        """Return the question's tokens."""
        return len(question.token_ids)

    @torch.no_grad()
    def answers(self, batch: Sequence[Rendered]) -> list[Answer]:
        """Return `score`, 1 to the number of grades, and `share` of each question, and the tokens that were read."""
        ids, attended = padded([question.token_ids for question in batch])
        lengths = attended.sum(1)
        logits = logits_at(self._model, ids, attended, torch.arange(len(batch)), lengths - 1)
        of_all = logits.cpu().double().log_softmax(dim=1)[:, self._grade_ids]
        grades = torch.arange(1, len(self._grade_ids) + 1, dtype=torch.float64)
        scores: list[float] = (of_all.softmax(dim=1) @ grades).tolist()
        shares: list[float] = of_all.exp().sum(dim=1).tolist()
        return [
            ({"score": score, "share": share}, length)
            for score, share, length in zip(scores, shares, lengths.tolist(), strict=True)
        ]
