"""Rows whose instruction or reference answer has too few or too many words."""

from __future__ import annotations

from dataclasses import dataclass

from adg_plugin.config.filters import Filters
from adg_plugin.data.filters.base import Rejected, asked
from adg_plugin.data.filters.words import count_words
from adg_plugin.data.layouts import Reason
from adg_plugin.data.rows import Row


@dataclass(frozen=True, slots=True)
class WordCounts:
    """Rejects by `min_words`, `max_words`, `min_answer_words` and `max_answer_words`."""

    limits: Filters

    def __call__(self, row: Row) -> Rejected | None:
        """Return why the row is rejected, or None; the instruction is looked at first."""
        limits = self.limits
        words = count_words(asked(row))
        if limits.min_words is not None and words < limits.min_words:
            return Reason.FEW_WORDS, f"{_words(words)}, filters.min_words is {limits.min_words}"
        if limits.max_words is not None and words > limits.max_words:
            return Reason.MANY_WORDS, f"{_words(words)}, filters.max_words is {limits.max_words}"
        answer = count_words(row.reference)
        if limits.min_answer_words is not None and answer < limits.min_answer_words:
            detail = f"{_words(answer)} in the answer, filters.min_answer_words is {limits.min_answer_words}"
            return Reason.FEW_ANSWER_WORDS, detail
        if limits.max_answer_words is not None and answer > limits.max_answer_words:
            detail = f"{_words(answer)} in the answer, filters.max_answer_words is {limits.max_answer_words}"
            return Reason.MANY_ANSWER_WORDS, detail
        return None


def _words(count: int) -> str:
    return "1 word" if count == 1 else f"{count} words"
