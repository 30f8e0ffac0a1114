"""What was measured of each candidate -> the choice of the highest scores, and a reason where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.data.layouts import Reason
from adg_plugin.selectors.candidates import Candidates, Pick, Picked, without
from adg_plugin.selectors.measure import NOT_MEASURED, Advice
from adg_plugin.store import Rejection

Why = tuple[str, str]  # reason and detail


def by_measure(
    rows: Candidates,
    reasons: Sequence[Why | None],
    scores: npt.NDArray[np.float64],
    columns: Mapping[str, npt.NDArray[Any]] | None = None,
) -> tuple[Candidates, list[Rejection], Pick]:
    """Return the candidates that have no reason against them, the others as rejections, and how the former are chosen.

    Args:
        rows: N candidates.
        reasons: (N,) why a row cannot be chosen; None: it can.
        scores: (N,), higher is better.
        columns: (N,) each: what the score was made of.
    """
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    of_kept = {name: values[kept] for name, values in (columns or {}).items()}
    return *without(rows, reasons), lambda _, budget: Picked.best(scores[kept], budget, of_kept)


def places(ids: npt.NDArray[np.object_], wanted: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """Return where each of the wanted ids is among `ids`."""
    place = {id: place for place, id in enumerate(ids)}
    return np.array([place[id] for id in wanted], dtype=np.int64)


def not_measured(reason: str, who: str, advice: Advice) -> str:
    """Return the sentence for a row of which a model gave nothing that can be used."""
    from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY

    return {
        NON_FINITE: f"{who} gave NaN or infinity: {advice.numbers}",
        OUT_OF_MEMORY: f"{who} has no memory for it, even alone: {advice.memory}; the next run tries it again",
        NOT_MEASURED: f"{who} was not asked about it: run the same command again",
        Reason.NO_INSTRUCTION: f"its instruction is only white space, and {who} judges both: repair the row",
    }[reason]
