"""IFD, SuperFiltering and SCAR: what was measured of each candidate -> scores, and a reason where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.layouts import Reason
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY
from adg_plugin.engines.judges.likelihood import ANSWER_TOO_SHORT
from adg_plugin.selectors import scar
from adg_plugin.selectors.candidates import NO_ANSWER, Candidates, Pick, Picked, highest, without
from adg_plugin.selectors.likelihood import ifd, superfiltering
from adg_plugin.selectors.likelihood.measure import ADVICE, LikelihoodMethod, LikelihoodTable, likelihoods_of
from adg_plugin.selectors.measure import NOT_MEASURED, Advice
from adg_plugin.store import Rejection, RunReader

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

Rows = npt.NDArray[np.int64]
Told = tuple[str, str]  # reason and detail


def by_likelihood(
    run: RunReader, config: ADGConfig, source: Source, candidates: Candidates, unmeasured: Mapping[str, str]
) -> tuple[Candidates, list[Rejection], Pick]:
    """Return the candidates that `ifd` or `superfiltering` may choose, the others with reasons, and how it chooses.

    Args:
        unmeasured: the reason of each row that could not be measured this time, by id.
    """
    method: LikelihoodMethod = "ifd" if config.method == "ifd" else "superfiltering"
    score, dropped, detail = (
        (ifd.ifd, ifd.ABOVE_1, ifd.detail)
        if method == "ifd"
        else (superfiltering.superfiltering, superfiltering.NOT_BELOW_1, superfiltering.detail)
    )
    found = likelihoods_of(run, config, source, method=method)
    rows = _places(found.ids, candidates.ids)
    with_prompt, alone = found.with_prompt[rows], found.alone[rows]
    scores, usable = score(with_prompt, alone)

    def told(row: int) -> Told | None:
        reason = found.reasons[rows[row]]
        if reason is None:
            return None if usable[row] else (dropped, detail(float(scores[row])))
        reason = unmeasured.get(str(candidates.ids[row]), reason)
        return reason, _no_likelihood(reason, found, int(rows[row]), config, method)

    reasons = [told(row) for row in range(len(candidates))]
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    columns = {
        "answer_nll": with_prompt[kept],
        "answer_nll_alone": alone[kept],
        "reference_tokens": found.tokens[rows][kept],
    }
    return *without(candidates, reasons), _highest(scores[kept], columns)


def by_style(
    run: RunReader, config: ADGConfig, candidates: Candidates, unmeasured: Mapping[str, str]
) -> tuple[Candidates, list[Rejection], Pick]:
    """Return the candidates that `scar` may choose, the others with reasons, and how it chooses; as `by_likelihood`."""
    found = scar.read_styles(run, config)
    rows = _places(found.ids, candidates.ids)
    scores = found.scores[rows]

    def told(row: int) -> Told | None:
        reason = found.reasons[rows[row]]
        if reason is None:
            return None
        reason = unmeasured.get(str(candidates.ids[row]), reason)
        return reason, not_measured(reason, f"scar_model {config.scar_model!r}", scar.ADVICE)

    reasons = [told(row) for row in range(len(candidates))]
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    return *without(candidates, reasons), _highest(scores[kept], {})


def _places(ids: npt.NDArray[np.object_], wanted: npt.NDArray[np.object_]) -> Rows:
    """Return where each of the wanted ids is among `ids`."""
    place = {id: place for place, id in enumerate(ids)}
    return np.array([place[id] for id in wanted], dtype=np.int64)


def _highest(scores: npt.NDArray[np.float64], columns: Mapping[str, npt.NDArray[Any]]) -> Pick:
    return lambda _, budget: Picked(highest(scores, budget), scores, columns)


def _no_likelihood(reason: str, found: LikelihoodTable, row: int, config: ADGConfig, method: LikelihoodMethod) -> str:
    """Return the sentence for a row without likelihoods."""
    who = f"model {config.model!r}" if method == "ifd" else f"small_model {config.small_model!r}"
    if reason == Reason.TOO_LONG:
        fix = "lower max_prompt_tokens and set truncate: true" if method == "ifd" else "shorten its instruction"
        return (
            f"the prompt has {found.prompt_tokens[row]} tokens of {who}, which takes {found.max_tokens}, the answer "
            f"included: {fix}"
        )
    if reason == ANSWER_TOO_SHORT:
        return (
            "the answer is a single token, and nothing stands before it where it is alone: there is nothing to "
            "compare; give it a longer answer"
        )
    if reason == Reason.NO_ANSWER:
        return NO_ANSWER
    return not_measured(reason, who, ADVICE[method])


def not_measured(reason: str, who: str, advice: Advice) -> str:
    """Return the sentence for a row of which a model said nothing that can be used."""
    return {
        NON_FINITE: f"{who} gave NaN or infinity: {advice.numbers}",
        OUT_OF_MEMORY: f"{who} has no memory for it, even alone: {advice.memory}; the next run tries it again",
        NOT_MEASURED: f"{who} was not asked about it: run the same command again",
        Reason.NO_INSTRUCTION: f"its instruction is only white space, and {who} judges both: repair the row",
    }[reason]
