"""SCAR over a run folder: rows with an answer -> how consistent its style is, by the ranker of `scar-tool`.

The scores are measured once and kept, as likelihoods are; the definition (arXiv 2406.10882) is that package's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Pick
from adg_plugin.selectors.measure import Advice, Measure, fill_measure, stored_measure, text_key
from adg_plugin.selectors.measured import Why, by_measure, not_measured, places
from adg_plugin.store import Rejection, RunFolder, RunReader, keys
from adg_plugin.store.measures import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.judges.style_ranker import StyleRanker, StyleRow, StyleScores
    from adg_plugin.engines.models.loading import Source

ADVICE = Advice(
    memory="free the device, or use device: cpu", numbers="check the weights of scar_model, or give another ranker"
)
_MEASURE = Measure("scar", measure_schema(("score", pa.float64())), ADVICE)

# Raise it when the same settings come to give other scores.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StyleTable:
    """What is known of the style of N rows with an answer."""

    ids: npt.NDArray[np.object_]  # (N,) str
    scores: npt.NDArray[np.float64]  # (N,) any real number, higher is more consistent; NaN with a reason
    reasons: npt.NDArray[np.object_]  # (N,) str why there is no score, None where there is


class SCAR(Selector):
    """The highest scores of the ranker of `scar-tool`. Source: arXiv 2406.10882."""

    reads = ("instruction", "reference")
    settings = ("scar_model",)
    extra = "scar"
    score_meaning = "of the ranker"

    def models(self, config: ADGConfig) -> Mapping[str, Callable[[], object]]:
        """Return how the ranker is configured."""
        return {"scar_model": partial(_ranker, config)}

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Score what has no score; see `fill_styles`."""
        return fill_styles(run, config, show=show)

    def usable(self, rows: Candidates, task: Task) -> tuple[Candidates, Sequence[Rejection], Pick]:
        """Return the rows with a score, the others with their reasons, and how it chooses."""
        found = read_styles(task.run, task.config)
        at = places(found.ids, rows.ids)

        def why(row: int) -> Why | None:
            reason = found.reasons[at[row]]
            if reason is None:
                return None
            reason = task.skipped.get(str(rows.ids[row]), reason)
            return reason, not_measured(reason, f"scar_model {task.config.scar_model!r}", ADVICE)

        return by_measure(rows, [why(row) for row in range(len(rows))], found.scores[at])


def fill_styles(run: RunFolder, config: ADGConfig, *, show: bool = True) -> dict[str, Any]:
    """Score the prompts of a run folder that have an answer and no score, and return what it took.

    Args:
        config: `scar_model` and `device`. The ranker is loaded only if there is something to score, and its code is
            never trusted: `trust_remote_code` is about the backbone.

    Returns:
        As `adg_plugin.selectors.measure.fill_measure`.

    Raises:
        MissingExtraError: `scar-tool` is not installed.
        ModelError: the ranker or its encoder cannot be loaded, is not whole, or brings code of its own.
    """
    return fill_measure(run, _MEASURE, _StyleJudge.configured(config), show=show)


def read_styles(run: RunReader, config: ADGConfig) -> StyleTable:
    """Return the stored scores of the current prompts that have an answer; arguments as of `fill_styles`.

    Those of another ranker or of other texts do not count: such a row's reason is `not_measured`.
    """
    judge = _StyleJudge.configured(config)
    table = stored_measure(run, _MEASURE, judge, judge.rows(run))
    return StyleTable(*(table[name].to_numpy() for name in ("id", "score", "reason")))


@dataclass(frozen=True, slots=True)
class _StyleJudge:
    ranker: StyleRanker
    recipe: bytes  # of all that a score depends on, apart from the row

    @classmethod
    def configured(cls, config: ADGConfig) -> _StyleJudge:
        from adg_plugin.engines.judges.style_ranker import MAX_TOKENS

        ranker = _ranker(config)
        recipe = {"ranker": ranker.identity, "max_tokens": MAX_TOKENS, "version": _VERSION}
        return cls(ranker, keys.digest(recipe))

    def rows(self, run: RunReader) -> Iterator[StyleRow]:
        """Yield the staged prompts that have an answer, in the pool's order."""
        from adg_plugin.engines.judges.style_ranker import StyleRow

        for table in run.staged_columns(["id", "instruction", "reference"]):
            for id, asked, answer in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if answer and answer.strip():
                    yield StyleRow(id, asked, answer)

    def key(self, row: StyleRow) -> bytes:
        """Return 16 bytes that stand for all that produces a row's score."""
        return text_key(self.recipe, row.instruction, row.answer)

    def inputs(self, rows: Sequence[StyleRow]) -> Iterator[Sequence[StyleRow] | str]:
        """Yield each row, or the reason why there is nothing to score."""
        return self.ranker.inputs(rows)

    def load(self) -> StyleScores:
        """Return the ranker, in memory."""
        return self.ranker.load()


def _ranker(config: ADGConfig) -> StyleRanker:
    from adg_plugin.engines.judges.style_ranker import StyleRanker

    return StyleRanker(config.scar_model, config.device)
