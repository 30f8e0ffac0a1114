"""Selectors by likelihood: how well a model predicts each reference response -> the choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.layouts import Reason
from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import NO_ANSWER, Candidates, Pick
from adg_plugin.selectors.likelihood.measure import (
    ADVICE,
    LikelihoodMethod,
    LikelihoodTable,
    likelihoods_of,
    measure,
)
from adg_plugin.selectors.measured import Why, by_measure, not_measured, places
from adg_plugin.store import Rejection, RunFolder

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

Floats = npt.NDArray[np.float64]


class ByLikelihood(Selector, ABC):
    """The highest scores that are made of an answer's likelihood after its prompt and alone.

    Attributes:
        likelihood: which likelihoods.
        dropped: the reason of a row whose score is on the wrong side of 1.
        shorter: what helps where a prompt is too long.
    """

    likelihood: ClassVar[LikelihoodMethod]
    dropped: ClassVar[str]
    shorter: ClassVar[str]
    part_meanings: ClassVar[Mapping[str, str]] = {
        "answer_nll": "mean NLL of the answer after the prompt",
        "answer_nll_alone": "mean NLL of the answer alone",
        "reference_tokens": "tokens of the reference response",
    }

    @abstractmethod
    def who(self, config: ADGConfig) -> str:
        """Return the model that is asked, for messages."""

    @staticmethod
    @abstractmethod
    def score(with_prompt: Floats, alone: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return (N,) scores from (N,) mean NLLs, and (N,) which rows may be chosen."""

    @staticmethod
    @abstractmethod
    def detail(score: float) -> str:
        """Return the sentence for a row that may not be chosen."""

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Measure what has no likelihoods; see `measure`."""
        return measure(run, config, source, method=self.likelihood, show=show)

    def usable(self, rows: Candidates, task: Task) -> tuple[Candidates, Sequence[Rejection], Pick]:
        """Return the rows with a score on the right side of 1, the others with their reasons, and how it chooses."""
        assert task.source is not None
        found = likelihoods_of(task.run, task.config, task.source, method=self.likelihood)
        at = places(found.ids, rows.ids)
        columns: dict[str, npt.NDArray[Any]] = {
            "answer_nll": found.with_prompt[at],
            "answer_nll_alone": found.alone[at],
            "reference_tokens": found.tokens[at],
        }
        scores, usable = self.score(columns["answer_nll"], columns["answer_nll_alone"])

        def why(row: int) -> Why | None:
            reason = found.reasons[at[row]]
            if reason is None:
                return None if usable[row] else (self.dropped, self.detail(float(scores[row])))
            reason = task.skipped.get(str(rows.ids[row]), reason)
            return reason, self._no_likelihood(reason, found, int(at[row]), task.config)

        return by_measure(rows, [why(row) for row in range(len(rows))], scores, columns)

    def _no_likelihood(self, reason: str, found: LikelihoodTable, row: int, config: ADGConfig) -> str:
        from adg_plugin.engines.judges.likelihood import ANSWER_TOO_SHORT

        who = self.who(config)
        if reason == Reason.TOO_LONG:
            return (
                f"the prompt has {found.prompt_tokens[row]} tokens of {who}, which takes {found.max_tokens}, the "
                f"answer included: {self.shorter}"
            )
        if reason == ANSWER_TOO_SHORT:
            return (
                "the answer is a single token, and nothing stands before it where it is alone: there is nothing to "
                "compare; give it a longer answer"
            )
        if reason == Reason.NO_ANSWER:
            return NO_ANSWER
        return not_measured(reason, who, ADVICE[self.likelihood])
