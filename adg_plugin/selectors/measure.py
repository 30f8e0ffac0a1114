"""What selectors measure of every row, whatever it is: with progress, kept, and stopped where it is not the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from adg_plugin.console import SamplingProgress
from adg_plugin.errors import NumericalError, OutOfMemoryError
from adg_plugin.store.measures import Measures, Result

NOT_MEASURED = "not_measured"

_WATCHED_ROWS = 256  # that many come in the order of their lengths: fewer may all be of a kind
_UNFIT_ROWS = 3  # without memory, and no more than that with a result


class Measured(Result, Protocol):
    """What a model found of a row."""

    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def reason(self) -> str | None: ...  # noqa: D102


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True, slots=True)
class Advice:
    """What a user can do where a model fails on many rows.

    Attributes:
        memory: where they do not fit.
        numbers: where they give NaN or infinity.
    """

    memory: str
    numbers: str


def add_measures(
    measures: Measures,
    results: Iterator[M],
    advice: Advice,
    *,
    total: int,
    pending: int,
    show: bool,
    verb: str = "scoring",
) -> dict[str, Any]:
    """Store the results, and return what they took.

    Args:
        measures: where they go.
        results: of the rows that have none yet.
        advice: for the errors.
        total: rows that there are to ask about.
        pending: of these, without a result.
        show: report progress on stderr.
        verb: what the model does, for the progress.

    Returns:
        `rows` that had no result, of `total`; where there were any `seconds` and `tokens`; where memory was short
        `skipped`, the reason of each row that is not stored, by id.

    Raises:
        NumericalError: most rows give NaN or infinity.
        OutOfMemoryError: several consecutive rows do not fit even at batch size 1.
        StoreError: a part cannot be written; what is measured is kept.
    """
    stats: dict[str, Any] = {"rows": pending, "total": total}
    if not pending:
        return stats
    with SamplingProgress(total, total - pending, verb=verb, show=show) as progress:
        for result in _watched(results, progress, stats, advice):
            measures.append(result)
    return stats | {"seconds": progress.seconds, "tokens": progress.tokens}


def _watched(results: Iterator[M], progress: SamplingProgress, stats: dict[str, Any], advice: Advice) -> Iterator[M]:
    """Yield what is to be stored, count everything, and stop where it is not the rows that are wrong."""
    from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY

    unfit = finite = bad = 0
    for result in results:
        progress.add(result.tokens, rejected=result.reason is not None)
        if result.reason == OUT_OF_MEMORY:  # not stored: the next run may have more
            stats.setdefault("skipped", {})[result.id] = result.reason
            unfit += 1
        else:
            bad += result.reason == NON_FINITE
            finite += result.reason is None
            yield result
        if unfit >= _UNFIT_ROWS and unfit > finite:
            raise OutOfMemoryError(
                f"out of memory on {unfit} rows at batch size 1: {advice.memory}. What is measured is kept"
            )
        if finite + bad >= _WATCHED_ROWS:
            _refuse_not_finite(bad, finite + bad, advice)
    _refuse_not_finite(bad, finite + bad, advice)


def _refuse_not_finite(bad: int, rows: int, advice: Advice) -> None:
    if bad > rows / 2:
        raise NumericalError(f"{bad} of {rows} rows gave NaN or infinity: {advice.numbers}")
