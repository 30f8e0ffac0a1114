"""Answers that somebody else generated: what counts of them, the same in `adg score` and `adg select`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.answer_file import MIN_ANSWERS, AnswerFile, counted
from adg_plugin.data.cells import Reason, UnusableRowError, is_blank
from adg_plugin.data.prompts import Rendered, refuse_unknown
from adg_plugin.data.rows import Rejection, Row
from adg_plugin.store.records import Answer


class AnswerRules:
    """Which of a row's given answers count, of any row.

    The first K count. `pooling: reference` fills up to K with empty answers and keeps those that are empty, as the
    authors' released code does; the other poolings drop them.
    """

    def __init__(self, config: ADGConfig, tokenizer: Any, positions: int | None, vocabulary: int | None = None) -> None:
        """Take the settings, and how many positions and tokens the model can tell apart (None: no limit is known)."""
        self._num_samples, self._is_reference = config.num_samples, config.pooling == "reference"
        self._tokenizer, self._positions, self._vocabulary = tokenizer, positions, vocabulary
        self._cut_rows = self._filled_rows = self._dropped_rows = self._dropped = 0

    def answers(self, texts: Sequence[str], row: Row, prompt: Rendered) -> tuple[Answer, ...]:
        """Return a row's answers that count; an UnusableRowError where too few, too long, or without room for them."""
        first = list(texts[: self._num_samples])
        answers = self._of_reference(first, row) if self._is_reference else self._not_empty(first)
        longest = len(prompt.token_ids) + max(len(answer.token_ids) for answer in answers)
        if not self._is_reference and self._positions is not None and longest > self._positions:
            detail = f"prompt and longest answer have {longest} tokens, the model has {self._positions} positions"
            raise UnusableRowError(Reason.LONG_ANSWERS, detail)
        for number, answer in enumerate(answers, 1):
            refuse_unknown(self._tokenizer, answer.token_ids, self._vocabulary, f"given answer {number}")
        self._cut_rows += len(texts) > len(first)
        if self._is_reference:
            self._filled_rows += len(first) < self._num_samples
        else:
            self._dropped_rows += len(answers) < len(first)
            self._dropped += len(first) - len(answers)
        return tuple(answers)

    def _of_reference(self, texts: list[str], row: Row) -> list[Answer]:
        from adg_plugin.engines.encode.embed import REFERENCE_TOKENS

        if len(texts) < MIN_ANSWERS:
            raise UnusableRowError(Reason.FEW_ANSWERS, f"{len(texts)} answers are given, {MIN_ANSWERS} are needed")
        instruction, *_ = self._tokenised([row.question])
        if len(instruction.token_ids) >= REFERENCE_TOKENS:
            detail = (
                f"the instruction alone has {len(instruction.token_ids)} tokens, and with pooling: reference "
                f"{REFERENCE_TOKENS} of instruction and answer count: use pooling: answer"
            )
            raise UnusableRowError(Reason.TOO_LONG, detail)
        return self._tokenised(texts + [""] * (self._num_samples - len(texts)))

    def _not_empty(self, texts: list[str]) -> list[Answer]:
        found = [a for a in self._tokenised(texts) if len(a.token_ids) and not is_blank(a.text)]
        if len(found) < MIN_ANSWERS:
            detail = f"{len(found)} of {len(texts)} answers are not empty, {MIN_ANSWERS} are needed"
            raise UnusableRowError(Reason.FEW_ANSWERS, detail)
        return found

    def _tokenised(self, texts: list[str]) -> list[Answer]:
        if not texts:
            return []
        batch = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [Answer(np.array(i, np.int32), t, "eos") for i, t in zip(batch["input_ids"], texts, strict=True)]

    def notes(self) -> list[str]:
        """Return sentences about what was cut, filled up or dropped so far."""
        k, cut, filled, dropped = self._num_samples, self._cut_rows, self._filled_rows, self._dropped
        notes = (
            (cut, f"cut to the first {k} answers (num_samples): {counted(cut, 'row')}"),
            (filled, f"filled up to {k} answers (num_samples) with empty ones: {counted(filled, 'row')}"),
            (dropped, f"left out: {counted(dropped, 'empty answer')} of {counted(self._dropped_rows, 'row')}"),
        )
        return [note for number, note in notes if number]


def given_answers(
    file: AnswerFile, rules: AnswerRules, row: Row | Rejection, prompt: Rendered | Rejection
) -> tuple[Answer, ...] | Rejection:
    """Return the answers of a row that count, or why it cannot be scored; takes every row of the pool once.

    Rejected rows, too: answers to such a row are answers to a row of the pool, and not left over in the file.
    """
    if isinstance(row, Rejection):
        file.know(row.id)
        return row
    try:
        texts = file.texts(row)
        return prompt if isinstance(prompt, Rejection) else rules.answers(texts, row, prompt)
    except UnusableRowError as err:
        return Rejection.of(row, err.reason, err.detail)
